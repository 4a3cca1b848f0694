"""Take vertices out of a valid coverage, a few at a time, so that it stays valid.

A vertex between two lines goes if the triangle that they make with the new line holds no other vertex, if that
misplaces few pixels more than it corrects, and if no region loses more than it may. What the triangle holds is counted
exactly. Nothing is ever put back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.coverage_check import CoverageCheck
from tcl_core.polygons.crossings import in_triangle, near_lines, whole
from tcl_core.polygons.drawing import Drawing
from tcl_core.polygons.misplaced import Misplaced, RowCrossings
from tcl_core.polygons.moves import Lines, Sweeps, within_budget
from tcl_core.polygons.vertex_refinement import refine_vertices

__all__ = ["coarsen", "remove_vertices"]

_WORTH = 1.0  # pixels that one vertex less may misplace at a tolerance of one pixel
_GROWTH = 2.0  # power of the tolerance that it grows with
_STEP = 1.5  # it grows by degrees, so that vertices that cost least go first
_PASSES = 2
_COUNTED = 4.0  # a triangle of so many times the pixels that it may misplace can be balanced


def coarsen(
    drawing: Drawing, check: CoverageCheck, edges: RowCrossings, misplaced: Misplaced, refinements: int
) -> Misplaced:
    """Remove what vertices the tolerance can spare.

    Args:
        drawing: a valid coverage, which stays valid.
        check: the tolerance, and what regions may lose.
        edges: of the pixel edges.
        misplaced: what the drawing misplaces now.
        refinements: rounds of refinement after each step.

    Returns:
        What it misplaces at the end.
    """
    worth, most = _WORTH * min(check.pixels, 1.0), _WORTH * max(check.pixels, check.pixels**_GROWTH)
    while True:
        for _ in range(_PASSES if most > worth or check.pixels > 1 else 1):
            if remove_vertices(drawing, check, misplaced, worth) == 0:
                break
            misplaced = refine_vertices(drawing, edges, check.faces, None, refinements)
        if worth >= most:
            return misplaced
        worth = min(worth * _STEP, most)


def remove_vertices(
    drawing: Drawing, check: CoverageCheck, misplaced: Misplaced, pixels: float
) -> int:
    """Remove vertices that misplace at most ``pixels`` more pixels each, once over the image.

    Args:
        drawing: a valid coverage, which stays valid.
        check: what regions may lose.
        misplaced: what the drawing misplaces now.
        pixels: the most that one vertex less may cost.

    Returns:
        How many are removed.
    """
    lines = Lines.of(drawing, 0.0)
    runs, graph = drawing.runs, drawing.graph
    first = np.flatnonzero((runs.arc[1:] == runs.arc[:-1]) & ~drawing.held[lines.tail[:-1]])
    a, v, b = lines.head[first], lines.tail[first], lines.tail[first + 1]
    chord, step = drawing.place[b] - drawing.place[v], drawing.place[a] - drawing.place[v]
    area = np.abs(chord[:, 0] * step[:, 1] - chord[:, 1] * step[:, 0]) / 2
    length = np.maximum(np.hypot(*(drawing.place[b] - drawing.place[a]).T), 1e-9)
    along = ((drawing.place[v] - drawing.place[a]) * (drawing.place[b] - drawing.place[a])).sum(axis=1) / length
    beyond = np.maximum(np.maximum(-along, along - length), 0)
    # Triangles much larger than what may be misplaced need not be counted out.
    small = (area <= _COUNTED * (pixels + 1)) & (np.hypot(2 * area / length, beyond) <= check.pixels)
    first, a, v, b, area = first[small], a[small], v[small], b[small], area[small]
    if len(first) == 0:
        return 0
    corners = (drawing.place[v], drawing.place[b], drawing.place[a])
    left, right = lines.left[first], lines.right[first]
    sweeps = Sweeps.of_triangles(np.arange(len(first)), corners, left, right, graph.size)
    flat = check.faces.ravel()
    gain = sweeps.gains(flat, len(first))
    rank = np.where(gain <= pixels, gain + 0.5 * area / area.max(initial=1.0) + 1e-6 * np.arange(len(first)), np.inf)
    rank[~_empty(drawing, lines, a, v, b)] = np.inf
    claimed = np.full(len(drawing.home), np.inf)
    for vertex in (a, v, b):
        np.minimum.at(claimed, vertex, rank)
    chosen = np.isfinite(rank) & (rank <= claimed[a]) & (rank <= claimed[v]) & (rank <= claimed[b])
    order = np.full(len(first), np.inf)
    order[chosen] = rank[chosen]
    chosen &= within_budget(order, *check.loads(sweeps, flat), check.room(misplaced))
    order[~chosen] = np.inf
    chosen &= _keeps_rings(drawing, first, order)
    drawing.join_lines(first[chosen])
    return int(np.count_nonzero(chosen))


def _empty(
    drawing: Drawing, lines: Lines, a: NDArray[np.int64], v: NDArray[np.int64], b: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the triangles of three vertices each hold no other vertex."""
    place = whole(drawing.place)
    three = np.stack([drawing.place[a], drawing.place[v], drawing.place[b]])
    triangle, line = near_lines(lines.tree, three.min(axis=0), three.max(axis=0))
    result = np.ones(len(a), dtype=bool)
    for end in (lines.head[line], lines.tail[line]):
        foreign = (end != a[triangle]) & (end != v[triangle]) & (end != b[triangle])
        t, e = triangle[foreign], end[foreign]
        result[t[in_triangle(place[a[t]], place[v[t]], place[b[t]], place[e])]] = False
    return result


def _keeps_rings(drawing: Drawing, first: NDArray[np.int64], order: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether every ring keeps three lines, if vertices go in this order; bool, one for each vertex."""
    graph = drawing.graph
    rings = np.full((len(graph.left), 2), -1)
    ring = np.repeat(np.arange(len(graph.ring_faces)), np.diff(graph.ring_starts))
    rings[graph.ring_arcs // 2, graph.ring_arcs % 2] = ring
    beside = rings[drawing.runs.arc[first]]
    move, side = np.nonzero(beside >= 0)
    spare = drawing.lines_of_ring() - 3.0
    return within_budget(order, move, beside[move, side], np.ones(len(move)), spare)
