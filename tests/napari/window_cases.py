"""The widget in a real window, with the embedded model and a small random one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tcl_core.coco import validate_coco
from tcl_core.vocabulary import Vocabulary
from tests.napari.coco_pixels import label_maps_of

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LABELS = (("Cat", "cat, dog"), ("Sky", "sky"))


@pytest.fixture
def widget(viewer: Viewer, tiny_model_path: Path) -> SegmentWidget:
    """The docked widget with two labels and the small model."""
    from tests.napari.steps import dock

    made = dock(viewer)
    made.model.file.value = tiny_model_path
    made.model.device.value = "cpu"
    made.background.on.value = False
    for name, prompts in LABELS:
        made.labels.add_row(name, prompts)
    return made


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """Messages that the viewer shows as errors."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    shown: list[str] = []

    def note(event: Any) -> None:
        if event.severity >= NotificationSeverity.ERROR:
            shown.append(str(event.message))

    notification_manager.notification_ready.connect(note)
    yield shown
    notification_manager.notification_ready.disconnect(note)


def segmented(widget: SegmentWidget, picture: NDArray[np.uint8], **options: Any) -> Any:
    """Add a picture, segment it, and give its results."""
    from tests.napari.steps import idle

    widget.viewer.add_image(picture, **{"name": "picture", "rgb": True, **options})
    widget.segment()
    idle(widget)
    current = widget.current()
    assert current is not None, widget.buttons.message.text()
    return current[0]


def test_result_is_that_of_the_library(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    from tcl_core.segmenter import Segmenter

    results = segmented(widget, picture)
    loaded = widget.engine.loaded
    assert isinstance(loaded, Segmenter)
    vocabulary = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"], background=False)
    expected = loaded.segment_image(picture, vocabulary).label_map
    assert np.array_equal(results.draft.data, expected)
    assert len(np.unique(results.draft.data)) == 2
    assert results.draft.colormap.map(1)[:3] == pytest.approx(np.array(widget.labels.shown_labels()[0].colour) / 255)
    assert "label: Cat" in str(results.draft.get_status(tuple(np.argwhere(expected == 1)[0])))


def test_corrected_accepted_and_exported(
    widget: SegmentWidget, picture: NDArray[np.uint8], tmp_path: Path, errors: list[str]
) -> None:
    from tests.napari.steps import brush, idle

    results = segmented(widget, picture)
    brush(results.draft, 2, 30, 40)
    widget.labels.table.setCurrentCell(1, 1)
    widget.accept()
    accepted = results.accepted.data.copy()
    assert (accepted[30, 40:50] == 2).all()
    widget.labels.set_threshold(0, 0.5)
    widget.labels.set_threshold(1, 1.0)
    idle(widget)
    assert np.array_equal(results.accepted.data, accepted)
    assert not results.draft.data[accepted > 0].any()
    brush(results.draft, 1, 80, 100)

    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "labels.json")
    idle(widget)
    assert validate_coco(tmp_path / "labels.json") == []
    shown = np.where(accepted > 0, accepted, results.draft.data)
    assert np.array_equal(label_maps_of(tmp_path / "labels.json")["picture.png"], shown)
    assert errors == []


