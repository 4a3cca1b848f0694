"""Which lines of a drawing meet, and which moves of vertices keep it as it is connected, decided in whole numbers."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.drawing import UNITS, Drawing

__all__ = ["crossing_lines", "in_triangle", "line_tree", "meet", "near_lines", "whole"]


_CELL = 16  # pixels


def whole(place: NDArray[np.float64]) -> NDArray[np.int64]:
    """Coordinates in steps."""
    return np.rint(place * UNITS).astype(np.int64)


def line_tree(start: NDArray[np.float64], end: NDArray[np.float64]) -> shapely.STRtree:
    """Index of the lines from ``start`` to ``end`` (float64 ``[R, 2]``) by their boxes."""
    return shapely.STRtree(shapely.linestrings(np.stack([start, end], axis=1)))


def near_lines(
    tree: shapely.STRtree, low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a box (``low`` to ``high``, float64 ``[B, 2]``) and a line of the tree whose box meets it."""
    # A diagonal has the box as its own, and is made faster than a polygon.
    box, line = tree.query(shapely.linestrings(np.stack([low, high], axis=1)))
    return box, line


def _turn(a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int64]:
    """Twice the signed area of triangles."""
    return np.asarray(
        (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0]), dtype=np.int64
    )


def meet(
    place: NDArray[np.int64],
    head: NDArray[np.int64],
    tail: NDArray[np.int64],
    one: NDArray[np.int64],
    two: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether pairs of lines meet anywhere but in a vertex that they have in common.

    Args:
        place: int64 ``[V, 2]`` in steps.
        head: int64 ``[R]``, vertex where each line begins.
        tail: int64 ``[R]``, vertex where it ends.
        one: int64 ``[P]``, a line of each pair.
        two: int64 ``[P]``, the other.

    Returns:
        Bool ``[P]``.
    """
    a, b, c, d = place[head[one]], place[tail[one]], place[head[two]], place[tail[two]]
    abc, abd, cda, cdb = (np.sign(_turn(*three)) for three in ((a, b, c), (a, b, d), (c, d, a), (c, d, b)))
    apart = (abc * abd > 0) | (cda * cdb > 0)
    for axis in (0, 1):
        apart |= np.maximum(a[:, axis], b[:, axis]) < np.minimum(c[:, axis], d[:, axis])
        apart |= np.maximum(c[:, axis], d[:, axis]) < np.minimum(a[:, axis], b[:, axis])
    result = ~apart
    # With one vertex in common they meet there; they meet elsewhere where one lies on the other.
    for i, other_i in ((head, tail), (tail, head)):
        for j, other_j in ((head, tail), (tail, head)):
            common = np.flatnonzero(i[one] == j[two])
            base = place[i[one[common]]]
            arm_i, arm_j = place[other_i[one[common]]] - base, place[other_j[two[common]]] - base
            straight = arm_i[:, 0] * arm_j[:, 1] == arm_i[:, 1] * arm_j[:, 0]
            result[common] = straight & ((arm_i * arm_j).sum(axis=1) > 0)
    same_ends = ((head[one] == head[two]) & (tail[one] == tail[two])) | (
        (head[one] == tail[two]) & (tail[one] == head[two])
    )
    return np.asarray(result | same_ends)


def crossing_lines(drawing: Drawing, changed: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Bool ``[R]``: lines that meet another line anywhere but in a common end, or have no length.

    Args:
        drawing: the lines.
        changed: bool ``[R]``, only crossings of these lines with any are looked for; ``None`` = all.
    """
    head, tail = drawing.ends()
    start, end = drawing.place[head], drawing.place[tail]
    asked = np.arange(len(head)) if changed is None else np.flatnonzero(changed)
    result = np.zeros(len(head), dtype=bool)
    if len(asked) == 0:
        return result
    low, high = np.minimum(start, end), np.maximum(start, end)
    near = np.arange(len(head)) if changed is None else np.flatnonzero(_near_some(low, high, asked, drawing.graph.size))
    box, two = near_lines(line_tree(start[near], end[near]), low[asked], high[asked])
    one, two = asked[box], near[two]
    kept = one < two if changed is None else one != two
    one, two = one[kept], two[kept]
    crossed = meet(whole(drawing.place), head, tail, one, two)
    result[one[crossed]] = result[two[crossed]] = True
    result[asked] |= (start == end).all(axis=1)[asked]
    return result


def _near_some(
    low: NDArray[np.float64], high: NDArray[np.float64], asked: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Boxes that may meet one of those that are asked for: both touch one cell of a coarse grid. Bool ``[R]``."""
    first, last = (low // _CELL).astype(np.int64), (high // _CELL).astype(np.int64) + 1
    grid = np.zeros((size[0] // _CELL + 3, size[1] // _CELL + 3), dtype=np.int64)
    # Corners of the boxes' cells, summed up along both axes, count the boxes that touch each cell.
    for y, x, sign in ((first, first, 1), (first, last, -1), (last, first, -1), (last, last, 1)):
        np.add.at(grid, (y[asked, 1], x[asked, 0]), sign)
    touched = grid.cumsum(axis=0).cumsum(axis=1) > 0
    total = np.pad(touched, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    (left, top), (right, bottom) = first.T, last.T
    return np.asarray(total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left] > 0)


def in_triangle(
    a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64], point: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether points lie in triangles, borders included; all int64 ``[P, 2]`` in steps."""
    ab, bc, ca = _turn(a, b, point), _turn(b, c, point), _turn(c, a, point)
    inside = ((ab >= 0) & (bc >= 0) & (ca >= 0)) | ((ab <= 0) & (bc <= 0) & (ca <= 0))
    for axis in (0, 1):
        corners = np.stack([a[:, axis], b[:, axis], c[:, axis]])
        inside &= (point[:, axis] >= corners.min(axis=0)) & (point[:, axis] <= corners.max(axis=0))
    return np.asarray(inside)
