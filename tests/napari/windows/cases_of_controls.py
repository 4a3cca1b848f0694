"""Controls: scrolling, typing, choosing, long names, small screens, saving layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.devices import available_devices
from tcl_core.export.coco import validate_coco
from tests.napari.coco_pixels import label_maps_of
from tests.napari.menu import open_from_menu
from tests.napari.steps import brush, idle, settle

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget

LONG = "a-very-long-name-of-an-image-that-no-widget-can-show-in-one-line-because-it-goes-on-and-on-and-on"


@pytest.fixture
def widget(viewer: Viewer, tiny_model_path: Path) -> SegmentWidget:
    made = open_from_menu(viewer)
    made.model.file.value = tiny_model_path
    made.model.device.value = "cpu"
    made.background.on.value = False
    for name, prompts in (("Cat", "cat, dog"), ("Sky", "sky")):
        made.labels.add_row(name, prompts)
    return made


def test_wheel_changes_only_what_has_the_focus(viewer: Viewer, widget: SegmentWidget) -> None:
    from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QComboBox, QScrollArea, QScrollBar, QTabBar

    viewer.add_image(np.zeros((8, 8), np.uint8))
    viewer.add_image(np.zeros((8, 8), np.uint8))
    for section in widget.sections.values():
        section.folded = False
    settle()
    kinds = (QAbstractSpinBox, QComboBox, QAbstractSlider, QTabBar)
    controls = [control for kind in kinds for control in widget.findChildren(kind)]
    controls = [control for control in controls if not isinstance(control, QScrollBar)]
    assert len(controls) >= 12 and {type(control) for control in controls} >= {QComboBox}
    before = [_value(control) for control in controls]
    widget.buttons.segment.setFocus()
    for control in controls:
        _wheel(control, 3)
        _wheel(control, -3)
        _wheel(control, -3)
        assert not control.hasFocus()
    assert [_value(control) for control in controls] == before
    # The page scrolls instead, and a control with the focus answers.
    viewer.window.resize(1280, 600)
    settle()
    (area,) = [area for area in widget.tabs.findChildren(QScrollArea) if area.widget().isAncestorOf(widget.labels)]
    area.verticalScrollBar().setValue(0)
    spin = widget.labels._spin(0)
    _wheel(widget.background.threshold.native, -3)
    assert area.verticalScrollBar().value() > 0
    viewer.window._qt_window.activateWindow()
    spin.setFocus()
    settle()
    if spin.hasFocus():  # an X server without a window manager may give it to nobody
        _wheel(spin, 3)
        assert spin.value() > 0


def test_typing_choosing_and_words(viewer: Viewer, widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtGui import QKeyEvent
    from qtpy.QtWidgets import QAbstractItemView, QApplication, QLineEdit, QPushButton

    # Add label opens the cell, and what is typed becomes the label's name.
    (add,) = [button for button in widget.labels.findChildren(QPushButton) if button.text() == "Add label"]
    add.click()
    assert widget.labels.table.state() == QAbstractItemView.State.EditingState
    (editor,) = widget.labels.table.viewport().findChildren(QLineEdit)
    for letter in "Tree":
        for kind in (QKeyEvent.Type.KeyPress, QKeyEvent.Type.KeyRelease):
            QApplication.sendEvent(editor, QKeyEvent(kind, 0, Qt.KeyboardModifier.NoModifier, letter))
    QApplication.sendEvent(
        editor, QKeyEvent(QKeyEvent.Type.KeyPress, Qt.Key.Key_Return, Qt.KeyboardModifier.NoModifier)
    )
    settle()
    assert [label.name for label in widget.labels.shown_labels()] == ["Cat", "Sky", "Tree"]
    widget.labels.remove_current()

    # An opened or selected image is the one to segment; results choose their image.
    first = viewer.add_image(image, name="first", rgb=True)
    assert widget.image_form.layer.value is first
    widget.segment()
    idle(widget)
    second = viewer.add_image(image[:48], name="second", rgb=True)
    assert widget.image_form.layer.value is second
    viewer.layers.selection.active = first
    assert widget.image_form.layer.value is first
    viewer.layers.selection.active = second
    viewer.layers.selection.active = viewer.layers["first labels"]
    assert widget.image_form.layer.value is first
    other = viewer.add_labels(np.zeros((4, 4), np.uint8), name="other")
    assert widget.image_form.layer.value is first and viewer.layers.selection.active is other

    # Only devices and precisions that exist are offered.
    assert tuple(widget.model.device.choices) == ("auto", *available_devices())
    assert "float16" not in widget.model.precision.choices
    words = {button.text() for button in widget.findChildren(QPushButton)} | {
        str(choice) for form in (widget.model, widget.polygons) for part in form for choice in getattr(part, "choices", ())
    }
    assert not [word for word in words if "own" in word.split() or "(in pixels)" in word]


def test_small_screen(viewer: Viewer, widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path) -> None:
    from qtpy.QtCore import QPoint, QRect

    viewer.window.resize(1280, 720)
    viewer.add_image(image, name=LONG, rgb=True)
    widget.labels.add_row(LONG, LONG)
    widget.segment()
    idle(widget)
    widget.fail(f"{'/'.join(['', *[LONG] * 3])}: cannot be written; choose another folder")
    settle()
    window = viewer.window._qt_window
    assert (window.width(), window.height()) == (1280, 720)
    assert widget.width() <= 430
    daily = [
        widget.image_form.layer.native,
        widget.labels.table,
        widget.background.threshold.native,
        widget.buttons.message,
        *(getattr(widget.buttons, name) for name in ("segment", "cancel", "accept", "undo", "export")),
    ]
    for control in daily:
        region = control.visibleRegion().boundingRect()
        assert region == QRect(QPoint(0, 0), control.size()), control
        corner = control.mapTo(window, QPoint(control.width(), control.height()))
        assert corner.x() <= 1280 and corner.y() <= 720
    # The whole message can be read: it wraps, and what is more than a few lines scrolls.
    message = widget.buttons.message
    assert message.document().size().width() <= message.viewport().width() + 1
    assert message.text() == widget.buttons.message.toPlainText() and LONG in message.text()
    assert LONG in widget.image_form.layer.native.toolTip()
    assert LONG in widget.labels.table.item(2, 1).toolTip()
    # What is rarely used is folded, and says what it is set to.
    assert [name for name, section in widget.sections.items() if section.folded] == ["channels", "model", "result"]
    assert "tiny.safetensors" in widget.sections["model"]._button.text()
    assert not widget.model.native.isVisible()
    widget.sections["model"].folded = False
    settle()
    assert widget.model.native.isVisible() and not widget.sections["channels"].folded is False


def test_save_selected_layers(
    viewer: Viewer, widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtWidgets import QFileDialog

    viewer.add_image(image, name="photo", rgb=True)
    widget.segment()
    idle(widget)
    draft, accepted = viewer.layers["photo labels"], viewer.layers["photo accepted"]
    brush(viewer, draft, 2, 30, 40)
    draft.selected_label = 2
    widget.accept()
    idle(widget)
    out = tmp_path / "saved.json"

    def choose(*arguments: Any, filter: str = "", **_: Any) -> tuple[str, str]:
        (chosen,) = [line for line in filter.split(";;") if "COCO" in line]
        return str(out), chosen

    monkeypatch.setattr(QFileDialog, "getSaveFileName", staticmethod(choose))
    viewer.layers.selection = {draft, accepted}
    viewer.window._qt_viewer._save_layers_dialog(selected=True)
    assert validate_coco(out) == []
    expected = np.where(accepted.data > 0, accepted.data, draft.data)
    assert set(np.unique(expected)) == {1, 2} and not (draft.data == 2).any()
    assert np.array_equal(label_maps_of(out)["photo.png"], expected)

    out.unlink()
    accepted.data[:] = 0
    viewer.layers.selection = {accepted}
    with pytest.raises(Exception, match="the layer 'photo accepted' has no labels; segment or paint something first"):
        viewer.window._qt_viewer._save_layers_dialog(selected=True)
    assert not out.exists()


def _value(control: Any) -> object:
    for name in ("value", "currentIndex"):
        if hasattr(control, name):
            return getattr(control, name)()
    raise AssertionError(control)


def _wheel(control: Any, notches: int) -> None:
    from qtpy.QtCore import QPoint, QPointF, Qt
    from qtpy.QtGui import QWheelEvent
    from qtpy.QtWidgets import QApplication

    middle = QPointF(control.width() / 2, control.height() / 2)
    event = QWheelEvent(
        middle,
        control.mapToGlobal(middle),
        QPoint(),
        QPoint(0, 120 * notches),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    # As the window system sends it: Qt gives a control the focus that asks for it, and passes on what is ignored.
    QApplication.sendEvent(control.window().windowHandle() or control, event) if False else QApplication.sendEvent(
        control, event
    )
