from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_tcl.annotation import Annotation

SHAPE = (4, 5)
MAPS = st.lists(st.integers(0, 3), min_size=20, max_size=20).map(lambda v: np.array(v, np.uint16).reshape(SHAPE))


def empty(stack: tuple[int, ...] = ()) -> Annotation:
    return Annotation(np.zeros((*stack, *SHAPE), np.uint16), np.zeros((*stack, *SHAPE), np.uint16))


@given(first=MAPS, second=MAPS, brush=MAPS, where=st.lists(st.booleans(), min_size=20, max_size=20))
def test_corrections_survive_the_next_run(
    first: np.ndarray, second: np.ndarray, brush: np.ndarray, where: list[bool]
) -> None:
    note = empty()
    note.propose((), first)
    stroke = np.array(where).reshape(SHAPE) & (brush != first)
    note.draft[stroke] = brush[stroke]
    note.propose((), second)
    assert np.array_equal(note.draft, np.where(stroke, brush, second))
    assert np.array_equal(note.by_hand(()), stroke)


def test_paint_on_an_accepted_region_goes_when_it_is_noticed() -> None:
    note = empty()
    region = np.full(SHAPE, 2, np.uint16)
    note.propose((), region)
    note.accept((), [2])
    note.draft[0, 0] = 1
    assert note.stroke([()]) and not note.draft.any()
    assert not note.stroke([()])
    note.draft[0, 0] = 1
    # Nothing that the model says is new, so nothing else is drawn.
    assert note.accept((), [1]) == 0 and note.propose((), region) is None
    assert not note.draft.any() and (note.accepted == 2).all()


@given(first=MAPS, second=MAPS, brush=MAPS)
def test_accepted_regions_are_never_overwritten(first: np.ndarray, second: np.ndarray, brush: np.ndarray) -> None:
    note = empty()
    note.propose((), first)
    assert note.accept((), [2]) == np.count_nonzero(first == 2)
    note.draft[...] = brush
    note.accept((), [1])
    note.propose((), second)
    assert (note.accepted[first == 2] == 2).all()
    assert (note.combined(())[first == 2] == 2).all()
    assert not (note.draft[note.accepted > 0]).any()


def test_what_was_painted_counts_as_confirmed() -> None:
    note = empty()
    note.propose((), np.ones(SHAPE, np.uint16))
    note.draft[0, 0] = 2
    note.draft[0, 1] = 0
    note.accept((), [2])
    note.draft[0, 2] = 3
    assert note.confirmed(())[0].tolist() == [True, False, True, False, False]
    assert not note.confirmed(())[1:].any()


def test_a_stroke_that_is_undone_by_hand_stays_a_correction() -> None:
    note = empty()
    note.propose((), np.ones(SHAPE, np.uint16))
    note.draft[0] = 2
    note.propose((), np.ones(SHAPE, np.uint16))
    note.draft[0] = 1
    note.propose((), np.full(SHAPE, 3, np.uint16))
    assert note.draft[0].tolist() == [1] * 5


def test_slices_are_separate() -> None:
    note = empty((2, 3))
    note.propose((1, 2), np.ones(SHAPE, np.uint16))
    note.accept((1, 2), [1])
    note.propose((0, 2), np.full(SHAPE, 2, np.uint16))
    assert [note.combined((i, 2))[0, 0] for i in (0, 1)] == [2, 1]
    assert note.draft.sum() == 40 and note.accepted.sum() == 20


def test_undo_goes_back_step_by_step_and_redo_forward() -> None:
    note = empty((2,))
    note.propose((1,), np.ones(SHAPE, np.uint16))
    note.draft[1, 0] = 2
    before = note.draft.copy()
    note.accept((1,), [1])
    between = note.draft.copy(), note.accepted.copy()
    note.accept((1,), [2])
    after = note.draft.copy(), note.accepted.copy()
    for _ in range(2):
        step = note.undo()
        assert step is not None and list(step.slices) == [(1,)]
        assert np.array_equal((note.draft, note.accepted), between)
        assert note.undo() is not None
        assert np.array_equal(note.draft, before) and not note.accepted.any()
        assert note.by_hand((1,)).sum() == 5
        assert note.undo() is None
        assert note.redo() is not None
        assert np.array_equal((note.draft, note.accepted), between)
        assert note.redo() is not None
        assert np.array_equal((note.draft, note.accepted), after)
        assert note.redo() is None


def test_nothing_to_accept_is_no_step() -> None:
    note = empty()
    assert note.accept((), [1]) == 0
    assert note.undo() is None


def test_a_run_over_a_stack_is_one_step_and_strokes_stay() -> None:
    note = empty((3,))
    first, second = note.begin("the run"), note.begin("the run")
    for index in note.indices():
        note.propose(index, np.ones(SHAPE, np.uint16), np.full(SHAPE, 9, np.uint8), first)
    note.draft[1, 0] = 3
    for index in note.indices():
        note.propose(index, np.full(SHAPE, 2, np.uint16), np.full(SHAPE, 8, np.uint8), second)
    # A threshold moved after the run belongs to it.
    note.propose((2,), np.zeros(SHAPE, np.uint16), np.full(SHAPE, 7, np.uint8))
    moved = note.draft.copy()
    note.draft[0, 1] = 4
    assert note.undo() is second
    assert (note.draft[1, 0] == 3).all() and (note.draft[0, 1] == 4).all()
    assert np.array_equal(np.unique(note.draft), [1, 3, 4]) and np.unique(note.scores((2,))) == [9]
    assert note.undo() is first
    assert np.count_nonzero(note.draft) == 10
    assert note.scores((0,)) is None and not note.segmented((0,))
    assert note.redo() is first and note.redo() is second
    moved[0, 1] = 4
    assert np.array_equal(note.draft, moved) and np.unique(note.scores((2,))) == [7]


