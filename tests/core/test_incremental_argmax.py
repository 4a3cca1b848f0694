"""A decision that is kept up to date is the one that is made anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tcl_core.segmentation.argmax as module
from tcl_core.segmentation.argmax import Contender, decide, label_map_from_scores
from tcl_core.vocabulary import Label, Vocabulary

THRESHOLDS = st.none() | st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.7, 0.75, 1.0])
FLOORS = st.sampled_from([float("-inf"), 0.0, 0.5])


def heights(seed: int) -> list[torch.Tensor]:
    """Planes of few heights, so that there are ties, also with thresholds that no float32 equals."""
    levels = np.array([0, 0.25, 0.4, 0.5, 0.7, 0.75, 1], dtype=np.float32)
    return list(torch.from_numpy(levels[np.random.default_rng(seed).integers(0, len(levels), (6, 200))]))


def contenders(thresholds: list[float | None]) -> list[Contender]:
    return [(((str(number),), None), threshold) for number, threshold in enumerate(thresholds)]


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.lists(THRESHOLDS, min_size=6, max_size=6),
    FLOORS,
    st.integers(0, 9),
)
def test_labels_after_known_ones_change_nothing_else(
    steps: list[int], thresholds: list[float | None], floor: float, seed: int
) -> None:
    planes, labels = heights(seed), contenders(thresholds)
    before = None
    for count in steps:
        before = decide(planes[:count], labels[:count], floor, before)
        fresh = decide(planes[:count], labels[:count], floor)
        assert torch.equal(before.winner, fresh.winner)
        assert torch.equal(before.best, fresh.best)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    st.lists(THRESHOLDS, min_size=6, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), THRESHOLDS), min_size=1, max_size=6),
    FLOORS,
    st.integers(0, 9),
)
def test_thresholds_that_move_one_by_one(
    thresholds: list[float | None], moves: list[tuple[int, float | None]], floor: float, seed: int
) -> None:
    planes = heights(seed)
    decided = decide(planes, contenders(thresholds), floor)
    for place, threshold in moves:
        thresholds = [*thresholds[:place], threshold, *thresholds[place + 1 :]]
        labels = contenders(thresholds)
        decided, fresh = decide(planes, labels, floor, decided), decide(planes, labels, floor)
        assert decided.labels == labels
        assert torch.equal(decided.winner, fresh.winner)
        assert torch.equal(decided.best, fresh.best)
        vocabulary = Vocabulary(
            tuple(Label(str(number), threshold=value) for number, value in enumerate(thresholds)), floor > -1
        )
        expected, _ = label_map_from_scores(torch.stack(planes)[:, None], vocabulary, floor, (1, 200))
        assert np.array_equal(decided.winner.numpy(), expected[0])


def test_a_moved_threshold_looks_at_few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    planes, labels = heights(1), contenders([None] * 6)
    decided = decide(planes, labels, 0.5)
    pixels: list[int] = []
    compete = module._compete
    monkeypatch.setattr(module, "_compete", lambda made, *rest: pixels.append(len(made.best)) or compete(made, *rest))
    losing = int((decided.winner == 2).sum())
    decide(planes, contenders([None, 2.0, *[None] * 4]), 0.5, decided)
    assert pixels == [losing] and 0 < losing < 200


@pytest.mark.parametrize("other", ["prompts", "background", "two thresholds", "fewer"])
def test_other_changes_are_decided_anew(other: str) -> None:
    planes, labels = heights(2), contenders([None, 0.5, None, None, None, None])
    decided = decide(planes, labels, 0.5)
    floor = 0.0 if other == "background" else 0.5
    if other == "prompts":
        planes[1], labels[1] = planes[0], (("other",), 0.75)
    if other == "two thresholds":
        labels = contenders([0.75, 0.75, None, None, None, None])
    if other == "fewer":
        planes, labels = planes[:4], contenders([None, 0.75, None, None])
    again, fresh = decide(planes, labels, floor, decided), decide(planes, labels, floor)
    assert torch.equal(again.winner, fresh.winner)
    assert torch.equal(again.best, fresh.best)


def test_winners_have_room_for_more_than_255_labels() -> None:
    planes = list(torch.linspace(0, 1, 300)[:, None])
    labels = contenders([None] * 300)
    before = None
    for count in (255, 256, 300):
        before = decide(planes[:count], labels[:count], 0.0, before)
        assert before.winner.tolist() == [count]


def test_maps_are_memory_of_their_own() -> None:
    planes = list(torch.linspace(0, 1, 300)[:, None])
    decided = decide(planes, contenders([None] * 300), 0.0)
    label_map, _ = decided.maps((1, 1))
    label_map[:] = 7
    assert decided.winner.tolist() == [300]
