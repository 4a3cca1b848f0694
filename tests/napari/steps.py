"""What a person does in the window, as calls that wait until the window has done it. Imports Qt only when called."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pytest
    from napari import Viewer
    from napari.layers import Labels

    from napari_tcl.results import Results
    from napari_tcl.widget import SegmentWidget

__all__ = [
    "PATIENCE",
    "brush",
    "close_dock",
    "dock",
    "hold",
    "idle",
    "press_key",
    "register_plugin",
    "segmented",
    "settle",
    "wait_until",
]

PATIENCE = 240  # seconds; the machine may be busy with other things
_MANIFEST = Path(__file__).parents[2] / "napari_tcl" / "napari.yaml"
_PAUSE = 0.005
_SETTLING = 0.1
_MOVE_PAUSE = 0.03  # vispy drops moves of the mouse that follow each other more quickly


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Run the window's event loop until something is so."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + PATIENCE
    while not condition():
        QApplication.processEvents()
        time.sleep(_PAUSE)
        assert time.monotonic() < end, f"waited in vain until {what}"
    QApplication.processEvents()


def hold(patches: pytest.MonkeyPatch, owner: object, name: str, calls: int) -> threading.Event:
    """Let a method return a number of times; later calls wait until the event is set."""
    go_on, counted, method = threading.Event(), itertools.count(1), getattr(owner, name)

    def held(*arguments: Any, **options: Any) -> Any:
        assert next(counted) <= calls or go_on.wait(PATIENCE), f"{name} was held for {PATIENCE} s"
        return method(*arguments, **options)

    patches.setattr(owner, name, held)
    return go_on


def settle() -> None:
    """Let the window lay itself out and draw."""
    end = time.monotonic() + _SETTLING
    wait_until(lambda: time.monotonic() > end, "the window is drawn")


def idle(widget: SegmentWidget) -> None:
    """Wait until no thread works."""
    wait_until(lambda: not widget.busy, f"the work ends; the widget says: {widget.buttons.message.text()}")


def register_plugin() -> None:
    """Make the plugin known to napari, also from a checkout that is not installed."""
    from npe2 import PluginManager, PluginManifest

    plugins = PluginManager.instance()
    plugins.discover()
    if "tcl-annotate" not in plugins:
        plugins.register(PluginManifest.from_file(_MANIFEST))


def dock(viewer: Viewer) -> SegmentWidget:
    """Add the widget to a viewer's window as the Plugins menu does, which gives it a proxy of the viewer."""
    register_plugin()
    _, widget = viewer.window.add_plugin_dock_widget("tcl-annotate", "Segment from text")
    return cast("SegmentWidget", widget)


def close_dock(widget: SegmentWidget) -> None:
    """Click the cross of the widget's dock, and wait until the widget is gone."""
    from qtpy.QtWidgets import QDockWidget, QPushButton

    holder = widget.parent()
    assert isinstance(holder, QDockWidget)
    cross = holder.titleBarWidget().findChild(QPushButton, "QTitleBarCloseButton")
    gone: list[object] = []
    widget.destroyed.connect(gone.append)
    cross.click()
    wait_until(lambda: bool(gone), "the widget of a closed dock is gone")


def prepared(viewer: Viewer, model: Path) -> SegmentWidget:
    """The docked widget with a model, the labels Cat and Sky, and no background."""
    widget = dock(viewer)
    widget.model.file.value = model
    widget.model.device.value = "cpu"
    widget.background.on.value = False
    for name, prompts in (("Cat", "cat, dog"), ("Sky", "sky")):
        widget.labels.add_row(name, prompts)
    return widget


def segmented(widget: SegmentWidget, image: NDArray[np.uint8], **options: Any) -> Results:
    """Add an image, segment it, and give its results."""
    widget.viewer.add_image(image, **{"name": "image", "rgb": True, **options})
    widget.segment()
    idle(widget)
    current = widget.current()
    assert current is not None, widget.buttons.message.text()
    return current[0]


def brush(viewer: Viewer, layer: Labels, label: int, row: int, column: int, size: int = 20) -> None:
    """A stroke to the right with napari's brush: the mouse is pressed, moved and released over the canvas.

    Args:
        viewer: with the layer.
        layer: of a single image, not of a stack.
        label: id to paint with.
        row: of the pixel at which the stroke begins.
        column: of the same pixel.
        size: of the brush; the stroke is half as long.
    """
    from qtpy.QtCore import QEvent

    viewer.reset_view()
    viewer.layers.selection.active = layer
    layer.selected_label = label
    layer.brush_size = size
    layer.mode = "paint"
    settle()
    ends = (row, column), (row, column + size // 2)
    for kind, place, down in (
        (QEvent.Type.MouseMove, ends[0], False),
        (QEvent.Type.MouseButtonPress, ends[0], True),
        (QEvent.Type.MouseMove, ends[1], True),
        (QEvent.Type.MouseButtonRelease, ends[1], False),
    ):
        _mouse(viewer, kind, layer.data_to_world(place), down)
    layer.mode = "pan_zoom"
    assert all(np.asarray(layer.data)[place] == label for place in ends), "the brush painted elsewhere"


def press_key(viewer: Viewer, key: str, *, control: bool = False) -> None:
    """Press and release a letter while the mouse is over the canvas, perhaps together with the Ctrl key."""
    from qtpy.QtCore import QEvent, Qt
    from qtpy.QtGui import QKeyEvent

    code = getattr(Qt.Key, f"Key_{key.upper()}")
    modifier = Qt.KeyboardModifier.ControlModifier if control else Qt.KeyboardModifier.NoModifier
    for kind in (QEvent.Type.KeyPress, QEvent.Type.KeyRelease):
        _send(viewer, QKeyEvent(kind, code, modifier, key))


def _mouse(viewer: Viewer, kind: Any, place: tuple[float, ...], down: bool) -> None:
    from qtpy.QtCore import QEvent, QPointF, Qt
    from qtpy.QtGui import QMouseEvent

    canvas = _canvas(viewer)
    middle = np.array([canvas.height(), canvas.width()]) / 2
    y, x = middle + (np.array(place) - viewer.scene.camera.center[-2:]) * viewer.scene.camera.zoom
    assert 0 < x < canvas.width() and 0 < y < canvas.height(), f"{place} is out of sight"
    nothing, left = Qt.MouseButton.NoButton, Qt.MouseButton.LeftButton
    point = QPointF(float(x), float(y))
    modifier = Qt.KeyboardModifier.NoModifier
    button = nothing if kind == QEvent.Type.MouseMove else left
    everywhere = canvas.mapToGlobal(point)
    _send(viewer, QMouseEvent(kind, point, everywhere, button, left if down else nothing, modifier))
    time.sleep(_MOVE_PAUSE)


def _send(viewer: Viewer, event: Any) -> None:
    from qtpy.QtWidgets import QApplication

    QApplication.sendEvent(_canvas(viewer), event)
    settle()


def _canvas(viewer: Viewer) -> Any:
    # napari has no public way to its canvas.
    return viewer.window._qt_viewer.canvas.native
