"""The decision: which label wins at each pixel. Nobody else decides a pixel.

A label competes at a pixel where its score is at least its own threshold, if it has one. With background, a constant
plane competes too, and so does the plane of the names that stand for it, if there are any. Ties go to the background,
then to the earlier label; where nothing competes there is no label.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.segmentation.enlarging import Enlarger, tiles
from tcl_core.vocabulary import Vocabulary

__all__ = [
    "Background",
    "Contender",
    "Decision",
    "decide",
    "enlarge",
    "label_map_from_parts",
    "label_map_from_scores",
    "one_label_from_scores",
]

SCORE_ROUNDING = 1e-5
"""By how much a resized score can exceed the scores around it."""

# Pixels decided at once on a CPU: few enough for the processor's cache, enough that calls cost little.
_BLOCK = 1 << 16
_ROWS = 64
# A tile has so many times the pixels that it is made of, or comparing labels beforehand costs more than it saves.
_FEWER = 4

Contender = tuple[Any, float | None]
"""What a label's scores depend on, and its own threshold."""

Background = tuple[Hashable, Tensor]
"""What the scores of the background's names depend on, and their highest, float32 ``[N]``."""


@dataclass(frozen=True)
class Decision:
    """An arg-max over some labels, which can be kept up to date.

    Attributes:
        labels: the labels in their order.
        floor: height of the background plane, or minus infinity.
        best: float32 ``[N]``, the highest score so far, at least that of the background.
        winner: whole numbers ``[N]``; 0 for none, k for label k counted from 1.
        names: what the scores of the background's names depend on; ``None`` where there are none.
    """

    labels: list[Contender]
    floor: float
    best: Tensor
    winner: Tensor
    names: Hashable = None

    def maps(self, size: tuple[int, int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The winners int32 ``[H, W]``, and their scores float32 ``[H, W]``, 0 where there is none."""
        # Copies, because the decision goes on.
        return _maps(self.best.view(size).clone(), self.winner.view(size).to(torch.int32, copy=True))


def decide(
    planes: Sequence[Tensor],
    labels: Sequence[Contender],
    floor: float,
    before: Decision | None = None,
    background: Background | None = None,
) -> Decision:
    """The arg-max over planes that have the image's size already.

    Args:
        planes: float32 ``[N]`` of each label.
        labels: in the same order.
        floor: height of the background plane, or minus infinity.
        before: an earlier decision. If labels were added at its end, they alone are compared; if one threshold moved,
            pixels alone that this concerns. It is changed in its place and must not be used any more.
        background: scores of the background's names.
    """
    # A copy, because the next call compares with it.
    labels = list(labels)
    names, plane = (None, None) if background is None else background
    if before is not None and (before.floor, before.names) == (floor, names):
        known = len(before.labels)
        if before.labels == labels[:known]:
            decision = replace(before, labels=labels, winner=before.winner.to(_kind(len(labels))))
            _compete(decision, planes[known:], known)
            return decision
        moved = [place for place, (old, new) in enumerate(zip(before.labels, labels, strict=False)) if old != new]
        same = known == len(labels) and len(moved) == 1 and before.labels[moved[0]][0] == labels[moved[0]][0]
        if same and before.best.device.type == "cpu":
            return _move(before, planes, labels, moved[0], plane)
    decision = replace(_blank(labels, floor, planes[0].numel(), planes[0].device, plane), names=names)
    _compete(decision, planes, 0)
    return decision


def enlarge(score: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a score map ``[h, w]`` to the image's size (bilinear, ``align_corners=False``); float32 ``[H * W]``."""
    source = (int(score.shape[0]), int(score.shape[1]))
    return Enlarger.of(source, size, score.device).whole(score).reshape(-1)


@torch.no_grad()
def label_map_from_scores(
    scores: Tensor | NDArray[np.float32],
    vocabulary: Vocabulary,
    background_threshold: float | None,
    size: tuple[int, int],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Arg-max of score maps at the image's size, one label after the other, so that memory does not grow with them.

    Args:
        scores: float32 ``[K, h, w]`` in ``[0, 1]``, one plane per label, and perhaps one more of the background's
            names; each is resized bilinearly.
        vocabulary: K labels; its own ``background_threshold`` comes before the argument.
        background_threshold: height of the background plane where the vocabulary does not say; ``None`` for no plane.
        size: height and width of the result.

    Returns:
        int32 ``[H, W]``: 0 for no label, k for label k counted from 1; and float32 ``[H, W]``: the winner's score, 0
        where there is none.

    Raises:
        ValueError: ``scores`` does not have one plane per label.

    >>> scores = np.array([[[0.9, 0.2, 0.6]], [[0.5, 0.3, 0.6]]], dtype=np.float32)
    >>> label_map, score_map = label_map_from_scores(scores, Vocabulary.from_options(["a", "b"]), 0.4, (1, 3))
    >>> label_map.tolist()
    [[1, 0, 1]]
    """
    planes = torch.as_tensor(scores)
    count = len(vocabulary.labels)
    if planes.ndim != 3 or len(planes) not in (count, count + 1):
        raise ValueError(f"expected score maps [{count}, h, w], got {list(planes.shape)}")
    return label_map_from_parts([planes[:count]], vocabulary, background_threshold, size, planes[count:])


@torch.no_grad()
def label_map_from_parts(
    parts: Iterable[Tensor],
    vocabulary: Vocabulary,
    background_threshold: float | None,
    size: tuple[int, int],
    names: Tensor,
    shape: tuple[int, int] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """`label_map_from_scores` of score maps that come in parts, so that they need not be there at once.

    The image is decided tile by tile: beside the result there is memory for a tile and for the maps of a part. In most
    tiles few labels have a chance, and only their maps are enlarged.

    Args:
        parts: float32 ``[k, h, w]``, of the labels in their order.
        vocabulary: K labels, as many as planes come.
        background_threshold: see `label_map_from_scores`.
        size: height and width of the result.
        names: float32 ``[1, h, w]``, the plane of the background's names, or ``[0, h, w]`` for none.
        shape: most rows and columns of a tile; they change nothing but the time.

    Returns:
        See `label_map_from_scores`.
    """
    floor = vocabulary.floor(background_threshold)
    thresholds = [label.threshold for label in vocabulary.labels]
    enlarger = Enlarger.of((int(names.shape[1]), int(names.shape[2])), size, names.device)
    best = torch.empty(size, dtype=torch.float32, device=names.device)
    winner = torch.zeros(size, dtype=torch.int32, device=names.device)
    # Filled in the first round, so that each tile is worked on while the processor's cache holds it.
    blank = True
    first = 0
    for part in parts:
        lowest = [floor if value is None else max(floor, value) for value in thresholds[first : first + len(part)]]
        for tile in tiles(size, part.device, shape):
            top, who = best[tile], winner[tile]
            if blank:
                _begin(top, floor, enlarger.tile(names[0], tile) if len(names) else None)
            near = (slice(None), *enlarger.needed(tile))
            for place in _strong(part[near], names[near], lowest, thresholds[first:], top.numel()):
                number = first + place + 1
                _challenge(top, who, enlarger.tile(part[place], tile), number, thresholds[number - 1])
        blank = False
        first += len(part)
    return _maps(best, winner)


def one_label_from_scores(
    scores: Tensor,
    vocabulary: Vocabulary,
    background_threshold: float | None,
    size: tuple[int, int],
    place: int,
    *,
    rivals: bool = True,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Where one label wins, as `label_map_from_scores` decides it.

    Labels that are nowhere strong enough where this one could win take no part, which saves most of the time.

    Args:
        scores: float32 ``[K, h, w]`` in ``[0, 1]``, one plane per label, and perhaps one more of the background's
            names.
        vocabulary: K labels.
        background_threshold: height of the background plane where the vocabulary does not say; ``None`` for no plane.
        size: height and width of the result.
        place: of the label, from 0.
        rivals: whether the other labels compete; otherwise the background alone does, with its names.

    Returns:
        int32 ``[H, W]``: ``place + 1`` where the label wins, else 0; and float32 ``[H, W]``: its score there, else 0.
    """
    threshold = vocabulary.labels[place].threshold
    floor = vocabulary.floor(background_threshold)
    lowest = floor if threshold is None else max(floor, threshold)
    background = list(range(len(vocabulary.labels), len(scores)))
    kept = [place]
    if rivals:
        # Interpolation stays between the four nearest values but for rounding.
        strong = (scores[place] >= lowest - SCORE_ROUNDING).nonzero()
        if not len(strong):
            return np.zeros(size, np.int32), np.zeros(size, np.float32)
        (top, left), (bottom, right) = strong.amin(dim=0).tolist(), strong.amax(dim=0).tolist()
        around = scores[:, max(top - 1, 0) : bottom + 2, max(left - 1, 0) : right + 2]
        strongest = (around.amax(dim=(1, 2)) >= lowest - SCORE_ROUNDING).nonzero().flatten().tolist()
        kept = sorted({place, *strongest} - {*background})
    part = replace(vocabulary, labels=tuple(vocabulary.labels[index] for index in kept))
    label_map, score_map = label_map_from_scores(scores[kept + background], part, background_threshold, size)
    wins = label_map == kept.index(place) + 1
    # In place, because planes of a large image take 0.8 GB each.
    np.multiply(wins, np.int32(place + 1), out=label_map)
    np.multiply(wins, score_map, out=score_map)
    return label_map, score_map


def _kind(labels: int) -> torch.dtype:
    return torch.uint8 if labels <= 255 else torch.int32


def _blank(
    labels: list[Contender], floor: float, count: int, device: torch.device, names: Tensor | None = None
) -> Decision:
    if names is None:
        best = torch.full((count,), floor, dtype=torch.float32, device=device)
    else:
        best = names.clamp(min=floor)
    return Decision(labels, floor, best, torch.zeros(count, dtype=_kind(len(labels)), device=device))


def _compete(decision: Decision, planes: Sequence[Tensor], first: int) -> None:
    """Let planes of the labels from ``first`` on compete with the winners so far; this is the arg-max.

    Plain comparisons and maxima over few pixels at a time, because those are what processors do many at once.
    """
    best, winner = decision.best, decision.winner
    count = len(best)
    # A single plane gains nothing from the cache, and whole planes use all processors.
    step = _BLOCK if best.device.type == "cpu" and len(planes) > 1 else max(count, 1)
    thresholds = [threshold for _, threshold in decision.labels[first : first + len(planes)]]
    for start in range(0, count, step):
        block = slice(start, start + step)
        top, who = best[block], winner[block]
        for number, (plane, threshold) in enumerate(zip(planes, thresholds, strict=True), start=first + 1):
            _challenge(top, who, plane[block], number, threshold)


def _challenge(top: Tensor, who: Tensor, score: Tensor, number: int, threshold: float | None) -> None:
    """Let the label ``number`` compete with the scores ``top`` of the winners ``who``, which have lower numbers."""
    if threshold is not None:
        score = score.masked_fill(score < threshold, float("-inf"))
    # Numbers rise, so the greatest that ever won has won.
    torch.maximum(who, (score > top).to(who.dtype).mul_(number), out=who)
    torch.maximum(top, score, out=top)


def _begin(top: Tensor, floor: float, names: Tensor | None) -> None:
    """Put the background into a tile."""
    if names is None:
        top.fill_(floor)
    else:
        torch.clamp(names, min=floor, out=top)


def _strong(
    scores: Tensor, names: Tensor, lowest: Sequence[float], thresholds: Sequence[float | None], pixels: int
) -> list[int]:
    """Labels that may win somewhere in a tile.

    Args:
        scores: float32 ``[k, h, w]``, what the tile is made of.
        names: float32 ``[1, h, w]``, the same of the background's names, or ``[0, h, w]``.
        lowest: below which a label of these never wins.
        thresholds: of the labels.
        pixels: of the tile.
    """
    highest = scores.amax(dim=(1, 2)).tolist()
    rival = float("-inf")
    if len(scores) + len(names) > 1 and _FEWER * scores[0].numel() <= pixels:
        rival = max(names.amin(dim=(1, 2)).tolist(), default=rival)
        # The lowest score of a label that competes all over the tile is enough to beat others.
        least = scores.amin(dim=(1, 2)).tolist()
        sure = (
            value
            for value, threshold in zip(least, thresholds, strict=False)
            if threshold is None or value >= threshold + SCORE_ROUNDING
        )
        rival = max([rival, *sure])
    # Interpolation exceeds no value by more than rounding.
    return [
        place
        for place, (score, low) in enumerate(zip(highest, lowest, strict=True))
        if score >= max(low, rival - SCORE_ROUNDING) - SCORE_ROUNDING
    ]


def _maps(best: Tensor, winner: Tensor) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Winners and their scores as arrays, 0 where there is none; the tensors become these arrays where they can."""
    label_map, score_map = winner.cpu().numpy(), best.cpu().numpy()
    for top in range(0, len(label_map), _ROWS):
        rows = slice(top, top + _ROWS)
        score_map[rows][label_map[rows] == 0] = 0
    return label_map, score_map


def _move(
    before: Decision, planes: Sequence[Tensor], labels: list[Contender], place: int, names: Tensor | None
) -> Decision:
    """Give one label another threshold, on a CPU.

    NumPy compares a plane, and finds the few pixels that differ, several times as quickly as PyTorch.
    """
    old, new = (_least(contenders[place]) for contenders in (before.labels, labels))
    best, winner, score = before.best.numpy(), before.winner.numpy(), planes[place].numpy()
    decision = replace(before, labels=labels)
    number = place + 1
    if new > old:
        lost = torch.from_numpy(np.flatnonzero((winner == number) & (score < new)))
        # In parts, because all planes at all these pixels could be as much again as the planes.
        for part in lost.split(_BLOCK):
            background = None if names is None else (None, names[part])
            again = decide([plane[part] for plane in planes], labels, before.floor, background=background)
            before.best[part], before.winner[part] = again.best, again.winner
        return decision
    for start in range(0, len(best), _BLOCK):
        block = slice(start, start + _BLOCK)
        top, who, own = best[block], winner[block], score[block]
        wins = (own > top) | ((own == top) & (who > number))
        wins &= (own >= new) & (own < old)
        np.copyto(top, own, where=wins)
        who[wins] = number
    return decision


def _least(contender: Contender) -> float:
    return float("-inf") if contender[1] is None else contender[1]
