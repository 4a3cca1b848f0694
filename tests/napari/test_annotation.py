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


def test_undo_goes_back_step_by_step() -> None:
    note = empty((2,))
    note.propose((1,), np.ones(SHAPE, np.uint16))
    note.draft[1, 0] = 2
    before = note.draft.copy()
    note.accept((1,), [1])
    note.accept((1,), [2])
    assert note.undo() == (1,)
    assert note.undo() == (1,)
    assert np.array_equal(note.draft, before) and not note.accepted.any()
    assert note.by_hand((1,)).sum() == 5
    assert note.undo() is None


def test_nothing_to_accept_is_no_step() -> None:
    note = empty()
    assert note.accept((), [1]) == 0
    assert note.undo() is None


def test_undo_is_bounded() -> None:
    note = empty()
    for _ in range(50):
        note.remember(())
    steps = 0
    while note.undo() is not None:
        steps += 1
    assert 5 <= steps < 50


def test_labels_that_are_taken_out_leave_both_maps_and_come_back() -> None:
    note = empty()
    note.propose((), np.array([1, 2, 3, 0, 1] * 4, np.uint16).reshape(SHAPE))
    note.draft[0, 0] = 2
    before = note.combined(()).copy(), note.by_hand(()).copy()
    note.accept((), [2, 3])
    accepted = note.accepted.copy()
    taken = note.take_out([1, 2])
    assert np.unique(note.combined(())).tolist() == [0, 3]
    assert note.undo() is None, "older steps hold pixels of the labels"
    note.put_back(taken)
    assert np.array_equal(note.accepted, accepted) and np.array_equal(note.combined(()), before[0])
    assert note.undo() == ()
    assert np.array_equal(note.draft, before[0]) and np.array_equal(note.by_hand(()), before[1])


def test_what_was_done_since_labels_were_taken_out_stays() -> None:
    note = empty()
    note.propose((), np.ones(SHAPE, np.uint16))
    taken = note.take_out([1])
    note.propose((), np.array([2, 0, 0, 0, 0] * 4, np.uint16).reshape(SHAPE))
    note.draft[0, 1] = 3
    note.accept((), [3])
    note.put_back(taken)
    assert note.combined(()).tolist() == [[2, 3, 1, 1, 1], *[[2, 1, 1, 1, 1]] * 3]
    assert not note.draft[note.accepted > 0].any()


def test_maps_must_fit() -> None:
    with pytest.raises(ValueError, match="shapes"):
        Annotation(np.zeros((2, 2), np.uint16), np.zeros((2, 3), np.uint16))
