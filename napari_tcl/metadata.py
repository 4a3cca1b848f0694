"""Where this plugin's own facts stand in a layer's metadata."""

from __future__ import annotations

from typing import Any

__all__ = ["ANNOTATION", "FILE_NAMES", "METADATA_KEY", "Link"]

METADATA_KEY = "tcl-annotate"
"""A mapping: ``names`` (label ids to names, or a list of names), ``file_names`` by slice, ``size`` of the image,
``channel_axis`` of length 1, ``role`` (``draft`` or ``accepted``), the name of its ``image``, ``prompts`` by id, and
``annotation`` while the window is open."""

FILE_NAMES = "file_names"
ANNOTATION = "annotation"


class Link:
    """Refers to an object that belongs to one layer alone: what is copied of the layer does not refer to it.

    Args:
        target: the object.
    """

    def __init__(self, target: Any = None) -> None:
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> Link:
        return Link()
