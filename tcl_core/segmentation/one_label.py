"""Where one label wins: what is asked when somebody types a prompt, and waits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.segmentation.segmenter import SCORE_ROUNDING, label_map_from_scores
from tcl_core.vocabulary import Vocabulary

__all__ = ["one_label_from_scores"]


def one_label_from_scores(
    scores: Tensor, vocabulary: Vocabulary, background_threshold: float, size: tuple[int, int], place: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Where one label wins, as `tcl_core.segmentation.segmenter.label_map_from_scores` decides it.

    Labels that are nowhere strong enough where this one could win take no part, which saves most of the time.

    Args:
        scores: float32 ``[K, h, w]`` in ``[0, 1]``, one plane per label.
        vocabulary: K labels.
        background_threshold: height of the background plane where the vocabulary does not say.
        size: height and width of the result.
        place: of the label, from 0.

    Returns:
        int32 ``[H, W]``: ``place + 1`` where the label wins, else 0; and float32 ``[H, W]``: its score there, else 0.
    """
    threshold = vocabulary.labels[place].threshold
    floor = vocabulary.floor(background_threshold)
    lowest = floor if threshold is None else max(floor, threshold)
    # Interpolation stays between the four nearest values but for rounding.
    strong = (scores[place] >= lowest - SCORE_ROUNDING).nonzero()
    if not len(strong):
        return np.zeros(size, np.int32), np.zeros(size, np.float32)
    (top, left), (bottom, right) = strong.amin(dim=0).tolist(), strong.amax(dim=0).tolist()
    around = scores[:, max(top - 1, 0) : bottom + 2, max(left - 1, 0) : right + 2]
    rivals = (around.amax(dim=(1, 2)) >= lowest - SCORE_ROUNDING).nonzero().flatten().tolist()
    kept = sorted({place, *rivals})
    part = replace(vocabulary, labels=tuple(vocabulary.labels[index] for index in kept))
    label_map, score_map = label_map_from_scores(scores[kept], part, background_threshold, size)
    wins = label_map == kept.index(place) + 1
    # In place, because planes of a large image take 0.8 GB each.
    np.multiply(wins, np.int32(place + 1), out=label_map)
    np.multiply(wins, score_map, out=score_map)
    return label_map, score_map
