"""The widget at work on one image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.export.coco import validate_coco
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.specks import without_specks
from tcl_core.vocabulary import Vocabulary
from tests.napari.coco_pixels import label_maps_of
from tests.napari.steps import brush, idle, press_key, segmented, settle
from tests.network import forbid_network

if TYPE_CHECKING:
    from napari_tcl.widget import SegmentWidget


def test_result_is_that_of_the_library(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    results = segmented(widget, image)
    loaded = widget.engine.loaded
    assert isinstance(loaded, Segmenter)
    vocabulary = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"], background=False)
    expected = without_specks(loaded.segment_image(image, vocabulary), loaded.model, "auto").label_map
    assert np.array_equal(results.draft.data, expected)
    assert len(np.unique(results.draft.data)) == 2
    assert results.draft.colormap.map(1)[:3] == pytest.approx(np.array(widget.labels.shown_labels()[0].color) / 255)
    assert "label: Cat" in str(results.draft.get_status(tuple(np.argwhere(expected == 1)[0])))


def test_all_regions_are_kept_where_no_area_is_too_small(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    widget.polygons.min_area.value = "0"
    results = segmented(widget, image)
    loaded = widget.engine.loaded
    assert isinstance(loaded, Segmenter)
    vocabulary = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"], background=False)
    assert np.array_equal(results.draft.data, loaded.segment_image(image, vocabulary).label_map)


def test_options_of_the_method(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    """They change the result, cost no new model and no new features, and a wrong one leaves everything as it was."""
    results = segmented(widget, image)
    before, loaded = results.draft.data.copy(), widget.engine.loaded
    assert isinstance(loaded, Segmenter)
    widget.model.method_options.value = "unit_points=4, unit_threshold = -0.5,"
    widget.segment()
    idle(widget)
    other = widget.engine.loaded
    assert isinstance(other, Segmenter) and other.model is loaded.model and not errors
    assert len(loaded.cache or ()) == 1
    assert other.method.options.model_dump().items() >= {"unit_points": 4, "unit_threshold": -0.5}.items()
    vocabulary = Vocabulary.from_options(["Cat=cat,dog", "Sky=sky"], background=False)
    expected = without_specks(other.segment_image(image, vocabulary), other.model, "auto").label_map
    assert np.array_equal(results.draft.data, expected) and not np.array_equal(expected, before)
    wrong = {"unit_points": "NAME=VALUE", "units=3": "no such option", "unit_points=-1": "greater than or equal to 0"}
    for number, (text, message) in enumerate(wrong.items(), start=1):
        widget.model.method_options.value = text
        widget.segment()
        idle(widget)
        assert len(errors) == number and message in errors[-1]
        assert np.array_equal(results.draft.data, expected)
    widget.model.method_options.value = ""
    widget.segment()
    idle(widget)
    assert np.array_equal(results.draft.data, before)


def test_one_label_of_a_training_free_method_does_not_cover_the_image(
    widget: SegmentWidget, image: NDArray[np.uint8]
) -> None:
    """A softmax over one name is 1 everywhere; names of the background compete, and hidden labels too."""
    while widget.labels.table.rowCount() > 1:
        widget.labels.table.setCurrentCell(1, 1)
        widget.labels.remove_current()
    widget.model.method.value = "naclip"
    widget.background.on.value = True
    results = segmented(widget, image)
    loaded = widget.engine.loaded
    assert isinstance(loaded, Segmenter) and loaded.method.name == "naclip"
    vocabulary = widget.vocabulary()
    assert len(vocabulary.labels) == 1 and loaded.background_names(vocabulary).names
    expected = without_specks(loaded.segment_image(image, vocabulary), loaded.model, "auto").label_map
    assert np.array_equal(results.draft.data, expected) and not expected.all()
    # Hiding a label changes what is seen, not what competes.
    widget.labels.add_row("Sky", "sky")
    widget.segment()
    idle(widget)
    both = results.draft.data.copy()
    widget.labels._check(1).setChecked(False)
    widget.segment()
    idle(widget)
    assert np.array_equal(results.draft.data, both)


def test_corrected_accepted_and_exported(
    widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path, errors: list[str]
) -> None:
    results = segmented(widget, image)
    brush(widget.viewer, results.draft, 2, 30, 40)
    widget.labels.table.setCurrentCell(1, 1)
    widget.accept()
    accepted = results.accepted.data.copy()
    assert (accepted[30, 40:50] == 2).all()
    widget.labels.set_threshold(0, 0.5)
    widget.labels.set_threshold(1, 1.0)
    idle(widget)
    assert np.array_equal(results.accepted.data, accepted)
    assert not results.draft.data[accepted > 0].any()
    drawn: list[object] = []
    results.draft.events.set_data.connect(drawn.append)
    taken = np.argwhere(accepted[20:-20, 20:-20] > 0)[0] + 20
    with pytest.raises(AssertionError, match="the brush painted elsewhere"):
        brush(widget.viewer, results.draft, 1, int(taken[0]), int(taken[1]), size=2)
    # Paint on what is accepted is gone, on the screen too.
    assert not results.draft.data[accepted > 0].any() and drawn
    # A stroke of ten pixels that begins and ends where nothing is accepted.
    free = np.argwhere((accepted[10:-10, 10:-20] == 0) & (accepted[10:-10, 20:-10] == 0)) + 10
    row, column = free[len(free) // 2]
    brush(widget.viewer, results.draft, 1, int(row), int(column))
    assert (results.draft.data[accepted == 0] == 1).any() and not results.draft.data[accepted > 0].any()

    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "labels.json")
    idle(widget)
    assert validate_coco(tmp_path / "labels.json") == []
    shown = np.where(accepted > 0, accepted, results.draft.data)
    assert np.array_equal(label_maps_of(tmp_path / "labels.json")["image.png"], shown)
    assert errors == []


def test_competing_names_are_those_of_the_field(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    widget.background.on.value = True
    widget.background.threshold.value = 0.0
    found = {}
    for text, names in (("auto", None), ("none", ()), ("tree, ball", ("tree", "ball")), ("auto", None)):
        widget.background.names.value = text
        results = segmented(widget, image)
        loaded = widget.engine.loaded
        assert isinstance(loaded, Segmenter)
        vocabulary = Vocabulary.from_options(
            ["Cat=cat,dog", "Sky=sky"], background_threshold=0.0, background_names=names
        )
        assert widget.vocabulary().background_names == names
        found_map = loaded.segment_image(image, vocabulary)
        expected = without_specks(found_map, loaded.model, "auto").label_map
        assert np.mean(results.draft.data != expected) < 1e-3
        found[text] = results.draft.data.copy()
    assert (found["none"] > 0).all() and (found["auto"] == 0).any()


def test_slider_starts_at_the_threshold_of_the_model(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    background = widget.background
    background.on.value = True
    background.threshold.value = 0.75
    background.own.value = False
    results = segmented(widget, image)
    assert widget.engine.loaded is not None
    default = widget.engine.loaded.settings()["background_threshold"]
    assert background.threshold.value == pytest.approx(default)
    assert background.own.value is False and widget.vocabulary().background_threshold is None
    before = results.draft.data.copy()
    background.own.value = True
    idle(widget)
    assert np.array_equal(results.draft.data, before)
    # A threshold of one's own stays.
    background.threshold.value = 0.75
    widget.segment()
    idle(widget)
    assert background.threshold.value == 0.75 and background.own.value is True


def test_corrections_survive_thresholds_and_runs(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    results = segmented(widget, image)
    other = 3 - int(results.draft.data[30, 40])
    brush(widget.viewer, results.draft, other, 30, 40)
    widget.background.threshold.value = 0.9
    widget.background.on.value = True
    idle(widget)
    assert results.draft.data[30, 40] == other
    widget.segment()
    idle(widget)
    assert results.draft.data[30, 40] == other


def test_undo_takes_back_strokes_runs_and_acceptance(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    results = segmented(widget, image)
    proposed = results.draft.data.copy()
    brush(widget.viewer, results.draft, 3 - int(proposed[30, 40]), 30, 40)
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


def test_accept_key(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    results = segmented(widget, image)
    results.draft.selected_label = 1
    count = int((results.draft.data == 1).sum())
    press_key(widget.viewer, "c")
    assert int((results.accepted.data == 1).sum()) == count > 0


def test_threshold_does_not_run_the_network(
    widget: SegmentWidget, image: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = segmented(widget, image)
    before = results.draft.data.copy()
    loaded = widget.engine.loaded
    assert loaded is not None
    viewer = widget.viewer
    # No polygons and thumbnails that would draw the whole layer anew.
    monkeypatch.setattr(widget.overlays, "follow", lambda: None)
    thumbnail = results.draft.thumbnail.copy()

    def drawn_right() -> bool:
        """Whether the canvas shows what it shows when all is drawn anew."""
        seen = viewer.screenshot(flash=False)
        results.draft.refresh()
        return np.array_equal(seen, viewer.screenshot(flash=False))

    def refuse(*_: object) -> None:
        raise AssertionError("the network ran")

    forbid_network(monkeypatch)
    monkeypatch.setattr(loaded.model.method, "similarities", refuse)
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert (results.draft.data[before == 1] == 2).all()
    assert np.array_equal(results.draft.thumbnail, thumbnail)
    seen = viewer.screenshot(flash=False)
    results.finish_drawing()
    assert not np.array_equal(results.draft.thumbnail, thumbnail)
    assert np.array_equal(seen, viewer.screenshot(flash=False)) and drawn_right()
    widget.labels.set_threshold(0, 0.0)
    idle(widget)
    assert np.array_equal(results.draft.data, before) and drawn_right()
    # Where napari shows something else than the plain plane, or strokes were made meanwhile, it is right as well.
    brush(viewer, results.draft, 2, 30, 40)
    for change in (lambda: setattr(results.draft, "contour", 3), viewer.dims.transpose):
        change()
        for threshold in (1.0, 0.0):
            widget.labels.set_threshold(0, threshold)
            idle(widget)
            assert drawn_right()
    results.draft.visible = False
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    results.draft.visible = True
    assert drawn_right() and not (results.draft.data == 1).any()


def test_removed_and_added_labels_keep_their_pixels(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    results = segmented(widget, image)
    sky = results.draft.data == 2
    widget.labels.table.setCurrentCell(0, 1)
    widget.labels.remove_current()
    widget.question.answer("Remove")
    assert np.array_equal(results.draft.data, np.where(sky, 2, 0))
    widget.labels.add_row("Tree", "tree")
    assert widget.labels.ids == (2, 3)
    widget.segment()
    idle(widget)
    assert set(np.unique(results.draft.data)) <= {2, 3}


def test_label_file_of_the_command_line(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(
        "labels:\n  - Cat\n  - {name: Tree, prompts: [tree, sky], threshold: 0.25, color: '#102030'}\n"
        "background: {threshold: 0.75, names: ['sky, blue', car]}\ntemplates: simple\n"
    )
    segmented(widget, image)
    widget.labels.load(path)
    # The pixels of a label that is gone are asked about.
    widget.question.answer("Remove")
    assert widget.labels.ids == (1, 3)
    vocabulary = widget.vocabulary()
    given = Vocabulary.from_file(path)
    assert [(label.name, label.prompts, label.threshold) for label in vocabulary.labels] == [
        (label.name, label.prompts, label.threshold) for label in given.labels
    ]
    assert vocabulary.colors == given.colors
    assert (vocabulary.background_threshold, vocabulary.templates) == (0.75, "simple")
    assert vocabulary.background_names == ("sky, blue", "car")
    widget.vocabulary()
    widget.labels.save(tmp_path / "again.yaml")
    assert Vocabulary.from_file(tmp_path / "again.yaml") == vocabulary

    path.write_text("labels: [cat, cat]\n")
    widget.labels.load(path)
    assert "labels.yaml" in errors[0]
    assert widget.vocabulary() == vocabulary


def test_polygons_and_scores(widget: SegmentWidget, image: NDArray[np.uint8]) -> None:
    widget.polygons.polygons.value = True
    widget.polygons.scores.value = True
    results = segmented(widget, image)
    idle(widget)
    names = [layer.name for layer in widget.viewer.layers]
    assert {"image polygons", "score: Cat", "score: Sky"} <= set(names)
    polygons = widget.viewer.layers["image polygons"]
    assert set(polygons.features["label"]) == {"Cat", "Sky"}
    text = widget.buttons.vertices.text()
    assert text.endswith(f"vertices in {len(polygons.data)} polygons")
    assert (widget.polygons.word.value, widget.polygons.tolerance.value) == ("easy-to-edit", 5)
    widget.polygons.word.value = "fine"
    assert widget.polygons.tolerance.value == 0.5
    widget.polygons.tolerance.value = 3
    assert widget.polygons.word.value == "custom"
    widget.polygons.tolerance.value = 0
    assert widget.polygons.word.value == "exact"
    idle(widget)
    count = [int(line.split(" ")[0].replace(",", "")) for line in (text, widget.buttons.vertices.text())]
    assert 0 < count[0] < count[1]
    # Drawn by napari itself, the exact outlines are the labels.
    drawn = widget.viewer.layers["image polygons"].to_labels(results.draft.data.shape) > 0
    assert np.mean(drawn == (results.draft.data > 0)) > 0.95
    # What somebody deletes does not return with the next run, and what goes together with its image does.
    layers = widget.viewer.layers
    layers.remove(polygons)
    for name in ("score: Cat", "score: Sky"):
        layers.remove(name)
    settle()
    assert not widget.polygons.polygons.value and not widget.polygons.scores.value
    widget.segment()
    idle(widget)
    assert len(layers) == 3
    widget.polygons.polygons.value = widget.polygons.scores.value = True
    idle(widget)
    assert len(layers) == 6
    layers.clear()
    settle()
    assert widget.polygons.polygons.value and widget.polygons.scores.value
    segmented(widget, image)
    idle(widget)
    assert len(layers) == 6
    widget.polygons.polygons.value = widget.polygons.scores.value = False
    idle(widget)
    assert len(layers) == 3


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
