"""The dock widget "Segment from text"."""

from __future__ import annotations

import napari_tcl.triton_workaround  # noqa: F401 - before PyTorch
from napari_tcl.widget.main import SegmentWidget

__all__ = ["SegmentWidget"]
