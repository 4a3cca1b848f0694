"""Take vertices out of a valid coverage, a few at a time, so that it stays valid.

Two lines become one: the best line through the pixel edges of both, ending where it meets the lines before and after,
or simply the line between the ends that they have. That is done if what it sweeps over holds no other vertex, if the
new lines meet no others, if it misplaces few pixels more than it corrects, which is counted exactly, and if no region
loses more than it may. Nothing is ever put back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.coverage_check import CoverageCheck
from tcl_core.polygons.crossings import in_triangle, line_tree, meet, near_lines, whole
from tcl_core.polygons.drawing import Drawing
from tcl_core.polygons.misplaced import Misplaced, RowCrossings
from tcl_core.polygons.moves import Lines, Sweeps, within_budget
from tcl_core.polygons.simplify import best_lines
from tcl_core.polygons.vertex_refinement import refine_vertices

__all__ = ["coarsen", "remove_vertices"]

_WORTH = 2.0  # pixels that one vertex less may misplace at a tolerance of one pixel
_GROWTH = 1.8  # power of the tolerance that it grows with
_STEP = 1.5  # it grows by degrees, so that vertices that cost least go first
_PASSES = 2
_COUNTED = 4.0  # a triangle of so many times the pixels that it may misplace can be balanced
_FARTHEST = 1.5  # pixels that a vertex beside may move, or the tolerance
_FLATTEST = 0.1  # sine of the angle between lines whose intersection is a vertex


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
        for _ in range(_PASSES if check.pixels > 1 else 1):
            if remove_vertices(drawing, check, misplaced, worth) == 0:
                break
            misplaced = refine_vertices(drawing, edges, check.faces, None, refinements)
        if worth >= most:
            return misplaced
        worth = min(worth * _STEP, most)


@dataclass(frozen=True)
class _Joins:
    """Ways to make one line of two, ``p`` to ``n`` being the vertices around: lines p-a, a-v, v-b, b-n.

    Attributes:
        line: int64 ``[M]``, the first of the two lines.
        vertices: int64 ``[M, 5]``, p, a, v, b, n; -1 for p where a stays, for n where b stays.
        place: float64 ``[M, 5, 2]``, where they are; a's and b's for p and n that are -1.
        new: float64 ``[M, 2, 2]``, where a and b go.
    """

    line: NDArray[np.int64]
    vertices: NDArray[np.int64]
    place: NDArray[np.float64]
    new: NDArray[np.float64]

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> _Joins:
        return _Joins(self.line[which], self.vertices[which], self.place[which], self.new[which])

    def triangles(self) -> tuple[NDArray[np.float64], ...]:
        """Where lines begin, end and will begin, in order, while a moves, then b, then v to a; ``[M, 5, 2]`` each."""
        p, a, v, b, n = self.place.transpose(1, 0, 2)
        new_a, new_b = self.new.transpose(1, 0, 2)
        head = np.stack([a, a, b, b, v], axis=1)
        tail = np.stack([p, v, v, n, new_b], axis=1)
        new = np.stack([new_a, new_a, new_b, new_b, new_a], axis=1)
        return head, tail, new


# Lines p-a and v-b end in the vertex that moves: seen from there their sides are exchanged.
_EXCHANGED = np.array([True, False, True, False, False])


def remove_vertices(drawing: Drawing, check: CoverageCheck, misplaced: Misplaced, pixels: float) -> int:
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
    joins = _candidates(drawing, lines, check.pixels, pixels)
    count = len(joins.line)
    if count == 0:
        return 0
    head, tail, new = (corner.reshape(-1, 2) for corner in joins.triangles())
    left, right = np.repeat(lines.left[joins.line], 5), np.repeat(lines.right[joins.line], 5)
    exchanged = np.tile(_EXCHANGED, count)
    left, right = np.where(exchanged, right, left), np.where(exchanged, left, right)
    move = np.repeat(np.arange(count), 5)
    real = (new != head).any(axis=1)
    corners = (head[real], tail[real], new[real])
    sweeps = Sweeps.of_triangles(move[real], corners, left[real], right[real], drawing.graph.size)
    gain = sweeps.gains(check.faces, count)
    rank = np.where(
        gain <= pixels * check.breadth()[drawing.runs.arc[joins.line]], gain + np.arange(count) / count, np.inf
    )
    index = np.flatnonzero(np.isfinite(rank))
    rank[index[~_free(drawing, lines, joins.select(index))]] = np.inf
    rank[~_first_of_all(rank, joins.vertices, len(drawing.home))] = np.inf
    rank[~within_budget(rank, *check.loads(sweeps), check.room(misplaced))] = np.inf
    rank[~_keeps_rings(drawing, joins.line, rank)] = np.inf
    rank[~_keeps_boxes(drawing, check, joins, rank)] = np.inf
    index = np.flatnonzero(np.isfinite(rank))
    index = index[np.argsort(rank[index])]
    chosen = joins.select(index[_apart(joins.select(index))])
    for side, column in ((0, 1), (1, 3)):
        drawing.place[chosen.vertices[:, column]] = chosen.new[:, side]
    drawing.join_lines(chosen.line)
    return len(chosen.line)


def _candidates(drawing: Drawing, lines: Lines, tolerance: float, pixels: float) -> _Joins:
    """Every vertex between two lines that might go, in both ways."""
    runs, count = drawing.runs, len(drawing.runs.arc)
    spare = (runs.arc[1:] == runs.arc[:-1]) & (runs.price[1:] > 0) & ~drawing.held[lines.tail[:-1]]
    first = np.flatnonzero(spare)
    a, v, b = lines.head[first], lines.tail[first], lines.tail[first + 1]
    mean, direction = best_lines(runs, first)
    # Where a and b may move: they are no nodes, so that exactly one line comes before and one after.
    previous, following = lines.other_line(a, first), lines.other_line(b, first + 1)
    moves_a = ~drawing.is_node[a] & ~drawing.held[a]
    moves_b = ~drawing.is_node[b] & ~drawing.held[b]
    moves_a &= previous != first + 1
    moves_b &= following != first
    p = np.where(moves_a, lines.head[previous.clip(0, count - 1)], -1)
    n = np.where(moves_b, lines.tail[following.clip(0, count - 1)], -1)
    around = np.stack([np.where(p < 0, a, p), a, v, b, np.where(n < 0, b, n)], axis=1)
    vertices = np.stack([p, a, v, b, n], axis=1)
    old = drawing.place[around]
    reach = max(_FARTHEST, tolerance)
    new = np.stack([old[:, 1], old[:, 3]], axis=1)
    for side, (inner, outer, moves) in enumerate(((1, 0, moves_a), (3, 4, moves_b))):
        target = _meeting_point(old[:, outer], old[:, inner], mean, direction)
        ok = moves & (np.hypot(*(target - old[:, inner]).T) <= reach)
        index = np.flatnonzero(ok)
        new[index, side] = drawing.clip(target[index], vertices[index, inner])
    plain = vertices.copy()
    plain[:, [0, 4]] = -1
    stays = np.stack([old[:, 1], old[:, 3]], axis=1)
    plain_place = np.stack([old[:, 1], old[:, 1], old[:, 2], old[:, 3], old[:, 3]], axis=1)
    moved = (new != stays).any(axis=(1, 2)) & (p != n)
    joins = _Joins(
        np.concatenate([first, first[moved]]),
        np.concatenate([plain, vertices[moved]]),
        np.concatenate([plain_place, old[moved]]),
        np.concatenate([stays, new[moved]]),
    )
    chord = joins.new[:, 1] - joins.new[:, 0]
    offset = joins.place[:, 2] - joins.new[:, 0]
    length = np.maximum(np.hypot(*chord.T), 1e-9)
    across = np.abs(chord[:, 0] * offset[:, 1] - chord[:, 1] * offset[:, 0]) / length
    along = (chord * offset).sum(axis=1) / length
    beyond = np.maximum(np.maximum(-along, along - length), 0)
    # Triangles much larger than what may be misplaced need not be counted out.
    small = (across * length / 2 <= _COUNTED * (pixels + 1)) & (np.hypot(across, beyond) <= tolerance)
    return joins.select(small)


def _meeting_point(
    outer: NDArray[np.float64], inner: NDArray[np.float64], mean: NDArray[np.float64], direction: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where the line from ``outer`` to ``inner`` meets another one; the point nearest to ``inner`` if they are flat."""
    arm = inner - outer
    size = np.maximum(np.hypot(*arm.T), 1e-9)
    sine = (arm[:, 0] * direction[:, 1] - arm[:, 1] * direction[:, 0]) / size
    away = (mean[:, 0] - inner[:, 0]) * direction[:, 1] - (mean[:, 1] - inner[:, 1]) * direction[:, 0]
    steep = np.abs(sine) > _FLATTEST
    share = away / np.where(steep, sine, 1.0)
    nearest = mean + direction * ((inner - mean) * direction).sum(axis=1)[:, None]
    return np.where(steep[:, None], inner + arm / size[:, None] * share[:, None], nearest)