def test_corrections_survive_thresholds_and_runs(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    from tests.napari.steps import brush, idle

    results = segmented(widget, picture)
    other = 3 - int(results.draft.data[30, 40])
    brush(results.draft, other, 30, 40)
    widget.background.threshold.value = 0.9
    widget.background.on.value = True
    idle(widget)
    assert results.draft.data[30, 40] == other
    widget.segment()
    idle(widget)
    assert results.draft.data[30, 40] == other


def test_undo_takes_back_strokes_runs_and_acceptance(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    from tests.napari.steps import brush

    results = segmented(widget, picture)
    proposed = results.draft.data.copy()
    brush(results.draft, 3 - int(proposed[30, 40]), 30, 40)
    while not np.array_equal(results.draft.data, proposed):
        before = results.draft.data.copy()
        results.draft.undo()
        assert not np.array_equal(results.draft.data, before), "a stroke cannot be taken back"
    results.draft.selected_label = 1
    widget.accept()
    assert results.accepted.data.any()
    widget.undo()
    assert not results.accepted.data.any()
    assert np.array_equal(results.draft.data, proposed)
    widget.undo()
    assert not results.draft.data.any()


def test_accept_key(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    results = segmented(widget, picture)
    results.draft.selected_label = 1
    count = int((results.draft.data == 1).sum())
    (action,) = [action for key, action in results.draft.keymap.items() if str(key) == "C"]
    action(results.draft)
    assert int((results.accepted.data == 1).sum()) == count > 0


def test_threshold_does_not_run_the_network(
    widget: SegmentWidget, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.napari.steps import idle

    results = segmented(widget, picture)
    before = results.draft.data.copy()
    loaded = widget.engine.loaded
    assert loaded is not None

    def refuse(*_: object) -> None:
        raise AssertionError("the network ran")

    monkeypatch.setattr(loaded.model.method, "embed_windows", refuse)
    monkeypatch.setattr(loaded.model.method, "score_maps", refuse)
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert (results.draft.data[before == 1] == 2).all()
    widget.labels.set_threshold(0, 0.0)
    idle(widget)
    assert np.array_equal(results.draft.data, before)


def test_removed_and_added_labels_keep_their_pixels(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    from tests.napari.steps import idle

    results = segmented(widget, picture)
    sky = results.draft.data == 2
    widget.labels.table.setCurrentCell(0, 1)
    widget.labels.remove_current()
    assert np.array_equal(results.draft.data, np.where(sky, 2, 0))
    widget.labels.add_row("Tree", "tree")
    assert widget.labels.ids == (2, 3)
    widget.segment()
    idle(widget)
    assert set(np.unique(results.draft.data)) <= {2, 3}


@pytest.mark.parametrize(
    ("name", "prompts", "message"),
    [
        ("", "cat", "row 3: name: the label is empty"),
        ("Cat", "dog", "'Cat' is already"),
        ("Tree", "cat,,dog", "the prompt is empty"),
        ("Giraffe", "", "does not know the word 'giraffe'"),
        ("background", "", "is not a label"),
    ],
)
def test_labels_that_cannot_be_used(
    widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str], name: str, prompts: str, message: str
) -> None:
    from tests.napari.steps import idle

    results = segmented(widget, picture)
    before = results.draft.data.copy()
    widget.labels.add_row(name, prompts)
    widget.segment()
    idle(widget)
    assert len(errors) == 1 and message in errors[0]
    assert widget.buttons.message.text() == errors[0]
    assert np.array_equal(results.draft.data, before)
    assert len(widget.viewer.layers) == 3
    assert widget.buttons.segment.isEnabled() and not widget.buttons.cancel.isEnabled()


def test_no_label(viewer: Viewer, picture: NDArray[np.uint8], errors: list[str]) -> None:
    from tests.napari.steps import dock

    viewer.add_image(picture)
    dock(viewer).segment()
    assert "there is no label" in errors[0]
    assert len(viewer.layers) == 1


def test_no_picture(widget: SegmentWidget, errors: list[str], tmp_path: Path) -> None:
    widget.segment()
    widget.accept()
    widget.export(tmp_path / "labels.json")
    assert "there is no picture" in errors[0]
    assert "nothing to accept" in errors[1]
    assert "nothing to export" in errors[2]
    assert not widget.viewer.layers and not list(tmp_path.iterdir())


def test_picture_removed_meanwhile(widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str]) -> None:
    from tests.napari.steps import idle

    layer = widget.viewer.add_image(picture, name="gone", rgb=True)
    widget.viewer.add_labels(np.zeros((4, 4), np.uint8), name="other")
    widget.segment()
    widget.viewer.layers.remove(layer)
    idle(widget)
    assert len(errors) == 1 and "'gone' was removed" in errors[0]
    assert [layer.name for layer in widget.viewer.layers] == ["other"]
    assert widget.buttons.segment.isEnabled()


def test_labels_layer_removed_meanwhile(widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str]) -> None:
    from tests.napari.steps import idle

    results = segmented(widget, picture)
    expected = results.draft.data.copy()
    widget.segment()
    widget.viewer.layers.remove(results.draft)
    idle(widget)
    current = widget.current()
    assert current is not None and np.array_equal(current[0].draft.data, expected)
    assert errors == []


def test_model_that_cannot_be_loaded(
    widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    from tests.napari.steps import idle

    results = segmented(widget, picture)
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


@pytest.mark.parametrize("kind", ["missing", "a file", "read-only"])
def test_export_folder_that_cannot_be_used(
    widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str], tmp_path: Path, kind: str
) -> None:
    from tests.napari.steps import idle

    results = segmented(widget, picture)
    before = results.draft.data.copy()
    folder = tmp_path / "folder"
    if kind == "a file":
        folder.write_text("")
    elif kind == "read-only":
        folder.mkdir(mode=0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
    widget.export(folder / "labels.json")
    idle(widget)
    assert len(errors) == 1 and str(folder) in errors[0]
    assert np.array_equal(results.draft.data, before)


def test_cancel_leaves_the_layers(widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str]) -> None:
    from tests.napari.steps import idle

    widget.viewer.add_image(picture, rgb=True)
    widget.segment()
    widget.cancel()
    idle(widget)
    assert len(widget.viewer.layers) == 1
    assert "cancelled" in widget.buttons.message.text()
    widget.segment()
    idle(widget)
    assert len(widget.viewer.layers) == 3
    assert errors == []


def test_label_file_of_the_command_line(
    widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(
        "labels:\n  - Cat\n  - {name: Tree, prompts: [tree, sky], threshold: 0.25, colour: '#102030'}\n"
        "background: 0.75\ntemplates: simple\n"
    )
    segmented(widget, picture)
    widget.labels.load(path)
    assert widget.labels.ids == (1, 3)
    vocabulary = widget.vocabulary()
    given = Vocabulary.from_file(path)
    assert [(label.name, label.prompts, label.threshold) for label in vocabulary.labels] == [
        (label.name, label.prompts, label.threshold) for label in given.labels
    ]
    assert vocabulary.colours == given.colours
    assert (vocabulary.background_threshold, vocabulary.templates) == (0.75, "simple")
    widget.vocabulary()
    widget.labels.save(tmp_path / "again.yaml")
    assert Vocabulary.from_file(tmp_path / "again.yaml") == vocabulary

    path.write_text("labels: [cat, cat]\n")
    widget.labels.load(path)
    assert "labels.yaml" in errors[0]
    assert widget.vocabulary() == vocabulary


def test_stack_slice_by_slice(widget: SegmentWidget, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    from tests.napari.steps import idle

    stack = np.stack([picture, np.roll(picture, 40, axis=1), picture[::-1]])
    results = segmented(widget, stack)
    assert results.draft.data.shape == stack.shape[:-1]
    shown = widget.viewer.dims.current_step[0]
    assert [bool(results.draft.data[index].any()) for index in range(3)] == [index == shown for index in range(3)]
    widget.segment(every_slice=True)
    idle(widget)
    assert all(results.draft.data[index].any() for index in range(3))
    assert np.array_equal(results.draft.data[0, :, :100], results.draft.data[0, :, :100])
    widget.viewer.dims.set_current_step(0, 2)
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert not (results.draft.data[2] == 1).any()
    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "labels.json")
    idle(widget)
    maps = label_maps_of(tmp_path / "labels.json")
    assert list(maps) == [f"picture-{index:04d}.png" for index in range(3)]
    assert all(np.array_equal(found, results.draft.data[index]) for index, found in enumerate(maps.values()))


def test_16_bit_channels_and_scale(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    channels = np.moveaxis(picture, -1, 0)[::-1].astype(np.uint16) * 16
    widget.picture.axis.value = "0"
    widget.picture.channels.value = "2,1,0"
    results = segmented(widget, channels, rgb=False, contrast_limits=(0, 255 * 16), scale=(1, 0.5, 0.5))
    assert widget.engine.loaded is not None
    vocabulary = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"], background=False)
    expected = widget.engine.loaded.segment_image(picture, vocabulary).label_map
    assert np.array_equal(results.draft.data, expected)
    assert tuple(results.draft.scale) == (0.5, 0.5)


def test_channels_that_do_not_exist(widget: SegmentWidget, picture: NDArray[np.uint8], errors: list[str]) -> None:
    widget.viewer.add_image(picture[..., 0], name="grey")
    widget.picture.axis.value = "0"
    widget.segment()
    widget.picture.axis.value = "none"
    widget.viewer.add_image(np.moveaxis(picture, -1, 0), name="channels")
    widget.picture.layer.value = widget.viewer.layers["channels"]
    widget.picture.axis.value = "0"
    for channels in ("0,7", "red"):
        widget.picture.channels.value = channels
        widget.segment()
    assert ["no two axes" in errors[0], "no channel 7" in errors[1], "'red'" in errors[2]] == [True] * 3
    assert len(widget.viewer.layers) == 2


def test_polygons_and_scores(widget: SegmentWidget, picture: NDArray[np.uint8]) -> None:
    from tests.napari.steps import idle

    widget.polygons.polygons.value = True
    widget.polygons.scores.value = True
    results = segmented(widget, picture)
    idle(widget)
    names = [layer.name for layer in widget.viewer.layers]
    assert {"picture polygons", "score: Cat", "score: Sky"} <= set(names)
    polygons = widget.viewer.layers["picture polygons"]
    assert set(polygons.features["label"]) == {"Cat", "Sky"}
    text = widget.buttons.vertices.text()
    assert text.endswith(f"vertices in {len(polygons.data)} polygons")
    widget.polygons.detail.value = 0
    idle(widget)
    count = [int(line.split(" ")[0].replace(",", "")) for line in (text, widget.buttons.vertices.text())]
    assert 0 < count[0] < count[1]
    # Drawn by napari itself, the exact outlines are the labels.
    drawn = widget.viewer.layers["picture polygons"].to_labels(results.draft.data.shape) > 0
    assert np.mean(drawn == (results.draft.data > 0)) > 0.95
    widget.polygons.polygons.value = widget.polygons.scores.value = False
    idle(widget)
    assert len(widget.viewer.layers) == 3


def test_every_control_has_a_tooltip(widget: SegmentWidget) -> None:
    from qtpy.QtWidgets import QAbstractButton, QAbstractSlider, QAbstractSpinBox, QComboBox, QLineEdit

    kinds = (QAbstractButton, QAbstractSlider, QAbstractSpinBox, QComboBox, QLineEdit)
    controls = [control for kind in kinds for control in widget.findChildren(kind)]
    own = [control for control in controls if not _belongs_to_qt(control)]
    assert len(own) > 20
    assert [type(control).__name__ for control in own if not _tooltip(control)] == []


def _belongs_to_qt(control: Any) -> bool:
    """Parts that Qt makes itself: scroll bars, arrows of tabs, the corner of a table, editors inside other controls."""
    names = ("ScrollBar", "QToolButton", "QTableCornerButton", "CornerButton")
    return any(name in control.metaObject().className() for name in names) or control.objectName().startswith("qt_")


def _tooltip(control: Any) -> str:
    while control is not None and not control.toolTip():
        control = control.parentWidget()
    return "" if control is None else str(control.toolTip())


def test_folder_from_begin_to_end(
    widget: SegmentWidget, picture: NDArray[np.uint8], tmp_path: Path, errors: list[str]
) -> None:
    from tests.napari.steps import brush, idle

    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.roll(picture, 16 * number, axis=1)).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    tab = widget.folder
    tab.folder.value = photos
    tab.run()
    idle(widget)
    assert tab.job is not None
    assert [state.state for state in tab.job.states()] == ["labelled", "labelled", "labelled", "failed"]
    assert widget.buttons.message.text().startswith("3 of 4 pictures are labelled, 1 failed")
    assert [tab.pictures.item(row).text()[0] for row in range(4)] == ["○", "○", "○", "✕"]

    tab.open("0.png")
    results = widget.current()[0]  # type: ignore[index]
    assert np.array_equal(results.draft.data, tab.job.load("0.png").label_map)
    brush(results.draft, 1, 30, 40)
    brush(results.draft, 2, 60, 40)
    corrected = results.draft.data.copy()
    tab.save_and_next()
    assert [layer.name for layer in widget.viewer.layers] == ["1.png", "1.png labels", "1.png accepted"]
    assert [tab.pictures.item(row).text()[0] for row in range(4)] == ["●", "○", "○", "✕"]

    widget.polygons.geometry.value = "rle"
    tab.export(tmp_path / "labels.json")
    idle(widget)
    assert np.array_equal(label_maps_of(tmp_path / "labels.json")["0.png"], corrected)
    assert errors == []
    tab.run()
    idle(widget)
    assert [state.state for state in tab.job.states()][:2] == ["corrected", "labelled"]


def test_folder_mistakes(widget: SegmentWidget, tmp_path: Path, errors: list[str]) -> None:
    from tests.napari.steps import idle

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
    parts = ["there is no job", "no picture of the folder is open", "there is no job", "no such folder", "no pictures"]
    assert [part in error for part, error in zip(parts, errors, strict=True)] == [True] * 5
