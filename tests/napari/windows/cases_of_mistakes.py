"""What is said about mistakes, and that the layers stay as they were."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.segmentation.segmenter import Segmenter
from tests.napari.steps import PATIENCE, brush, dock, idle, press_key, segmented, wait_until

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget
    from napari_tcl.widget.tasks import Reporter

WRONG_LABELS = (
    ("", "cat", "row 3: name: the label is empty"),
    ("Cat", "dog", "row 3: the label 'Cat' is already in row 1; rename or remove one of them"),
    ("Tree", "cat,,dog", "the prompt is empty"),
    ("Giraffe", "", "does not know the word 'giraffe'"),
    ("background", "", "row 3: 'background' stands for pixels without a label; remove the row and turn on Background"),
)


def test_labels_that_cannot_be_used(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    results = segmented(widget, image)
    before = results.draft.data.copy()
    for number, (name, prompts, message) in enumerate(WRONG_LABELS, start=1):
        widget.labels.add_row(name, prompts)
        widget.segment()
        idle(widget)
        assert len(errors) == number and message in errors[-1]
        assert widget.buttons.message.text() == errors[-1]
        assert np.array_equal(results.draft.data, before)
        assert len(widget.viewer.layers) == 3
        assert widget.buttons.segment.isEnabled() and not widget.buttons.cancel.isEnabled()
        widget.labels.remove_current()


def test_an_error_stays_until_something_is_changed(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path, tiny_model_path: Path
) -> None:
    message = widget.buttons.message
    widget.export(tmp_path / "labels.json")
    assert message.text() == errors[-1]
    widget.viewer.add_image(image, rgb=True)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    widget.model.file.value = tmp_path / "bad.safetensors"
    assert message.text() == ""
    widget.segment()
    idle(widget)
    assert "bad.safetensors" in message.text()
    widget.polygons.native.setFocus()
    assert "bad.safetensors" in message.text()
    widget.model.file.value = tiny_model_path
    assert message.text() == ""
    widget.segment()
    idle(widget)
    found = message.text()
    widget.labels.add_row("Tree", "")
    # What was found is no error.
    assert found and message.text() == found


def test_no_label(viewer: Viewer, image: NDArray[np.uint8], errors: list[str]) -> None:
    viewer.add_image(image)
    dock(viewer).segment()
    assert "there are no labels" in errors[0]
    assert len(viewer.layers) == 1


def test_no_image(widget: SegmentWidget, errors: list[str], tmp_path: Path) -> None:
    widget.segment()
    widget.accept()
    widget.export(tmp_path / "labels.json")
    assert "no image is open" in errors[0]
    assert "nothing to accept" in errors[1]
    assert "nothing to export" in errors[2]
    assert not widget.viewer.layers and not list(tmp_path.iterdir())


def test_image_removed_meanwhile(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    layer = widget.viewer.add_image(image, name="gone", rgb=True)
    widget.viewer.add_labels(np.zeros((4, 4), np.uint8), name="other")
    widget.segment()
    widget.viewer.layers.remove(layer)
    idle(widget)
    assert len(errors) == 1 and "'gone' was removed" in errors[0]
    assert [layer.name for layer in widget.viewer.layers] == ["other"]
    assert widget.buttons.segment.isEnabled()


def test_labels_layer_removed_meanwhile(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    results = segmented(widget, image)
    expected = results.draft.data.copy()
    widget.segment()
    widget.viewer.layers.remove(results.draft)
    idle(widget)
    current = widget.current()
    assert current is not None and np.array_equal(current[0].draft.data, expected)
    assert errors == []


def test_model_that_cannot_be_loaded(
    widget: SegmentWidget,
    image: NDArray[np.uint8],
    errors: list[str],
    tmp_path: Path,
    tiny_model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = segmented(widget, image)
    before = results.draft.data.copy()
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    widget.model.file.value = tmp_path / "bad.safetensors"
    widget.segment()
    idle(widget)
    assert len(errors) == 1 and "bad.safetensors" in errors[0]
    assert np.array_equal(results.draft.data, before)
    # What was found with the model before can still be worked on.
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert not (results.draft.data == 1).any()
    # An error ends the progress bar, and everything can be clicked again.
    buttons = widget.buttons
    widget.model.file.value = tiny_model_path
    monkeypatch.setattr(Segmenter, "encode_batch", _full)
    widget.viewer.add_image(image[::-1], name="other", rgb=True)
    widget.segment()
    idle(widget)
    assert "not enough memory" in errors[-1]
    # An empty bar, without "0%".
    assert (buttons.progress.maximum(), buttons.progress.text()) == (100, "")
    assert buttons.segment.isEnabled() and not buttons.cancel.isEnabled()


def test_export_folder_that_cannot_be_used(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    results = segmented(widget, image)
    before = results.draft.data.copy()
    file, read_only = tmp_path / "file", tmp_path / "read-only"
    file.write_text("")
    read_only.mkdir(mode=0o500)
    if os.access(read_only, os.W_OK):
        # The administrator may write everywhere but there.
        read_only = Path("/proc")
    for number, folder in enumerate((tmp_path / "missing", file, read_only), start=1):
        widget.export(folder / "labels.json")
        idle(widget)
        assert len(errors) == number and str(folder) in errors[-1]
        assert "internal error" not in errors[-1]
        assert np.array_equal(results.draft.data, before)
        assert len(widget.viewer.layers) == 3


def test_cancel_leaves_the_layers(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    widget.viewer.add_image(image, rgb=True)
    widget.segment()
    widget.cancel()
    idle(widget)
    assert len(widget.viewer.layers) == 1
    assert "cancelled" in widget.buttons.message.text()
    widget.segment()
    idle(widget)
    assert len(widget.viewer.layers) == 3
    assert errors == []


def test_channels_that_do_not_exist(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    widget.viewer.add_image(image[..., 0], name="gray")
    widget.image_form.axis.value = "0"
    widget.segment()
    widget.image_form.axis.value = "none"
    widget.viewer.add_image(np.moveaxis(image, -1, 0), name="channels")
    widget.image_form.layer.value = widget.viewer.layers["channels"]
    widget.image_form.axis.value = "0"
    for channels in ("0,7", "red"):
        widget.image_form.channels.value = channels
        widget.segment()
    assert ["fewer than two axes" in errors[0], "no channel 7" in errors[1], "'red'" in errors[2]] == [True] * 3
    assert len(widget.viewer.layers) == 2


def test_folder_mistakes(widget: SegmentWidget, tmp_path: Path, errors: list[str]) -> None:
    tab = widget.folder
    tab.open("a.png")
    assert not tab.save()
    tab.export(tmp_path / "labels.json")
    tab.folder.value = tmp_path / "missing"
    tab.run()
    (tmp_path / "empty").mkdir()
    tab.folder.value = tmp_path / "empty"
    tab.run()
    idle(widget)
    parts = [
        "no folder is labeled",
        "no image of the folder is open",
        "no folder is labeled",
        "does not exist",
        "no images",
    ]
    assert [part in error for part, error in zip(parts, errors, strict=True)] == [True] * 5


def test_widget_that_is_gone_while_work_goes_on(
    viewer: Viewer, widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]
) -> None:
    from qtpy.QtCore import QCoreApplication, QEvent

    results = segmented(widget, image)
    widget.overlays.follow()
    assert widget.overlays.busy, "polygons are pending"
    threads = threading.active_count()
    reached, go_on = threading.Event(), threading.Event()
    heard: list[object] = []

    def work(reporter: Reporter) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)
        reporter.tell("nobody hears this")
        heard.append("the work went on")

    widget.start(work, heard.append, heard.append)
    assert reached.wait(PATIENCE)
    # What closing the window does to all that is in it.
    viewer.window.remove_dock_widget(widget)
    widget.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    go_on.set()
    wait_until(lambda: threading.active_count() <= threads, "the thread has ended")
    brush(viewer, results.draft, 1, 30, 40)
    press_key(viewer, "c")
    viewer.add_image(image, rgb=True)
    assert not results.accepted.data.any()
    assert heard == errors == []


def _full(*_: object) -> None:
    raise MemoryError