def _free(drawing: Drawing, lines: Lines, joins: _Joins) -> NDArray[np.bool_]:
    """Whether what joins sweep over holds no other vertex, and their lines meet no line that stays; bool ``[M]``."""
    count, total = len(joins.line), len(drawing.home)
    result = np.ones(count, dtype=bool)
    if count == 0:
        return result
    place = whole(drawing.place)
    points = np.concatenate([joins.place, joins.new], axis=1)
    move, line = near_lines(lines.tree, points.min(axis=1), points.max(axis=1))
    own = joins.vertices[move]
    triangles = [whole(corner) for corner in joins.triangles()]
    for end in (lines.head[line], lines.tail[line]):
        mine = (own == end[:, None]).any(axis=1)
        t, e = move[~mine], end[~mine]
        for k in range(5):
            inside = in_triangle(triangles[0][t, k], triangles[1][t, k], triangles[2][t, k], place[e])
            flat = (triangles[0][t, k] == triangles[2][t, k]).all(axis=1)
            result[t[inside & ~flat]] = False
    # New lines p-a, a-b and b-n, with numbers of their own for vertices that move.
    head, tail, ends = _new_lines(joins, total)
    all_places = np.concatenate([place, whole(joins.new).reshape(-1, 2)])
    heads, tails = np.concatenate([lines.head, head.ravel()]), np.concatenate([lines.tail, tail.ravel()])
    replaced = _replaced(joins, lines, move, line)
    move, line = move[~replaced], line[~replaced]
    for k in range(3):
        there = ends[move, k]
        met = meet(all_places, heads, tails, len(lines.head) + 3 * move[there] + k, line[there])
        result[move[there][met]] = False
    both = np.flatnonzero(ends[:, 0] & ends[:, 2])
    number = len(lines.head) + 3 * both
    result[both[meet(all_places, heads, tails, number, number + 2)]] = False
    result[(joins.new[:, 0] == joins.new[:, 1]).all(axis=1)] = False
    return result


