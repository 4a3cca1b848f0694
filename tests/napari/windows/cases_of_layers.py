"""Layers as scientists have them: transforms, units, channels, rolled axes, other names, other pixels, other days."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tests.napari.coco_pixels import label_maps_of
from tests.napari.steps import brush, close_dock, dock, idle, press_key, segmented, settle

if TYPE_CHECKING:
    from napari import Viewer
    from napari.layers import Image, Labels

    from napari_tcl.widget import SegmentWidget


def raw(layer: Labels) -> NDArray[Any]:
    """What napari draws of a layer."""
    return np.asarray(layer._slice.image.raw)


def off(image: Image, labels: Any, places: list[tuple[float, ...]]) -> float:
    """How far labels lie from the image's pixels in the world."""
    return max(float(np.abs(image.data_to_world(p) - np.asarray(labels.data_to_world(p))).max()) for p in places)


def test_labels_lie_on_the_image(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    viewer = widget.viewer
    widget.polygons.scores.value = widget.polygons.polygons.value = True
    corners = [(0.0, 0.0), (95.0, 143.0), (50.0, 20.0)]
    for number, options in enumerate(
        (
            {"rotate": 30},
            {"shear": [0.3]},
            {"affine": np.array([[0.9, 0.2, 50], [-0.2, 0.9, 10], [0, 0, 1]])},
            {"scale": (2, 0.5), "translate": (7, -3), "rotate": 10, "shear": [0.1], "affine": np.diag([3, 2, 1])},
            {"scale": (100, 100), "units": ("nm", "nm"), "axis_labels": ("y", "x")},
        )
    ):
        viewer.layers.clear()
        results = segmented(widget, image, name=f"image {number}", **options)
        layer = results.image
        ours = [results.draft, results.accepted, results.polygons, *results.score_layers.values()]
        assert len(ours) == 5
        for each in ours:
            assert off(layer, each, corners) < 1e-9
            assert (each.units, each.axis_labels) == (layer.units, layer.axis_labels)
        # Also when the image is moved later.
        layer.translate, layer.rotate = (11, 12), 45
        assert all(off(layer, each, corners) < 1e-9 for each in ours[:3])
    # Mixed units would make napari draw another layer elsewhere.
    assert {str(unit) for layer in viewer.layers for unit in layer.units} == {"nanometer"}
    assert errors == []
    viewer.layers.clear()

    # Time and channels: both sliders mean the same for the image and its labels.
    widget.polygons.scores.value = widget.polygons.polygons.value = False
    movie = np.stack([np.moveaxis(np.roll(image, 30 * number, 1), -1, 0) for number in range(4)])
    layer = viewer.add_image(movie, name="movie", scale=(2, 5, 1, 1), translate=(1, 100, 0, 0))
    widget.image_form.axis.value, widget.image_form.channels.value = "1", "0,1,2"
    widget.segment(every_slice=True)
    idle(widget)
    results = widget.results[0]
    assert results.draft.data.shape == (4, 1, 96, 144)
    assert len({results.draft.data[number].tobytes() for number in range(4)}) == 4
    for time, channel in ((0, 0), (3, 0), (3, 2), (2, 1)):
        viewer.dims.set_point((0, 1), (1 + 2 * time, 100 + 5 * channel))
        settle()
        assert np.array_equal(raw(results.draft), results.draft.data[time, 0]), (time, channel)
        current = widget.current()
        assert current is not None and current[1] == (time,)
    results.draft.data_setitem((np.array([2]), np.array([0]), np.array([5]), np.array([6])), 2)
    # Score maps and polygons belong to their slice.
    widget.polygons.scores.value = widget.polygons.polygons.value = True
    viewer.dims.set_point((0, 1), (7, 105))
    widget.segment()
    idle(widget)
    (score, _), polygons = results.score_layers.values(), results.polygons
    assert score.data.shape == (1, 1, 96, 144) and raw(score).shape == (96, 144)
    assert off(layer, results.draft, [(3, 1, 5, 6)]) > 1, "the one label map lies in the middle of the channels"
    assert np.allclose(score.data_to_world((0, 0, 5, 6)), results.draft.data_to_world((3, 0, 5, 6)))
    assert polygons is not None and {tuple(vertices[0, :2]) for vertices in polygons.data} == {(3, 0)}
    settle()
    assert polygons._data_view._displayed.any(), "polygons are hidden on their own slice"
    # All files call the slices the same.
    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "widget.json")
    idle(widget)
    names = [f"movie-{number:04d}.png" for number in range(4)]
    exported = label_maps_of(tmp_path / "widget.json")
    assert list(exported) == names
    results.draft.save(str(tmp_path / "layer.json"))
    saved = label_maps_of(tmp_path / "layer.json")
    assert list(saved) == names
    assert all(np.array_equal(saved[name], exported[name]) for name in names)
    assert errors == []


