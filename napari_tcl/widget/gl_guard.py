"""Keeps napari's canvas from drawing with buffers that are gone."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from qtpy.QtOpenGLWidgets import QOpenGLWidget

if TYPE_CHECKING:
    from napari.viewer import Viewer
    from qtpy.QtWidgets import QWidget

__all__ = ["CanvasGuard"]


class CanvasGuard:
    """Makes the canvas's OpenGL context current whenever a layer is removed.

    napari frees a removed layer's buffers at once, in whatever context is current. After another part of the window was
    drawn that is Qt's own context. The canvas's context then still refers to them, and the process can crash when the
    next layers are drawn.

    Args:
        viewer: whose layers are watched.
        widget: in the viewer's window.
    """

    def __init__(self, viewer: Viewer, widget: QWidget) -> None:
        self._widget = widget
        # After the removal too, because those of a batch are only dealt with at its end.
        viewer.layers.events.removing.connect(self._make_current)
        viewer.layers.events.removed.connect(self._make_current)

    def _make_current(self) -> None:
        # Qt's side of the widget is gone once its dock was closed.
        with suppress(RuntimeError):
            window = self._widget.window()
            for canvas in window.findChildren(QOpenGLWidget) if window is not None else ():
                canvas.makeCurrent()
