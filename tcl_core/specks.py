"""Specks: pieces of a label map too small to mean anything join what surrounds them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

__all__ = ["absorb_small"]


def absorb_small(label_map: NDArray[np.int32], min_area: int) -> NDArray[np.int32]:
    """Merge pieces of fewer than ``min_area`` pixels into the label around them with the longest shared border.

    Pieces are 4-connected; those of background (0) count like any other, so that small holes are filled. The smallest
    go first (ties: reading order) and grow by what they join, so that a speck inside a small region joins it before
    that region is checked. Equal borders go to the smaller label. A piece that fills the image stays.

    Args:
        label_map: int32 ``[H, W]``, 0 is background.
        min_area: pixels.

    Returns:
        A new label map, in which every piece that has a neighbor has at least ``min_area`` pixels.

    Examples:
        >>> absorb_small(np.array([[1, 1, 1], [1, 2, 0], [1, 1, 1]], dtype=np.int32), 2).tolist()
        [[1, 1, 1], [1, 1, 1], [1, 1, 1]]
    """
    if min_area <= 1 or not label_map.size:
        return label_map.astype(np.int32, copy=True)
    runs = _Runs.of(label_map)
    below = runs.below()
    face = runs.faces(below)
    area = np.bincount(face, weights=runs.lengths).astype(np.int64)
    small = area < min_area
    if not small.any():
        return label_map.astype(np.int32, copy=True)
    label_of = np.zeros(len(area), dtype=np.int64)
    label_of[face] = runs.values
    merged = _merged_labels(area, label_of, _borders(runs, below, face, small), min_area)
    return np.repeat(merged[face].astype(np.int32), runs.lengths).reshape(label_map.shape)


@dataclass(frozen=True)
class _Runs:
    """A label map as pieces of its rows of equal value, which are far fewer than its pixels.

    Attributes:
        begins: bool ``[H, W]``, whether one begins at a pixel.
        starts: int64 ``[R]``, the same pixels, counted in reading order.
        lengths: int64 ``[R]``.
        values: ``[R]``.
    """

    begins: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    values: NDArray[np.int32]

    @classmethod
    def of(cls, label_map: NDArray[np.int32]) -> _Runs:
        begins = np.ones(label_map.shape, dtype=bool)
        np.not_equal(label_map[:, 1:], label_map[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        return cls(begins, starts, np.diff(starts, append=label_map.size), label_map.ravel()[starts])

    def below(self) -> _Pairs:
        """Runs of neighboring rows that touch, and along how many pixels."""
        upper, lower = self.begins[:-1].ravel(), self.begins[1:].ravel()
        # Where either row begins a run, a touch begins.
        at = np.flatnonzero(upper | lower)
        first = np.count_nonzero(self.begins[0])
        lengths = np.diff(at, append=len(upper))
        return np.cumsum(upper[at]) - 1, np.cumsum(lower[at]) - 1 + first, lengths

    def beside(self) -> _Pairs:
        """Runs that follow each other in a row, which touch along one pixel."""
        one = np.flatnonzero(self.starts[1:] % self.begins.shape[1])
        return one, one + 1, np.ones(len(one), dtype=np.int64)

    def faces(self, below: _Pairs) -> NDArray[np.int64]:
        """The 4-connected piece of each run, numbered from 0 in reading order."""
        one, other, _ = below
        same = self.values[one] == self.values[other]
        count, joined = len(self.starts), other[same]
        # Pairs come in the order of their first runs, as the rows of such a matrix are stored.
        begins = np.concatenate([[0], np.cumsum(np.bincount(one[same], minlength=count))])
        graph = csr_array((np.ones(len(joined)), joined, begins), shape=(count, count))
        pieces, face = connected_components(graph, directed=False)
        first = np.empty(pieces, dtype=np.int64)
        # Of several the last is kept, which is each piece's first.
        first[face[::-1]] = np.arange(count)[::-1]
        rank = np.empty(pieces, dtype=np.int64)
        rank[np.argsort(first)] = np.arange(pieces)
        return rank[face]


_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def _borders(
    runs: _Runs, below: _Pairs, face: NDArray[np.int64], small: NDArray[np.bool_]
) -> dict[int, dict[int, int]]:
    """Pixel edges that each small face shares with each of its neighbors."""
    sides = []
    for one_run, other_run, length in (below, runs.beside()):
        one, other = face[one_run], face[other_run]
        at = (one != other) & (small[one] | small[other])
        sides += [(one[at], other[at], length[at]), (other[at], one[at], length[at])]
    own, neighbor, edges = (np.concatenate(each) for each in zip(*sides, strict=True))
    key, place = np.unique(own * len(small) + neighbor, return_inverse=True)
    lengths = np.bincount(place, weights=edges).astype(np.int64)
    wanted = small[key // len(small)]
    key, lengths = key[wanted], lengths[wanted]
    borders: dict[int, dict[int, int]] = defaultdict(dict)
    for inside, outside, count in zip(
        (key // len(small)).tolist(), (key % len(small)).tolist(), lengths.tolist(), strict=True
    ):
        borders[inside][outside] = count
    return borders


def _merged_labels(
    area: NDArray[np.int64], label_of: NDArray[np.int64], borders: dict[int, dict[int, int]], min_area: int
) -> NDArray[np.int64]:
    """The label of each face once all small ones have joined their surroundings."""
    labels, areas = label_of.tolist(), area.tolist()
    parent = list(range(len(areas)))

    def root(face: int) -> int:
        while parent[face] != face:
            parent[face] = parent[parent[face]]
            face = parent[face]
        return face

    queue = [(areas[face], face) for face in borders]
    heapify(queue)
    while queue:
        size, face = heappop(queue)
        # Entries of faces that have joined another, or grown since, are out of date.
        if parent[face] != face or areas[face] != size or size >= min_area:
            continue
        around: dict[int, int] = {}
        for other, length in borders.pop(face).items():
            if root(other) != face:
                around[root(other)] = around.get(root(other), 0) + length
        if not around:
            continue
        by_label: dict[int, int] = defaultdict(int)
        for other, length in around.items():
            by_label[labels[other]] += length
        label = min(by_label, key=lambda one: (-by_label[one], one))
        joined = [other for other in around if labels[other] == label]
        # The first in reading order stands for all of them.
        target, whole = min(face, *joined), sum(areas[other] for other in joined) + size
        if whole < min_area:
            for other in joined:
                for beyond, length in borders.pop(other).items():
                    around[beyond] = around.get(beyond, 0) + length
            borders[target] = around
            heappush(queue, (whole, target))
        for other in (face, *joined):
            parent[other] = target
        areas[target], labels[target] = whole, label
    return np.asarray([labels[root(face)] for face in range(len(parent))])
