"""A stack of 25 slices from its first run to the next day, and what undo, redo and cancel do on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.napari.coco_pixels import label_maps_of
from tests.napari.steps import brush, hold, idle, press_key, segmented, settle, wait_until
from tests.network import forbid_network

if TYPE_CHECKING:
    from napari_tcl.widget import SegmentWidget

SLICES = 25


def test_25_slices_from_the_first_run_to_the_next_day(
    widget: SegmentWidget,
    image: NDArray[np.uint8],
    errors: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer, buttons = widget.viewer, widget.buttons
    movie = np.stack([np.roll(image, 5 * number, axis=1) for number in range(SLICES)])
    viewer.add_image(movie, name="movie", rgb=True)
    viewer.dims.set_point(0, 7)
    # Progress counts the whole.
    shares: list[float] = []
    show = buttons.show_progress
    monkeypatch.setattr(buttons, "show_progress", lambda text, share: (shares.append(share or 0), show(text, share)))
    widget.segment(every_slice=True)
    idle(widget)
    seen = [share for share in shares if share > 0]
    assert seen == sorted(seen) and len({round(share * SLICES) for share in seen}) > SLICES / 2 and seen[-1] > 0.9
    (results,) = widget.results
    first = results.draft.data.copy()
    assert all(labels.any() for labels in first)
    # What is said is about all slices, not about the one that is shown.
    shares_found = [f"{name} {np.mean(first == number):.1%}" for number, name in ((1, "Cat"), (2, "Sky"))]
    assert buttons.message.text() == f"25 slices segmented: {', '.join(shares_found)}"

    # A stroke in one slice, then the threshold in all.
    start = next(column for column in range(30, 130) if len(set(first[7, 30, column : column + 9])) == 1)
    stroke = (7, 30, slice(start, start + 9))
    other = 3 - int(first[7, 30, start])
    results.draft.data_setitem((np.full(9, 7), np.full(9, 30), np.arange(start, start + 9)), other)
    loaded = widget.engine.loaded
    assert loaded is not None

    def refuse(*_: object) -> None:
        raise AssertionError("the network ran")

    with monkeypatch.context() as without_network:
        forbid_network(without_network)
        without_network.setattr(loaded.model.method, "similarities", refuse)
        widget.labels.set_threshold(0, 1.0)
        idle(widget)
        only = [number for number in range(SLICES) if not (results.draft.data[number] == 1).any()]
        assert only == ([7] if other == 2 else [])
        buttons.every.setChecked(True)
        widget.labels.set_threshold(0, 0.99)
        for value in (0.2, 0.6, 1.0):
            widget.labels.set_threshold(0, value)
        idle(widget)
    moved = results.draft.data.copy()
    expected = np.full_like(first, 2)
    expected[stroke] = other
    assert np.array_equal(moved, expected)

    # Accepted in all, and taken back in one step.
    results.draft.selected_label = 2
    widget.accept()
    assert f"{np.count_nonzero(moved == 2):,} pixels accepted in 25 slices" in buttons.message.text()
    assert np.array_equal(results.accepted.data, np.where(moved == 2, 2, 0))
    widget.undo()
    assert not results.accepted.data.any() and np.array_equal(results.draft.data, moved)
    assert buttons.message.text() == "undone: the acceptance in 25 slices"
    widget.redo()
    assert np.array_equal(results.accepted.data, np.where(moved == 2, 2, 0))
    widget.undo()
    # Only slices in which something was accepted are counted.
    buttons.every.setChecked(False)
    widget.accept()
    buttons.every.setChecked(True)
    widget.accept()
    assert buttons.message.text().endswith("pixels accepted in 24 slices; later runs keep them")
    widget.accept()
    assert buttons.message.text() == "Sky has nothing to accept in these slices; click the row of another label"
    widget.undo()
    widget.undo()
    # The run too is one step, and the stroke stays.
    widget.undo()
    assert np.count_nonzero(results.draft.data) == 9 and (results.draft.data[stroke] == other).all()
    # An undone run does not come back with a threshold.
    widget.labels.set_threshold(0, 0.0)
    idle(widget)
    assert np.count_nonzero(results.draft.data) == 9
    widget.redo()
    widget.labels.set_threshold(0, 0.01)
    widget.labels.set_threshold(0, 0.0)
    idle(widget)
    first[stroke] = other
    assert np.array_equal(results.draft.data, first)
    # Ctrl+Z takes back the stroke and leaves no hole.
    viewer.layers.selection.active = results.draft
    press_key(viewer, "z", control=True)
    assert (results.draft.data[7] > 0).all() and (results.draft.data[stroke] != other).any()

    # Cancelled: it says what stays, and that is one step.
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    before = results.draft.data.copy()
    widget.labels.set_threshold(0, 0.0)
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    widget.model.refine.value = False
    with monkeypatch.context() as held:
        # Without this, a fast machine is done before it can be cancelled.
        cancelled = hold(held, loaded.model.method, "similarities", calls=6)
        widget.segment(every_slice=True)
        wait_until(lambda: _slice_told(buttons.message.text()) >= 4, "some slices are done")
        widget.cancel()
        cancelled.set()
        idle(widget)
    text = buttons.message.text()
    assert text.startswith("cancelled after ") and text.endswith("new labels; Undo takes them back")
    done = int(text.split()[2])
    assert 3 <= done < SLICES
    widget.undo()
    assert buttons.message.text() == f"undone: the run in {done} slices"
    assert np.array_equal(results.draft.data, before)

    # Exported, and opened again the next day.
    viewer.dims.set_point(0, 3)
    results.draft.selected_label = 2
    buttons.every.setChecked(False)
    widget.accept()
    assert [bool(labels.any()) for labels in results.accepted.data] == [number == 3 for number in range(SLICES)]
    widget.polygons.geometry.value = "rle"
    widget.export(tmp_path / "movie.json")
    idle(widget)
    shown = np.stack([results.annotation.combined((number,)) for number in range(SLICES)])
    exported = label_maps_of(tmp_path / "movie.json")
    assert list(exported) == [f"movie-{number:04d}.png" for number in range(SLICES)]
    assert np.array_equal(np.stack(list(exported.values())), shown)
    viewer.layers.clear()
    viewer.add_image(movie, name="movie", rgb=True)
    viewer.open(str(tmp_path / "movie.json"), plugin="tcl-annotate")
    (results,) = widget.results
    assert np.array_equal(results.annotation.draft, shown) and len(viewer.layers) == 3
    widget.segment(every_slice=True)
    idle(widget)
    assert np.array_equal(results.annotation.draft[shown > 0], shown[shown > 0])
    widget.export(tmp_path / "again.json")
    idle(widget)
    again = label_maps_of(tmp_path / "again.json")
    assert all(np.array_equal(again[name][exported[name] > 0], exported[name][exported[name] > 0]) for name in exported)
    assert errors == []


def test_strokes_and_thresholds(widget: SegmentWidget, image: NDArray[np.uint8], errors: list[str]) -> None:
    viewer = widget.viewer
    results = segmented(widget, image)
    proposed = results.draft.data.copy()
    other = 3 - int(proposed[30, 40])
    # Undo takes back the run alone.
    brush(viewer, results.draft, other, 30, 40)
    stroke = results.draft.data != proposed
    widget.labels.set_threshold(0, 1.0)
    idle(widget)
    widget.undo()
    assert np.array_equal(results.draft.data > 0, stroke)
    widget.redo()
    assert (results.draft.data > 0).all() and (results.draft.data[stroke] == other).all()
    # napari's own way to undo, whichever key or menu calls it.
    brush(viewer, results.draft, other, 80, 100)
    widget.labels.set_threshold(0, 0.0)
    idle(widget)
    viewer.layers.selection.active = results.draft
    for _ in range(2):
        press_key(viewer, "z", control=True)
    assert np.array_equal(results.draft.data, proposed)
    results.draft.redo()
    assert np.array_equal(results.draft.data != proposed, stroke)
    # The bucket is a stroke as well, which napari tells before it pours.
    results.draft.undo()
    results.draft.fill((30, 40), other)
    poured = results.draft.data.copy()
    assert not np.array_equal(poured, proposed)
    results.draft.undo()
    assert np.array_equal(results.draft.data, proposed)
    results.draft.redo()
    assert np.array_equal(results.draft.data, poured)
    results.draft.undo()
    brush(viewer, results.draft, other, 30, 40)
    # Strokes in the accepted layer, and what is below them.
    results.draft.selected_label = other
    widget.accept()
    brush(viewer, results.accepted, 0, 30, 40)
    widget.segment()
    idle(widget)
    assert not results.annotation.combined(())[stroke].any(), "what was erased comes back"
    viewer.layers.selection.active = results.accepted
    press_key(viewer, "z", control=True)
    assert (results.annotation.combined(())[stroke] == other).all()
    assert errors == []


def test_folder_with_other_labels_and_unsaved_strokes(
    widget: SegmentWidget, image: NDArray[np.uint8], tmp_path: Path, errors: list[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        Image.fromarray(np.roll(image, 16 * number, axis=1)).save(photos / f"{number}.png")
    tab, question = widget.folder, widget.question
    tab.folder.value = photos
    tab.run()
    idle(widget)
    assert tab.job is not None
    tab.open("0.png")
    results = widget.results[0]
    brush(widget.viewer, results.draft, 3 - int(results.draft.data[30, 40]), 30, 40)
    changed = results.draft.data.copy()
    tab.open("1.png")
    assert "0.png are not saved" in question.text.text() and question.answers[-1] == "Stay"
    question.answer("Stay")
    assert widget.image_form.layer.value.name == "0.png" and np.array_equal(results.draft.data, changed)
    tab.export(tmp_path / "early.json")
    assert "not saved" in errors.pop() and not (tmp_path / "early.json").exists()
    tab.open("1.png")
    question.answer("Save, open 1.png")
    assert np.array_equal(tab.job.load("0.png").label_map, changed)
    assert widget.image_form.layer.value.name == "1.png" and not question.isVisible()
    # Nothing changed, so nothing is asked.
    tab.open("0.png")
    assert widget.image_form.layer.value.name == "0.png"
    assert np.array_equal(widget.results[0].draft.data, changed)
    # Paint that the job has no label for is neither saved as something else nor lost.
    results = widget.results[0]
    brush(widget.viewer, results.draft, 9, 60, 40)
    assert not tab.save()
    assert "label 9 is not among the labels of this folder's job (Cat, Sky)" in errors.pop()
    results.draft.undo()
    assert tab.save()
    widget.labels.table.setCurrentCell(2, 1)
    widget.labels.remove_current()

    # Another label: both ways go on.
    widget.labels.add_row("Tree", "tree")
    tab.run()
    idle(widget)
    assert "other labels (without Tree)" in errors.pop() and "other labels (without Tree)" in question.text.text()
    assert question.answers == ["Use the old labels", "New mask folder", "Cancel"]
    question.answer("New mask folder")
    idle(widget)
    assert tab.job.work.name == "photos.masks-2" and tab.job.vocabulary.names == ("Cat", "Sky", "Tree")
    assert [state.state for state in tab.job.states()] == ["labeled", "labeled"]
    # Each is found again by its labels.
    tab.run()
    idle(widget)
    assert tab.job.work.name == "photos.masks-2"
    widget.labels.add_row("Dog", "dog")
    tab.run()
    idle(widget)
    assert "without Dog" in errors.pop()
    question.answer("Use the old labels")
    idle(widget)
    assert widget.vocabulary().names == ("Cat", "Sky", "Tree") and tab.job.work.name == "photos.masks-2"
    widget.labels.table.setCurrentCell(2, 1)
    widget.labels.remove_current()
    tab.run()
    idle(widget)
    assert tab.job.work.name == "photos.masks" and tab.job.state("0.png").state == "corrected"
    settle()
    assert errors == []


def _slice_told(text: str) -> int:
    """Which slice a message of progress is about, 0 for none."""
    words = text.split()
    return int(words[1]) if text.startswith("slice ") else 0
