"""One label's pixels are those of the decision among all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tcl_core.segmentation.argmax as module
from tcl_core.segmentation.argmax import label_map_from_scores, one_label_from_scores
from tcl_core.vocabulary import Label, Vocabulary

LEVELS = st.none() | st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.7])


@settings(max_examples=150)
@given(st.lists(LEVELS, min_size=1, max_size=5), st.booleans(), LEVELS, st.integers(0, 30), st.sampled_from([3, 60]))
def test_it_is_the_decision_among_all(
    thresholds: list[float | None], background: bool, floor: float | None, seed: int, coarse: int
) -> None:
    generator = np.random.default_rng(seed)
    # Few heights in few places, so that there are ties, and labels that are far from each other.
    levels = np.array([0, 0.25, 0.4, 0.5, 0.7, 1], dtype=np.float32)
    heights = levels[generator.integers(0, len(levels), (len(thresholds), 6, 9))]
    scores = torch.from_numpy(heights * (generator.random(heights.shape) < 0.5).astype(np.float32))
    labels = tuple(Label(f"label {index}", threshold=threshold) for index, threshold in enumerate(thresholds))
    vocabulary = Vocabulary(labels, background, floor if background else None)
    size = (coarse, 2 * coarse + 1)
    expected, expected_scores = label_map_from_scores(scores, vocabulary, 0.5, size)
    for place in range(len(labels)):
        label_map, score_map = one_label_from_scores(scores, vocabulary, 0.5, size, place)
        wins = expected == place + 1
        assert label_map.dtype == np.int32 and score_map.dtype == np.float32
        assert np.array_equal(label_map, np.where(wins, place + 1, 0))
        assert np.array_equal(score_map, np.where(wins, expected_scores, 0))


def test_labels_that_are_elsewhere_take_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.zeros(4, 8, 8)
    scores[1, :2, :2], scores[2, 5:, 5:], scores[3, 1:3, 1:3] = 0.8, 0.9, 0.9
    taken: list[int] = []

    def recorded(part, *rest):
        taken.append(len(part))
        return label_map_from_scores(part, *rest)

    monkeypatch.setattr(module, "label_map_from_scores", recorded)
    label_map, _ = one_label_from_scores(scores, Vocabulary.from_options(["a", "b", "c", "d"]), 0.5, (8, 8), 1)
    assert taken == [2] and int((label_map == 2).sum()) == 3
    label_map, score_map = one_label_from_scores(scores, Vocabulary.from_options(["a", "b", "c", "d"]), 0.5, (8, 8), 0)
    assert taken == [2] and not label_map.any() and not score_map.any()
