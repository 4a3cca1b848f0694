"""Specks: pieces of a label map too small to mean anything join what surrounds them."""

from __future__ import annotations

from collections import defaultdict
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.arcs import faces_of

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
    result = label_map.astype(np.int32, copy=True)
    if min_area <= 1 or not result.size:
        return result
    faces = faces_of(result)
    area = np.bincount(faces.ravel())
    small = area < min_area
    if not small[1:].any():
        return result
    label_of = np.zeros(len(area), dtype=np.int64)
    label_of[faces] = result
    merged = _merged_labels(area, label_of, _borders(faces, small), min_area)
    return merged[faces].astype(np.int32)


def _borders(faces: NDArray[np.int64], small: NDArray[np.bool_]) -> dict[int, dict[int, int]]:
    """Pixel edges that each small face shares with each of its neighbors."""
    pairs = []
    for one, other in ((faces[:, 1:], faces[:, :-1]), (faces[1:], faces[:-1])):
        at = (one != other) & (small[one] | small[other])
        pairs += [(one[at], other[at]), (other[at], one[at])]
    own, neighbor = (np.concatenate(side).astype(np.int64) for side in zip(*pairs, strict=True))
    key, lengths = np.unique(own[small[own]] * len(small) + neighbor[small[own]], return_counts=True)
    borders: dict[int, dict[int, int]] = defaultdict(dict)
    for face, other, length in zip(
        (key // len(small)).tolist(), (key % len(small)).tolist(), lengths.tolist(), strict=True
    ):
        borders[face][other] = length
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