@given(first=MAPS, second=MAPS, brush=MAPS, where=st.lists(st.booleans(), min_size=20, max_size=20))
def test_a_stroke_taken_back_leaves_what_the_model_proposes_by_now(
    first: np.ndarray, second: np.ndarray, brush: np.ndarray, where: list[bool]
) -> None:
    note = empty()
    note.propose((), first)
    stroke = np.array(where).reshape(SHAPE)
    note.draft[stroke] = brush[stroke]
    note.stroke([()])
    note.propose((), second)
    painted = note.draft.copy()
    changed = bool((stroke & (brush != first)).any())
    assert note.undo_stroke("draft") == changed
    assert np.array_equal(note.draft, second)
    assert not note.by_hand(()).any()
    assert note.redo_stroke("draft") == changed
    assert np.array_equal(note.draft, painted)


def test_a_stroke_that_is_told_before_it_is_drawn() -> None:
    note = empty()
    note.stroke([()])
    note.draft[0] = 2
    note.propose((), np.ones(SHAPE, np.uint16))
    note.stroke([()])
    note.draft[1] = 3
    assert note.undo_stroke("draft") and (note.draft[1] == 1).all() and (note.draft[0] == 2).all()
    assert note.undo_stroke("draft") and (note.draft == 1).all()
    assert not note.undo_stroke("draft")


def test_strokes_in_the_accepted_map_can_be_taken_back_and_erased_pixels_stay_empty() -> None:
    note = empty()
    note.propose((), np.ones(SHAPE, np.uint16))
    note.accept((), [1])
    note.accepted[0] = 0
    note.stroke([()])
    note.propose((), np.full(SHAPE, 2, np.uint16))
    assert not note.combined(())[0].any() and (note.combined(())[1:] == 1).all()
    assert not note.undo_stroke("draft")
    assert note.undo_stroke("accepted")
    assert (note.combined(()) == 1).all() and (note.accepted == 1).all()


def test_a_stroke_below_accepted_pixels_comes_back_with_them() -> None:
    note = empty()
    note.draft[0] = 3
    note.stroke([()])
    note.accepted[0] = 1
    note.stroke([()])
    assert not note.draft.any() and (note.combined(())[0] == 1).all()
    note.undo_stroke("accepted")
    assert (note.draft[0] == 3).all()


def test_cleared_maps_come_back() -> None:
    note = empty((2,))
    note.propose((0,), np.ones(SHAPE, np.uint16), np.full(SHAPE, 9, np.uint8), note.begin("the run"))
    note.draft[1, 0] = 2
    note.accept((0,), [1])
    draft, accepted = note.draft.copy(), note.accepted.copy()
    note.clear(["draft"], "the removal")
    assert not note.draft.any() and np.array_equal(note.accepted, accepted)
    note.clear(["accepted"], "the removal")
    assert not note.accepted.any()
    note.undo(), note.undo()
    assert np.array_equal(note.draft, draft) and np.array_equal(note.accepted, accepted)


def test_labels_with_other_ids() -> None:
    note = empty()
    note.propose((), np.array([1, 2, 3, 0, 1] * 4, np.uint16).reshape(SHAPE))
    note.draft[0, 0] = 2
    note.accept((), [3])
    before = note.combined(())
    note.renumber({1: 2, 2: 1, 3: 9})
    assert np.array_equal(note.combined(()), np.array([0, 2, 1, 9])[before])
    assert note.by_hand(()).sum() == 1 and note.undo() is None


def test_labels_that_are_there_from_the_start_are_corrections() -> None:
    note = Annotation(np.full(SHAPE, 2, np.uint16), np.zeros(SHAPE, np.uint16))
    note.draft[0] = 0
    note = Annotation(note.draft, note.accepted)
    note.propose((), np.ones(SHAPE, np.uint16))
    assert note.draft[:, 0].tolist() == [1, 2, 2, 2]
    assert note.ids_in_use() == {1, 2}


def test_undo_is_bounded() -> None:
    note = empty()
    for number in range(50):
        note.propose((), np.full(SHAPE, number, np.uint16), step=note.begin("the run"))
    steps = 0
    while note.undo() is not None:
        steps += 1
    assert 5 <= steps < 50


def test_forgotten_labels_leave_both_maps() -> None:
    note = empty()
    note.propose((), np.array([1, 2, 3, 0, 1] * 4, np.uint16).reshape(SHAPE))
    note.accept((), [2, 3])
    note.forget_labels([1, 2])
    assert np.unique(note.combined(())).tolist() == [0, 3]
    assert note.undo() is not None
    assert np.unique(note.combined(())).tolist() == [0, 1, 2, 3]


def test_maps_must_fit() -> None:
    with pytest.raises(ValueError, match="shapes"):
        Annotation(np.zeros((2, 2), np.uint16), np.zeros((2, 3), np.uint16))


def test_a_saved_correction_stays_where_the_model_agrees_by_now() -> None:
    note = Annotation(np.zeros((1, 4), np.uint16), np.zeros((1, 4), np.uint16))
    note.propose((), np.array([[1, 2, 2, 0]], np.uint16))
    note.attribute((), np.array([[1, 1, 2, 0]], np.uint16), np.array([[False, True, True, True]]))
    assert note.by_hand(()).tolist() == [[False, True, True, True]]
    note.propose((), np.full((1, 4), 3, np.uint16))
    assert note.draft.tolist() == [[3, 2, 2, 0]]
