"""The signatures of ``label-studio-ml`` 2.x, which no package registry has."""
