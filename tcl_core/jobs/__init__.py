"""Labeling many images: finding them, working through them, picking up where a run was stopped."""
