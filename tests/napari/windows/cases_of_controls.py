"""Controls: scrolling, typing, choosing, long names, small screens, saving layers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.backends import available_backends
from tcl_core.devices import available_devices, select_device
from tcl_core.export.coco import validate_coco
from tests.napari.coco_pixels import label_maps_of
from tests.napari.steps import brush, idle, register_plugin, segmented, settle

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget

_REPOSITORY = Path(__file__).resolve().parents[3]
LONG = "a-very-long-name-of-an-image-that-no-widget-can-show-in-one-line-because-it-goes-on-and-on-and-on"


def test_menu_paths_of_the_documents_exist(viewer: Viewer) -> None:
    from qtpy.QtWidgets import QDockWidget

    register_plugin()
    menus = {
        "File": viewer.window.file_menu,
        "Layers": viewer.window.layers_menu,
        "Plugins": viewer.window.plugins_menu,
    }
    pages = [_REPOSITORY / "README.md", *sorted((_REPOSITORY / "docs").glob("*.md"))]
    written = {
        path for page in pages for path in re.findall(r"\*\*(\w+ > [^*]+)\*\*", page.read_text(encoding="utf-8"))
    }
    paths = [path.split(" > ") for path in sorted(written) if path.split(" > ")[0] in menus]
    assert ["Plugins", "TCL Annotate", "Segment from text"] in paths and ["Layers", "Segment"] in paths
    for first, *rest in paths:
        menu, entry = menus[first], None
        for name in rest:
            # Some menus are filled when they are opened.
            menu.aboutToShow.emit()
            entries = {_entry_name(action.text()): action for action in menu.actions()}
            assert name in entries, f"{first} > {' > '.join(rest)}: {sorted(entries)}"
            entry, menu = entries[name], entries[name].menu()
        if entry is not None and rest[-1] == "Segment from text":
            entry.trigger()
    settle()
    # The entry itself opens the widget.
    titles = [dock.windowTitle() for dock in viewer.window._qt_window.findChildren(QDockWidget)]
    assert any(title.startswith("Segment from text") for title in titles)


def _entry_name(text: str) -> str:
    """A menu entry as documents name it, without its mnemonic, its dots and its plugin."""
    return text.replace("&", "").removesuffix("...").removesuffix(" (TCL Annotate)")


def test_wheel_changes_only_what_has_the_focus(viewer: Viewer, widget: SegmentWidget) -> None:
    from qtpy.QtCore import Qt
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
    turned = 0
    for control in controls:
        for notches in (3, -3, -3):
            _wheel(control, notches)
        # With Qt's policy of these controls the wheel gives the focus by itself.
        assert not control.hasFocus() and control.focusPolicy() != Qt.FocusPolicy.WheelFocus
        turned += control.isVisible()
    assert turned >= 12
    assert [_value(control) for control in controls] == before
    # The page scrolls instead, and a control that has the focus answers.
    (area,) = [area for area in widget.tabs.findChildren(QScrollArea) if area.widget().isAncestorOf(widget.labels)]
    bar = area.verticalScrollBar()
    bar.setValue(0)
    spin = widget.labels._spin(0)
    assert bar.maximum() > 0
    _wheel(widget.background.threshold.native, -3)
    assert bar.value() > 0
    viewer.window._qt_window.activateWindow()
    spin.setFocus()
    settle()
    assert spin.hasFocus()
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
    editor = widget.labels.table.focusWidget()
    assert isinstance(editor, QLineEdit)
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
    assert tuple(widget.model.backend.choices) == ("auto", *available_backends(select_device()))
    words = {button.text() for button in widget.findChildren(QPushButton)} | {
        str(choice)
        for form in (widget.model, widget.polygons)
        for part in form
        for choice in getattr(part, "choices", ())
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
    assert LONG in _tooltip(widget.image_form.layer.native)
    assert LONG in widget.labels.table.item(2, 1).toolTip()
    # What is rarely used is folded, and says what it is set to.
    assert [name for name, section in widget.sections.items() if section.folded] == ["channels", "model", "result"]
    assert "tiny.safetensors" in widget.sections["model"]._button.text()
    assert not widget.model.native.isVisible()
    widget.sections["model"].folded = False
    settle()
    assert widget.model.native.isVisible() and widget.sections["channels"].folded


def test_what_is_saved_is_said_and_found_again(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    """A name without a suffix gets one, for the dialogs that open files show no others."""
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication, QFileDialog, QLineEdit, QPushButton

    settle()
    # Lines that fit have no arrows to scroll with.
    for message in (widget.buttons.message, widget.buttons.vertices):
        assert not message.verticalScrollBar().isVisible()
    buttons = {button.text(): button for button in widget.findChildren(QPushButton)}
    # No file is asked for where there is nothing to write.
    buttons["Export COCO..."].click()
    buttons["Export folder..."].click()
    assert [error.split(";")[0] for error in errors] == ["there is nothing to export", "no folder is labeled yet"]
    errors.clear()
    segmented(widget, image)
    for name, text, said in (
        ("mine.yaml", "Save...", "mine.yaml: 2 labels saved"),
        ("image.json", "Export COCO...", "image.json: 1 image written"),
    ):

        def fill(stem: str = Path(name).stem) -> None:
            (dialog,) = [each for each in QApplication.topLevelWidgets() if isinstance(each, QFileDialog)]
            dialog.findChild(QLineEdit).setText(str(tmp_path / stem))
            dialog.accept()
            dialog.deleteLater()

        QTimer.singleShot(200, fill)
        buttons[text].click()
        idle(widget)
        assert (tmp_path / name).is_file() and widget.buttons.message.text() == said
    assert errors == []


def test_removed_labels(viewer: Viewer, widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path) -> None:
    viewer.add_image(image, name="photo", rgb=True)
    widget.segment()
    idle(widget)
    draft, accepted = viewer.layers["photo labels"], viewer.layers["photo accepted"]
    brush(viewer, draft, 1, 30, 40)
    widget.labels.table.cellClicked.emit(1, 1)
    widget.accept()
    idle(widget)
    widget.labels.set_threshold(0, 0.01)
    widget.labels._check(0).setChecked(False)
    idle(widget)
    before = draft.data.copy(), accepted.data.copy()
    rows = widget.labels.rows()
    assert set(np.unique(draft.data)) == {0, 1} and set(np.unique(accepted.data)) == {0, 2}

    # Asked about, and kept if the answer is no.
    widget.labels.table.setCurrentCell(0, 1)
    widget.labels.remove_current()
    pixels = np.count_nonzero(before[0] == 1)
    question = f"Remove the label 'Cat' and {pixels:,} pixels in the image 'photo'? Undo brings them back."
    assert widget.question.isVisible() and widget.question.text.text() == question
    widget.question.answer("Cancel")
    assert widget.labels.rows() == rows and np.array_equal(draft.data, before[0])
    assert not widget.question.isVisible()

    # Removed, and brought back with row, id, threshold, color and pixels; older steps can be undone then.
    for _ in range(2):
        widget.labels.table.setCurrentCell(0, 1)
        widget.labels.remove_current()
        widget.question.answer("Remove")
    assert widget.labels.rows() == [] and not draft.data.any() and not accepted.data.any()
    widget.undo()
    assert [row.name for row in widget.labels.rows()] == ["Sky"] and np.array_equal(accepted.data, before[1])
    widget.undo()
    assert widget.labels.rows() == rows
    assert np.array_equal(draft.data, before[0]) and np.array_equal(accepted.data, before[1])
    assert widget.buttons.message.text().startswith("undone: the removal of label 'Cat'")
    # Redo removes rows as well, and a row that paint with a removed number got gives way to the one that comes back.
    widget.redo()
    assert [row.name for row in widget.labels.rows()] == ["Sky"] and not (draft.data == 1).any()
    widget.redo()
    assert widget.labels.rows() == [] and not accepted.data.any()
    brush(viewer, draft, 1, 60, 20)
    assert [row.name for row in widget.labels.rows()] == ["label 1"]
    widget.undo()
    widget.undo()
    assert widget.labels.rows() == rows and (draft.data[before[0] == 1] == 1).all()
    draft.undo()
    assert np.array_equal(draft.data, before[0]) and np.array_equal(accepted.data, before[1])
    # The first label is hidden.
    assert draft.colormap.map(1)[3] == 0
    assert np.allclose(draft.colormap.map(2)[:3] * 255, rows[1].color)
    idle(widget)
    widget.undo()
    assert not accepted.data.any()

    # A label without pixels is removed without a question.
    widget.labels.add_row("Tree", "tree")
    widget.labels.remove_current()
    assert not widget.question.isVisible()
    for action, names in ((widget.undo, "Cat Sky Tree"), (widget.redo, "Cat Sky"), (widget.undo, "Cat Sky Tree")):
        action()
        assert " ".join(row.name for row in widget.labels.rows()) == names

    # Loading other labels asks as well, and what is removed comes back in all images.
    second = viewer.add_image(image[:48], name="second", rgb=True)
    widget.segment()
    idle(widget)
    other = viewer.layers["second labels"]
    path = tmp_path / "labels.yaml"
    path.write_text("labels: [Sky, Ball]\n")
    widget.labels.load(path)
    assert "Remove the labels 'Cat', 'Tree' and" in widget.question.text.text()
    assert widget.question.text.text().endswith("pixels in 2 images? Undo brings them back.")
    widget.question.answer("Cancel")
    assert [row.name for row in widget.labels.rows()] == ["Cat", "Sky", "Tree"]
    shown = draft.data.copy(), other.data.copy()
    widget.labels.load(path)
    widget.question.answer("Remove")
    assert [row.name for row in widget.labels.rows()] == ["Sky", "Ball"]
    assert not (draft.data == 1).any() and not (other.data == 1).any()
    assert widget.image_form.layer.value is second
    for _ in range(2):
        widget.undo()
        assert [row.name for row in widget.labels.rows()] == ["Cat", "Sky", "Tree", "Ball"]
        assert widget.labels.rows()[0] == rows[0]
        assert np.array_equal(draft.data, shown[0]) and np.array_equal(other.data, shown[1])
        widget.redo()
        assert [row.name for row in widget.labels.rows()] == ["Sky", "Ball"]
        assert not (draft.data == 1).any() and not (other.data == 1).any()


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
    """Turn the wheel over the middle of a control; like Qt, offer what is ignored to what is around it."""
    from qtpy.QtCore import QPoint, QPointF, Qt
    from qtpy.QtGui import QWheelEvent
    from qtpy.QtWidgets import QApplication, QScrollArea

    area = control
    while area is not None and not isinstance(area, QScrollArea):
        area = area.parentWidget()
    if area is not None:
        area.ensureWidgetVisible(control)
    middle = QPointF(control.width() / 2, control.height() / 2)
    place = control.mapToGlobal(middle)
    receiver = control.childAt(middle.toPoint()) or control
    while receiver is not None:
        event = QWheelEvent(
            receiver.mapFromGlobal(place),
            place,
            QPoint(),
            QPoint(0, 120 * notches),
            Qt.MouseButton.NoButton,
            Qt.KeyboardModifier.NoModifier,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(receiver, event)
        if event.isAccepted() or receiver.isWindow():
            break
        receiver = receiver.parentWidget()


def _tooltip(control: Any) -> str:
    """What is shown when the mouse rests on a control."""
    from qtpy.QtCore import QEvent, QPoint
    from qtpy.QtGui import QHelpEvent
    from qtpy.QtWidgets import QApplication

    place = QPoint(2, 2)
    QApplication.sendEvent(control, QHelpEvent(QEvent.Type.ToolTip, place, control.mapToGlobal(place)))
    return str(control.toolTip())
