"""Which label wins at each pixel, kept up to date while labels are added and thresholds move.

The decision is that of `tcl_core.segmentation.segmenter.label_map_from_scores`: the highest score that reaches its
label's threshold and beats the background wins, the earlier of two equal ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Contender", "Decided", "decide"]

# Pixels decided at once: few enough for the processor's cache, enough that calls cost little.
_BLOCK = 1 << 15

Contender = tuple[Any, float | None]
"""What a label's scores depend on, and its own threshold."""


@dataclass(frozen=True)
class Decided:
    """An arg-max over some labels, which can be kept up to date.

    Attributes:
        labels: the labels in their order.
        floor: height of the background plane, or minus infinity.
        best: float32 ``[N]``, the highest score so far, at least ``floor``.
        winner: unsigned ``[N]``; 0 for none, k for label k counted from 1.
    """

    labels: list[Contender]
    floor: float
    best: NDArray[np.float32]
    winner: NDArray[Any]


def decide(
    planes: Sequence[NDArray[np.float32]], labels: Sequence[Contender], floor: float, before: Decided | None = None
) -> Decided:
    """The arg-max over planes that have the image's size already.

    Args:
        planes: float32 ``[N]`` of each label.
        labels: in the same order.
        floor: height of the background plane, or minus infinity.
        before: an earlier decision. If labels were added at its end, they alone are compared; if one threshold moved,
            pixels alone that this concerns. It is changed in its place and must not be used any more.
    """
    # A copy, because the next call compares with it.
    labels = list(labels)
    kind: Any = np.uint8 if len(planes) <= np.iinfo(np.uint8).max else np.uint16
    if before is not None and before.floor == floor:
        known = len(before.labels)
        if before.labels == labels[:known]:
            decided = Decided(labels, floor, before.best, before.winner.astype(kind, copy=False))
            return _add(decided, planes, known)
        moved = [place for place, (old, new) in enumerate(zip(before.labels, labels, strict=False)) if old != new]
        if known == len(labels) and len(moved) == 1 and before.labels[moved[0]][0] == labels[moved[0]][0]:
            return _move(before, planes, labels, moved[0])
    count = len(planes[0])
    blank = Decided(labels, floor, np.full(count, floor, dtype=np.float32), np.zeros(count, dtype=kind))
    return _add(blank, planes, 0)


def _add(decided: Decided, planes: Sequence[NDArray[np.float32]], known: int) -> Decided:
    """Let the labels after the first ``known`` compete.

    Plain comparisons and maxima over few pixels at a time, because those are what processors do many at once.
    """
    numbers = np.arange(1, len(planes) + 1, dtype=decided.winner.dtype)
    added = list(zip(numbers, decided.labels, planes, strict=True))[known:]
    count = len(decided.best)
    for start in range(0, count, _BLOCK):
        block = slice(start, min(start + _BLOCK, count))
        top, who = decided.best[block], decided.winner[block]
        for number, (_, threshold), plane in added:
            score = plane[block]
            if threshold is not None:
                score = np.where(score >= np.float32(threshold), score, np.float32(-np.inf))
            # Numbers rise, so the greatest that ever won has won.
            np.maximum(who, (score > top).view(np.uint8) * number, out=who)
            np.maximum(top, score, out=top)
    return decided


def _move(before: Decided, planes: Sequence[NDArray[np.float32]], labels: list[Contender], place: int) -> Decided:
    """Give one label another threshold."""
    old, new = (_least(contenders[place]) for contenders in (before.labels, labels))
    best, winner, score = before.best, before.winner, planes[place]
    decided = replace(before, labels=labels)
    number = place + 1
    if new > old:
        lost = np.flatnonzero((winner == number) & (score < new))
        # In parts, because all planes at all these pixels could be as much again as the planes.
        for start in range(0, len(lost), _BLOCK):
            part = lost[start : start + _BLOCK]
            again = decide([plane[part] for plane in planes], labels, before.floor)
            best[part], winner[part] = again.best, again.winner
        return decided
    wins = (score > best) | ((score == best) & (winner > number))
    wins &= (score >= new) & (score < old)
    np.copyto(best, score, where=wins)
    np.copyto(winner, winner.dtype.type(number), where=wins)
    return decided


def _least(contender: Contender) -> np.float32:
    return np.float32(-np.inf if contender[1] is None else contender[1])
