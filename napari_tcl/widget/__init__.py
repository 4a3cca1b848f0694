"""The dock widget "Segment from text"."""

from __future__ import annotations

from napari_tcl.widget.main import SegmentWidget

__all__ = ["SegmentWidget"]
