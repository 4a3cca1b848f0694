"""A tcl-annotate method in a package of its own; see :mod:`tcl_annotate_example.method`."""
