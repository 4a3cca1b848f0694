"""Specks: pieces of a label map too small to mean anything join what surrounds them."""

from __future__ import annotations

from collections import defaultdict
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.run_map import Pairs, RunMap

__all__ = ["absorb_small", "absorb_small_pieces"]


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
    runs = RunMap.of(label_map)
    merged = absorb_small_pieces(runs, min_area)
    if merged is runs:
        return label_map.astype(np.int32, copy=True)
    return np.repeat(merged.values.astype(np.int32), merged.lengths).reshape(label_map.shape)


def absorb_small_pieces(label_map: RunMap, min_area: int) -> RunMap:
    """`absorb_small` of a label map that is known by its runs; the same map where nothing is small."""
    if min_area <= 1 or not len(label_map.starts):
        return label_map
    below = label_map.below()
    face = label_map.pieces(below)
    area = np.bincount(face, weights=label_map.lengths).astype(np.int64)
    small = area < min_area
    if not small.any():
        return label_map
    label_of = np.zeros(len(area), dtype=np.int64)
    label_of[face] = label_map.values
    merged = _merged_labels(area, label_of, _borders(label_map, below, face, small), min_area)
    return label_map.with_values(merged[face])


def _borders(
    runs: RunMap, below: Pairs, face: NDArray[np.int64], small: NDArray[np.bool_]
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