def test_axes_that_are_rolled_or_transposed(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    viewer = widget.viewer
    stack = np.stack([np.roll(image[..., 0], 9 * number, 0) for number in range(5)])
    viewer.add_image(stack, name="stack")
    viewer.dims.set_point(0, 3)
    viewer.dims.roll()
    widget.segment()
    assert "the viewer shows axes" in errors.pop() and "roll the axes" in widget.buttons.message.text()
    assert len(viewer.layers) == 1
    viewer.dims.roll()
    viewer.dims.roll()
    viewer.dims.transpose()
    widget.segment()
    idle(widget)
    results = widget.results[0]
    (labeled,) = results.labeled_slices()
    settle()
    assert np.array_equal(raw(results.draft), results.draft.data[labeled].T) and raw(results.draft).any()
    assert np.array_equal(raw(results.image), stack[labeled].T)
    # A volume is no slice, but all slices can be segmented.
    viewer.dims.ndisplay = 3
    widget.segment()
    assert "in 3D" in errors.pop()
    widget.accept()
    assert "in 3D" in errors.pop()
    widget.segment(every_slice=True)
    idle(widget)
    assert len(results.labeled_slices()) == 5
    viewer.dims.ndisplay = 2

    # Channels that come last: napari shows them as columns at first.
    viewer.layers.clear()
    viewer.dims.order = (0, 1, 2)
    viewer.add_image(np.dstack([image, image[..., :2]]), name="five", rgb=False)
    widget.image_form.axis.value, widget.image_form.channels.value = "-1", "0,1,2"
    widget.segment()
    assert "roll the axes" in errors.pop()
    viewer.dims.order = (2, 0, 1)
    widget.segment()
    idle(widget)
    results = widget.results[0]
    assert results.draft.data.shape == (96, 144, 1)
    for channel in range(5):
        viewer.dims.set_point(2, channel)
        settle()
        assert np.array_equal(raw(results.draft), results.draft.data[..., 0]) and raw(results.draft).any()
    assert errors == []


def test_channels_in_separate_layers(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    viewer, form = widget.viewer, widget.image_form
    widget.sections["channels"].folded = False
    expected = segmented(widget, image).draft.data.copy()
    viewer.layers.clear()
    # napari's default for channels, here with the last of them darker.
    deep = np.moveaxis(image, -1, 0).astype(np.uint16) * np.array([16, 4, 2], np.uint16)[:, None, None]
    limits = [(0, 255 * 16), (0, 255 * 4), (0, 255 * 2)]
    viewer.add_image(deep, channel_axis=0, name=["red", "green", "blue"], contrast_limits=limits)
    viewer.add_image(image[:50], name="other", rgb=True)
    assert form.layer.value.name == "other" and not form.second.visible
    viewer.layers.selection.active = viewer.layers["red"]
    assert form.layer.value.name == "red" and form.second.visible
    assert [layer.name for layer in form.second.choices if layer is not None] == ["green", "blue"]
    form.second.value, form.third.value = viewer.layers["green"], viewer.layers["blue"]
    widget.segment()
    idle(widget)
    results = widget.results[0]
    assert np.array_equal(results.draft.data, expected)
    # A click on a channel does not take it for another image.
    viewer.layers.selection.active = viewer.layers["blue"]
    assert form.layer.value.name == "red"
    viewer.layers.remove("blue")
    assert form.third.value is None and form.second.value.name == "green"
    form.axis.value = "0"
    widget.segment()
    assert "in one layer or in several" in errors.pop()
    assert errors == []


def test_names_and_choices_follow_the_layers(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    viewer, form = widget.viewer, widget.image_form
    first = segmented(widget, image, name="first")
    second = viewer.add_image(image[::-1], name="second", rgb=True)
    assert form.layer.value is second
    viewer.layers.selection.active = first.draft
    assert form.layer.value is first.image
    first.image.name = "renamed"
    assert form.layer.value is first.image
    shown = [form.layer._widget._qwidget.itemText(row) for row in range(2)]
    assert sorted(shown) == ["renamed", "second"]
    assert (first.draft.name, first.accepted.name) == ("renamed labels", "renamed accepted")
    first.draft.name = "my own"
    first.image.name = "again"
    assert (first.draft.name, first.accepted.name) == ("my own", "again accepted")
    widget.polygons.geometry.value = "rle"
    widget.polygons.polygons.value = True
    idle(widget)
    widget.export(tmp_path / "widget.json")
    idle(widget)
    first.draft.save(str(tmp_path / "labels.json"))
    assert first.polygons is not None
    first.polygons.save(str(tmp_path / "polygons.json"))
    names = [list(label_maps_of(tmp_path / f"{name}.json")) for name in ("widget", "labels")]
    assert names == [["again.png"]] * 2
    assert '"file_name": "again.png"' in (tmp_path / "polygons.json").read_text()
    # Polygons show what is exported; nobody can edit them for nothing.
    assert not first.polygons.editable
    viewer.dims.ndisplay = 3
    viewer.dims.ndisplay = 2
    assert not first.polygons.editable

    # The image is another one now.
    before = first.draft.data.copy()
    first.image.data = image[::-1].copy()
    assert "was replaced" in widget.question.text.text() and widget.question.isVisible()
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert np.array_equal(first.draft.data, before), "a threshold labels the image before"
    assert "press Segment" in widget.buttons.message.text()
    widget.question.answer("Clear the labels")
    assert not first.draft.data.any() and not widget.question.isVisible()
    widget.undo()
    assert np.array_equal(first.draft.data, before)
    widget.labels.set_threshold(0, 0.0)
    widget.segment()
    idle(widget)
    assert first.draft.data.any() and not np.array_equal(first.draft.data, before)
    first.image.data = image[:50].copy()
    assert "another size" in widget.buttons.message.text()
    widget.segment()
    idle(widget)
    assert [results.draft.data.shape for results in widget.results] == [(96, 144), (50, 144)]
    # While work goes on, too.
    second.data = image.copy()
    viewer.layers.selection.active = second
    widget.segment()
    second.data = image[:, ::-1].copy()
    idle(widget)
    assert "was replaced, so its run was cancelled" in widget.buttons.message.text()
    assert all(results.image is not second for results in widget.results)
    assert errors == []


def test_paint_with_a_new_number_is_seen_named_and_exported(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path
) -> None:
    viewer = widget.viewer
    results = segmented(widget, image)
    viewer.layers.selection.active = results.draft
    press_key(viewer, "m")
    assert results.draft.selected_label == 3
    brush(viewer, results.draft, 3, 30, 40)
    assert widget.labels.ids == (1, 2, 3) and "label 3 was added" in widget.buttons.message.text()
    assert results.draft.selected_label == 3 and results.draft.colormap.map(np.array([3]))[0, 3] == 1
    # The model is not asked for it, in its run and at a threshold.
    widget.segment()
    idle(widget)
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    assert (results.draft.data[30, 40:50] == 3).all() and not (results.draft.data == 1).any()
    # Nor is anything else lost that nobody sees.
    results.accepted.data[80, 100:110] = 77
    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "a.json")
    idle(widget)
    found = label_maps_of(tmp_path / "a.json")["image.png"]
    assert widget.labels.ids == (1, 2, 3, 77)
    assert (found[30, 40:50] == 3).all() and (found[80, 100:110] == 4).all()
    # A row of another session may bear the name that the next one would get, and is not asked for either.
    widget.labels.add_row("label 5")
    (name,) = widget.labels.add_painted([5])
    assert name == "label 6" and widget.searched()[1] == (1, 2)
    for _ in range(2):
        widget.labels.remove_current()
    # With a name it is a label like any other.
    widget.labels.table.item(2, 1).setText("Tree")
    widget.segment()
    idle(widget)
    assert widget.searched()[1] == (1, 2, 3)
    assert errors == []


def test_numbers_in_saved_layers_mean_the_same_the_next_day(
    widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str], tmp_path: Path, tiny_model_path: Path
) -> None:
    viewer = widget.viewer
    widget.labels.add_row("Tree")
    widget.labels.table.setCurrentCell(1, 1)
    widget.labels.remove_current()
    assert widget.buttons.message.text() == "removed the label 'Sky'; Undo brings it back"
    assert widget.labels.ids == (1, 3)
    results = segmented(widget, image)
    results.draft.data[:] = 3
    results.draft.data[:5] = 9
    results.draft.save(str(tmp_path / "image labels.tif"))
    viewer.layers.clear()
    widget, _ = next_day(viewer, widget, tiny_model_path)
    assert widget.labels.ids == (1, 3)
    # The image comes last, so it lies on top.
    viewer.open(str(tmp_path / "image labels.tif"), layer_type="labels")
    viewer.add_image(image, name="image", rgb=True)
    assert "table: 3 is 'Tree', 9 is a new row." in widget.question.text.text()
    widget.question.answer("Continue")
    settle()
    assert [layer.name for layer in viewer.layers] == ["image", "image labels", "image accepted"]
    names = {label.id: label.name for label in widget.labels.shown_labels()}
    assert names == {1: "Cat", 3: "Tree", 9: "label 9"}
    shown = viewer.screenshot(canvas_only=True, flash=False)
    viewer.layers["image labels"].visible = False
    settle()
    assert not np.array_equal(viewer.screenshot(canvas_only=True, flash=False), shown)
    assert errors == []


def next_day(viewer: Viewer, widget: SegmentWidget, model: Path, forget: bool = False) -> tuple[SegmentWidget, str]:
    """Close the dock and open it again, perhaps with an empty table; also returns what it says at first."""
    from napari_tcl.user_settings import settings_path

    close_dock(widget)
    if forget:
        settings_path().unlink()
    again = dock(viewer)
    again.model.file.value, again.model.device.value = model, "cpu"
    said = again.buttons.message.text()
    again.background.on.value = False
    again.polygons.geometry.value = "rle"
    return again, said


def test_work_goes_on_after_a_pause(
    widget: SegmentWidget,
    image: NDArray[np.uint8],
    errors: list[str],
    tmp_path: Path,
    tiny_model_path: Path,
) -> None:
    viewer = widget.viewer
    results = segmented(widget, image)
    proposed = results.draft.data.copy()
    brush(viewer, results.draft, 3 - int(proposed[30, 40]), 30, 40)
    results.draft.selected_label = 2
    widget.accept()
    draft, accepted = results.draft.data.copy(), results.accepted.data.copy()
    shown = results.annotation.combined(())

    # The dock was closed and opened: strokes, acceptance and undo are as before.
    widget, said = next_day(viewer, widget, tiny_model_path)
    assert "continuing" in said
    assert [label.name for label in widget.labels.shown_labels()] == ["Cat", "Sky"]
    assert widget.labels.shown_labels()[0].prompts == "cat, dog"
    assert len(viewer.layers) == 3
    widget.segment()
    idle(widget)
    assert len(viewer.layers) == 3
    (results,) = widget.results
    assert np.array_equal(results.annotation.combined(()), shown)
    widget.undo()
    widget.undo()
    assert not results.accepted.data.any() and results.draft.data.any()
    widget.redo()
    widget.redo()
    assert np.array_equal(results.draft.data, draft) and np.array_equal(results.accepted.data, accepted)

    # So does the removal of a label: its row comes back as it was, with the number that its pixels have.
    rows = widget.labels.rows()
    widget.labels.table.setCurrentCell(0, 1)
    widget.labels.remove_current()
    widget.question.answer("Remove")
    widget, _ = next_day(viewer, widget, tiny_model_path)
    (results,) = widget.results
    assert [row.name for row in widget.labels.rows()] == ["Sky"] and not (results.annotation.combined(()) == 1).any()
    widget.labels.add_row("Ball")
    widget.undo()
    assert widget.labels.rows()[:2] == rows and widget.labels.rows()[2].number == 3
    assert np.array_equal(results.draft.data, draft) and np.array_equal(results.accepted.data, accepted)
    widget.labels.table.setCurrentCell(2, 1)
    widget.labels.remove_current()

    # Saved and opened again the next day, from napari's own files and from COCO.
    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "image.json")
    idle(widget)
    results.draft.save(str(tmp_path / "image labels.tif"))
    results.accepted.save(str(tmp_path / "image accepted.tif"))
    viewer.layers.clear()
    assert not widget.results
    viewer.add_image(image, name="image", rgb=True)
    for name in ("image labels.tif", "image accepted.tif"):
        viewer.open(str(tmp_path / name), layer_type="labels")
    assert "image labels" in widget.question.text.text()
    widget.question.answer("Continue")
    (results,) = widget.results
    assert np.array_equal(results.annotation.combined(()), shown)
    widget.segment()
    idle(widget)
    assert np.array_equal(results.annotation.combined(())[shown > 0], shown[shown > 0])
    assert len(viewer.layers) == 3

    # COCO, into a table that numbers the labels otherwise; first the file, then the image.
    viewer.layers.clear()
    widget, _ = next_day(viewer, widget, tiny_model_path, forget=True)
    for name in ("Tree", "Sky"):
        widget.labels.add_row(name)
    viewer.open(str(tmp_path / "image.json"), plugin="tcl-annotate")
    assert [layer.name for layer in viewer.layers] == ["image labels"]
    viewer.add_image(image, name="image", rgb=True)
    (results,) = widget.results
    names = [label.name for label in widget.labels.shown_labels()]
    assert names == ["Tree", "Sky", "Cat"]
    expected = np.array([0, widget.labels.ids[2], 2])[shown]
    assert np.array_equal(results.annotation.combined(()), expected)
    widget.labels.table.setCurrentCell(0, 1)
    widget.labels.remove_current()
    widget.segment()
    idle(widget)
    assert np.array_equal(results.annotation.combined(()), expected)
    results.draft.selected_label = 2
    widget.accept()
    widget.export(tmp_path / "again.json")
    idle(widget)
    (again,) = label_maps_of(tmp_path / "again.json").values()
    assert np.array_equal(again, np.array([0, 2, 1])[shown])

    # Layers that somebody deletes: what was accepted stays, what was deleted comes back with Undo.
    draft, accepted = results.draft.data.copy(), results.accepted.data.copy()
    viewer.layers.remove(results.draft)
    widget.export(tmp_path / "accepted.json")
    idle(widget)
    (kept,) = label_maps_of(tmp_path / "accepted.json").values()
    assert np.array_equal(kept > 0, accepted > 0)
    widget.segment()
    idle(widget)
    assert np.array_equal(results.accepted.data, accepted) and not results.draft.data[accepted > 0].any()
    assert len(viewer.layers) == 3
    widget.undo()
    widget.undo()
    assert np.array_equal(results.draft.data, draft)
    # A copy of a layer is nobody's result.
    viewer.layers.selection = {results.draft}
    from napari.layers._layer_actions import _duplicate_layer

    _duplicate_layer(viewer.layers)
    assert len(widget.results) == 1 and len(viewer.layers) == 4
    assert errors == []
