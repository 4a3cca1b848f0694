"""What a person does in the window, as calls that wait until the window has done it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtWidgets import QApplication

from napari_tcl.widget import SegmentWidget

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Labels

__all__ = ["brush", "dock", "idle", "wait_until"]

_PATIENCE = 240  # seconds; the machine may be busy with other things
_PAUSE = 0.005


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Run the window's event loop until something is so."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        QApplication.processEvents()
        time.sleep(_PAUSE)
        assert time.monotonic() < end, f"waited in vain until {what}"
    QApplication.processEvents()


def idle(widget: SegmentWidget) -> None:
    """Wait until no thread works."""
    QApplication.processEvents()
    wait_until(lambda: not widget.busy, f"the work ends; the widget says: {widget.buttons.message.text()}")


def dock(viewer: Viewer) -> SegmentWidget:
    """Add the widget to a viewer's window."""
    widget = SegmentWidget(viewer)
    viewer.window.add_dock_widget(widget, name="Segment from text")
    return widget


def brush(layer: Labels, label: int, row: int, column: int, size: int = 20) -> None:
    """A stroke of napari's brush."""
    layer.selected_label = label
    layer.brush_size = size
    layer.mode = "paint"
    layer.paint((row, column), label)
    layer.paint((row, column + size // 2), label)
    layer.mode = "pan_zoom"
    assert np.asarray(layer.data)[row, column] == label
