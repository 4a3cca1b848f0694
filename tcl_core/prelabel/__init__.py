"""Labelling many pictures: finding them, working through them, picking up where a run was stopped."""
