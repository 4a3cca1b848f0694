"""Where this plugin's own facts stand in a layer's metadata."""

from __future__ import annotations

__all__ = ["METADATA_KEY"]

METADATA_KEY = "tcl-annotate"
"""A mapping: ``names`` (label ids to names, or a list of names), ``file_names`` by slice, ``size`` of the image."""