def _new_lines(joins: _Joins, total: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Vertices at both ends of the three new lines, int64 ``[M, 3]`` each, and which of them there are."""
    p, a, _, b, n = joins.vertices.T
    number = total + 2 * np.arange(len(p))
    new_a, new_b = np.where(p >= 0, number, a), np.where(n >= 0, number + 1, b)
    there = np.stack([p >= 0, np.ones(len(p), dtype=bool), n >= 0], axis=1)
    return np.stack([p, new_a, new_b], axis=1), np.stack([new_a, new_b, n], axis=1), there


def _replaced(joins: _Joins, lines: Lines, move: NDArray[np.int64], line: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a line is one of those that a join replaces."""
    p, a, v, b, n = joins.vertices[move].T
    head, tail = lines.head[line], lines.tail[line]
    result = (head == v) | (tail == v)
    result |= (p >= 0) & ((head == a) | (tail == a))
    result |= (n >= 0) & ((head == b) | (tail == b))
    return np.asarray(result)


def _first_of_all(rank: NDArray[np.float64], vertices: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    """Joins that rank lower than all others with a vertex in common; bool ``[M]``."""
    claimed = np.full(total + 1, np.inf)  # the last entry stands for no vertex
    for column in vertices.T:
        np.minimum.at(claimed, column, rank)
    claimed[-1] = np.inf
    return np.isfinite(rank) & (rank[:, None] <= claimed[vertices]).all(axis=1)


def _apart(joins: _Joins) -> NDArray[np.bool_]:
    """Joins, best first, that are in the way of no better one; bool ``[M]``."""
    count = len(joins.line)
    result = np.ones(count, dtype=bool)
    _, _, there = _new_lines(joins, 0)
    moves = (joins.vertices[:, [0, 4]] >= 0).any(axis=1)
    if not moves.any():  # chords of empty triangles never cross each other
        return result
    p, _, _, _, n = joins.place.transpose(1, 0, 2)
    new_a, new_b = joins.new.transpose(1, 0, 2)
    start, end = np.stack([p, new_a, new_b], axis=1)[there], np.stack([new_a, new_b, n], axis=1)[there]
    owner = np.nonzero(there)[0]
    low, high = np.minimum(start, end), np.maximum(start, end)
    points = np.concatenate([joins.place, joins.new], axis=1)
    low_of, high_of = points.min(axis=1), points.max(axis=1)
    move, line = near_lines(line_tree(start, end), low_of, high_of)
    kept = move != owner[line]
    move, line = move[kept], line[kept]
    # Boxes are enough: few joins of one round come so near to each other.
    touching = ((low[line] <= high_of[move]) & (high[line] >= low_of[move])).all(axis=1)
    worse = np.maximum(move[touching], owner[line[touching]])
    result[worse] = False
    return result


def _keeps_boxes(
    drawing: Drawing, check: CoverageCheck, joins: _Joins, order: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether a vertex is left at every side of a face's box, if vertices go in this order; bool ``[M]``."""
    vertex, item = drawing.edge_vertices(check.boxes, check.reach())
    begins = np.searchsorted(vertex, joins.vertices[:, 2], side="left")
    count = np.searchsorted(vertex, joins.vertices[:, 2], side="right") - begins
    move = np.repeat(np.arange(len(count)), count)
    held = item[np.arange(len(move)) + np.repeat(begins - np.cumsum(count) + count, count)]
    spare = (np.bincount(item, minlength=4 * len(check.boxes)) - 1).astype(np.float64)
    # Nobody asks for the boxes of faces that are not wanted.
    return within_budget(order, move, held, check.wanted[held // 4].astype(np.float64), spare)


def _keeps_rings(drawing: Drawing, first: NDArray[np.int64], order: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether every ring keeps three lines, if vertices go in this order; bool, one for each vertex."""
    graph = drawing.graph
    rings = np.full((len(graph.left), 2), -1)
    ring = np.repeat(np.arange(len(graph.ring_faces)), np.diff(graph.ring_starts))
    rings[graph.ring_arcs // 2, graph.ring_arcs % 2] = ring
    beside = rings[drawing.runs.arc[first]]
    move, side = np.nonzero(beside >= 0)
    spare = (drawing.lines_of_ring() - 3).astype(np.float64)
    return within_budget(order, move, beside[move, side], np.ones(len(move)), spare)
