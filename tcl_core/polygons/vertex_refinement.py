"""Move the vertices of a fitted coverage so that fewer pixels are misplaced.

Least squares puts a line where it is nearest to the staircase on average; what counts in the end is on which side
of it each pixel center lies. So lines with a misplaced pixel beside them are pushed past its center by one of
their ends, and a push is kept where it corrects more pixels than it misplaces.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.arcs import EdgeGraph
from tcl_core.polygons.coverage_check import crossing_lines
from tcl_core.polygons.rasterize import partition_of_arcs
from tcl_core.polygons.simplify import FittedArcs

__all__ = ["refine_vertices"]

_ROUNDS = 30
_BESIDE = 1.5  # pixels between a line and a misplaced pixel's center that it may be pushed past
_MARGIN = 0.06  # pixels by which it passes the center, more than pycocotools rounds by on average
_STEP = 0.9  # pixels a vertex may move in one push
_FARTHEST = 1.5  # pixels a vertex may move in all


def refine_vertices(
    graph: EdgeGraph, fitted: FittedArcs, faces: NDArray[np.int64], loose: NDArray[np.bool_]
) -> FittedArcs:
    """Reduce the number of misplaced pixels without adding a vertex.

    Args:
        graph: the arcs and faces.
        fitted: a coverage; where lines of it cross, they are left to others.
        faces: int64 ``[H, W]``, the face of each pixel.
        loose: bool ``[A]``, arcs whose vertices may move; a vertex on the frame or on another arc stays.

    Returns:
        The same arcs with moved vertices, with no crossing that was not there before.
    """
    arc = np.repeat(np.arange(len(graph.left)), np.diff(fitted.starts))
    home, vertex = np.unique(fitted.points, axis=0, return_inverse=True)
    vertex = vertex.ravel()
    free = np.ones(len(home), dtype=bool)
    free[vertex[~loose[arc]]] = False
    inside = np.ones(len(arc) - 1, dtype=bool)
    inside[fitted.starts[1:-1] - 1] = False
    head, tail = vertex[:-1][inside], vertex[1:][inside]
    rng = np.random.default_rng(0)
    placed = home.copy()
    drawn = partition_of_arcs(graph, fitted)
    crossed = crossing_lines(fitted)
    for _ in range(_ROUNDS):
        row, column = np.nonzero(drawn != faces)
        moved = _pushes(placed, head, tail, free, np.stack([column, row], axis=1).astype(np.float64) + 0.5, rng)
        far = np.hypot(*(moved - home).T)
        moved[far > _FARTHEST] = placed[far > _FARTHEST]
        pushed = np.flatnonzero((moved != placed).any(axis=1))
        if len(pushed) == 0:
            break
        after = partition_of_arcs(graph, FittedArcs(moved[vertex], fitted.starts))
        gain = _gains(placed, moved, head, tail, drawn, after, faces)
        moved[gain >= 0] = placed[gain >= 0]
        while True:
            now = FittedArcs(moved[vertex], fitted.starts)
            crossing = crossing_lines(now) & ~crossed
            ends = np.concatenate([head[crossing], tail[crossing]])
            ends = ends[(moved[ends] != placed[ends]).any(axis=1)]
            if len(ends) == 0:
                break
            moved[ends] = placed[ends]
        placed = moved
        drawn = partition_of_arcs(graph, now)
    return FittedArcs(placed[vertex], fitted.starts)


def _pushes(
    placed: NDArray[np.float64],
    head: NDArray[np.int64],
    tail: NDArray[np.int64],
    free: NDArray[np.bool_],
    misplaced: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Proposed places of all vertices, no two moved ones joined by a line."""
    moved = placed.copy()
    if len(misplaced) == 0:
        return moved
    tree = shapely.STRtree(shapely.linestrings(np.stack([placed[head], placed[tail]], axis=1)))
    pixel, line = tree.query(shapely.points(misplaced), predicate="dwithin", distance=_BESIDE)
    if len(pixel) == 0:
        return moved
    end = rng.random(len(pixel)) < 0.5
    mover, other = np.where(end, head[line], tail[line]), np.where(end, tail[line], head[line])
    chord = placed[mover] - placed[other]
    length = np.maximum(np.hypot(chord[:, 0], chord[:, 1]), 1e-9)
    normal = np.stack([-chord[:, 1], chord[:, 0]], axis=1) / length[:, None]
    offset = misplaced[pixel] - placed[other]
    across = (offset * normal).sum(axis=1)
    lever = (offset * chord).sum(axis=1) / length**2
    step = (across + np.sign(across) * _MARGIN) / np.maximum(lever, 1e-9)
    ok = free[mover] & (lever > 0.1) & (np.abs(step) <= _STEP)
    mover, shift = mover[ok], (normal * step[:, None])[ok]
    order = rng.permutation(len(mover))
    proposal = np.full(len(placed), -1)
    proposal[mover[order]] = order  # one of a vertex's proposals
    rank = np.where(proposal >= 0, rng.random(len(placed)), np.inf)
    lowest = np.full(len(placed), np.inf)
    np.minimum.at(lowest, head, rank[tail])
    np.minimum.at(lowest, tail, rank[head])
    chosen = np.flatnonzero((proposal >= 0) & (rank < lowest))
    moved[chosen] += shift[proposal[chosen]].round(3)
    return moved


def _gains(
    placed: NDArray[np.float64],
    moved: NDArray[np.float64],
    head: NDArray[np.int64],
    tail: NDArray[np.int64],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    faces: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Misplaced pixels that each vertex's move adds (negative: corrects)."""
    gain = np.zeros(len(placed), dtype=np.int64)
    row, column = np.nonzero(before != after)
    if len(row) == 0:
        return gain
    change = (after[row, column] != faces[row, column]).astype(np.int64)
    change -= before[row, column] != faces[row, column]
    shifted = (moved != placed).any(axis=1)
    which = np.concatenate([np.flatnonzero(shifted[head]), np.flatnonzero(shifted[tail])])
    mover = np.where(np.arange(len(which)) < np.count_nonzero(shifted[head]), head[which], tail[which])
    other = head[which] + tail[which] - mover
    swept = shapely.polygons(np.stack([placed[other], placed[mover], moved[mover]], axis=1))
    pixel, triangle = shapely.STRtree(swept).query(
        shapely.points(column + 0.5, row + 0.5), predicate="dwithin", distance=1e-6
    )
    pair = np.unique(mover[triangle] * len(row) + pixel)
    np.add.at(gain, pair // len(row), change[pair % len(row)])
    return gain
