"""Move the vertices of a fitted coverage so that fewer pixels are misplaced.

Least squares puts a line where it is nearest to the staircase on average; what counts in the end is on which side
of it each pixel center lies. So lines with a misplaced pixel beside them are pushed past its center by one of
their ends, and a push is kept where it corrects more pixels than it misplaces.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.crossings import near_lines
from tcl_core.polygons.drawing import Drawing, snap
from tcl_core.polygons.misplaced import Misplaced, RowCrossings, find_misplaced
from tcl_core.polygons.moves import Lines, allowed_shifts, apart, shift_sweeps
from tcl_core.polygons.run_map import RunMap

__all__ = ["refine_vertices"]

_MARGIN = 0.06  # pixels by which a line passes a center, more than pycocotools rounds by on average
_BESIDE = 1.0  # pixels around a pixel in which a line is looked for that no row of centers crosses beside it
_STEP = 0.9  # pixels a vertex may move in one push
_FARTHEST = 1.5  # pixels a vertex may move in all
_TRIES = 4  # pushes of a vertex that are counted out in one round
_ENOUGH = 0.02  # the last rounds that correct less than this share of the misplaced pixels are not worth their time


def refine_vertices(
    drawing: Drawing,
    edges: RowCrossings,
    faces: RunMap,
    misplaced: Misplaced | None,
    rounds: int,
    movable: NDArray[np.bool_] | None = None,
) -> Misplaced:
    """Reduce the number of misplaced pixels without adding a vertex.

    Args:
        drawing: a valid coverage, whose vertices are moved; it stays valid.
        edges: of the graph, from :func:`tcl_core.polygons.misplaced.edge_crossings`.
        faces: the face of each pixel.
        misplaced: what the drawing misplaces now; ``None`` = to be found.
        rounds: the most that are made.
        movable: bool ``[V]``, vertices that may move; ``None`` = all that are not held.

    Returns:
        What is still misplaced.
    """
    lines = Lines.of(drawing, _FARTHEST)
    begin = drawing.place.copy()
    free = ~drawing.held if movable is None else movable & ~drawing.held
    rng = np.random.default_rng(0)
    if misplaced is None:
        misplaced = find_misplaced(drawing, edges)
    for _ in range(rounds):
        vertex, target = _pushes(drawing, lines, misplaced, free, rng)
        target = drawing.clip(target, vertex)
        ok = (np.hypot(*(target - begin[vertex]).T) <= _FARTHEST) & (target != drawing.place[vertex]).any(axis=1)
        vertex, target = vertex[ok], target[ok]
        gain = shift_sweeps(drawing, lines, vertex, target).gains(faces, len(vertex))
        better = np.flatnonzero(gain < 0)
        if len(better) == 0:
            continue
        better = better[np.lexsort((gain[better], vertex[better]))]
        better = better[np.append(True, np.diff(vertex[better]) > 0)]
        rank = np.full(len(drawing.place), np.inf)
        rank[vertex[better]] = gain[better] + 0.9 * rng.permutation(len(better)) / len(better)
        chosen = better[apart(rank, lines.head, lines.tail)[vertex[better]]]
        chosen = chosen[allowed_shifts(drawing, lines, vertex[chosen], target[chosen])]
        drawing.place[vertex[chosen]] = target[chosen]
        total = misplaced.length.sum()
        misplaced = find_misplaced(drawing, edges)
        if total - misplaced.length.sum() < _ENOUGH * total:
            break
    return misplaced


def _pushes(
    drawing: Drawing, lines: Lines, misplaced: Misplaced, free: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Vertices and places to which they might go, several for one vertex."""
    column = misplaced.column + np.floor(rng.random(len(misplaced.row)) * misplaced.length)
    center = np.stack([column, misplaced.row], axis=1) + 0.5
    span, side = np.nonzero(misplaced.lines >= 0)
    line = misplaced.lines[span, side]
    # A line that runs along a row does not cross it beside the pixels that it misplaces.
    alone = np.flatnonzero((misplaced.lines < 0).all(axis=1))
    lone, beside = near_lines(lines.tree, center[alone] - _BESIDE, center[alone] + _BESIDE)
    line, center = np.concatenate([line, beside]), np.concatenate([center[span], center[alone[lone]]])
    by_head = np.repeat([True, False], len(line))
    line, center = np.tile(line, 2), np.tile(center, (2, 1))
    mover = np.where(by_head, lines.head[line], lines.tail[line])
    other = np.where(by_head, lines.tail[line], lines.head[line])
    ok = free[mover]
    mover, other, center = mover[ok], other[ok], center[ok]
    chord = drawing.place[mover] - drawing.place[other]
    length = np.maximum(np.hypot(chord[:, 0], chord[:, 1]), 1e-9)
    normal = np.stack([-chord[:, 1], chord[:, 0]], axis=1) / length[:, None]
    offset = center - drawing.place[other]
    across = (offset * normal).sum(axis=1)
    lever = (offset * chord).sum(axis=1) / length**2
    step = (across + np.sign(across) * _MARGIN) / np.maximum(lever, 1e-9)
    ok = (lever > 0.1) & (np.abs(step) <= _STEP)
    mover, target = mover[ok], snap((drawing.place[mover] + normal * step[:, None])[ok])
    shuffled = rng.permutation(len(mover))
    shuffled = shuffled[np.argsort(mover[shuffled], kind="stable")]
    sorted_movers = mover[shuffled]
    try_number = np.arange(len(mover)) - np.searchsorted(sorted_movers, sorted_movers)
    kept = shuffled[try_number < _TRIES]
    return mover[kept], target[kept]
