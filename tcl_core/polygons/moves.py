"""Moves of vertices: what they change, and which of them keep the drawing as it is connected.

A line that is moved sweeps triangles. The pixels in them change sides, so what a move costs is counted exactly and
where it happens. A move keeps the drawing valid if its triangles hold no other vertex and its new lines meet no other
line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.crossings import in_triangle, meet, near_lines, whole
from tcl_core.polygons.drawing import UNITS, Drawing
from tcl_core.polygons.misplaced import sweep_pixels
from tcl_core.polygons.run_map import RunMap

__all__ = ["Lines", "Sweeps", "allowed_shifts", "apart", "shift_sweeps", "within_budget"]


@dataclass(frozen=True)
class Lines:
    """Lines of a drawing that stay the same while vertices move, and where to find them.

    Attributes:
        head: int64 ``[R]``, the vertex where each line begins.
        tail: int64 ``[R]``, the vertex where it ends.
        left: int64 ``[R]``, the face on its left.
        right: int64 ``[R]``, the face on its right.
        at: int64 ``[2 R]``, the lines at each vertex, one vertex after the other.
        at_starts: int64 ``[V + 1]``, offsets of the vertices in ``at``.
        tree: of the lines where they were when it was made.
        slack: pixels that vertices may have moved since then.
    """

    head: NDArray[np.int64]
    tail: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    at: NDArray[np.int64]
    at_starts: NDArray[np.int64]
    tree: shapely.STRtree
    slack: float

    @classmethod
    def of(cls, drawing: Drawing, slack: float) -> Lines:
        """Index a drawing whose vertices will move by at most ``slack`` pixels."""
        head, tail = drawing.ends()
        left, right = drawing.sides()
        ends = np.concatenate([head, tail])
        order = np.argsort(ends, kind="stable")
        at_starts = np.concatenate([[0], np.cumsum(np.bincount(ends, minlength=len(drawing.home)))])
        points = np.stack([drawing.place[head], drawing.place[tail]], axis=1)
        tree = shapely.STRtree(shapely.linestrings(points))
        return cls(head, tail, left, right, order % max(len(head), 1), at_starts, tree, slack)

    def beside(self, vertices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of an index in ``vertices`` and a line that ends in it."""
        count = self.at_starts[vertices + 1] - self.at_starts[vertices]
        which = np.repeat(np.arange(len(vertices)), count)
        within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
        return which, self.at[self.at_starts[vertices][which] + within]

    def other_line(self, vertices: NDArray[np.int64], lines: NDArray[np.int64]) -> NDArray[np.int64]:
        """The other one of two lines at each vertex; any line at a vertex where more meet."""
        one = self.at[self.at_starts[vertices]]
        return np.where(one == lines, self.at[self.at_starts[vertices + 1] - 1], one)


@dataclass(frozen=True)
class Sweeps:
    """Pixels that change sides.

    Attributes:
        move: int64 ``[P]``, the move that does it.
        pixel: int64 ``[P]``, ``row * width + column``.
        before: int64 ``[P]``, the face that holds the pixel's center now.
        after: int64 ``[P]``, the face that will hold it.
    """

    move: NDArray[np.int64]
    pixel: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]

    @classmethod
    def of_triangles(
        cls,
        move: NDArray[np.int64],
        corners: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
        left: NDArray[np.int64],
        right: NDArray[np.int64],
        size: tuple[int, int],
    ) -> Sweeps:
        """Sweeps of lines whose head moves.

        Args:
            move: int64 ``[T]``, the move that a triangle belongs to.
            corners: of the triangles, float64 ``[T, 2]`` each: where the line begins, where it ends, and where it will
                begin.
            left: int64 ``[T]``, the face on the line's left.
            right: int64 ``[T]``, the face on its right.
            size: height and width of the image.
        """
        head, tail, new = corners
        line, step = tail - head, new - head
        to_left = line[:, 0] * step[:, 1] - line[:, 1] * step[:, 0] < 0  # y points down
        triangle, pixel = sweep_pixels(head, tail, new, size)
        before, after = np.where(to_left, left, right)[triangle], np.where(to_left, right, left)[triangle]
        return cls(move[triangle], pixel, before, after)

    def gains(self, faces: RunMap, count: int) -> NDArray[np.int64]:
        """Misplaced pixels that each of ``count`` moves adds (negative: corrects)."""
        right = faces[self.pixel]
        change = (right == self.before).astype(np.int64) - (right == self.after)
        return np.rint(np.bincount(self.move, change, minlength=count)).astype(np.int64)


def shift_sweeps(drawing: Drawing, lines: Lines, vertices: NDArray[np.int64], targets: NDArray[np.float64]) -> Sweeps:
    """What changes if each vertex moves by itself.

    Args:
        drawing: the lines.
        lines: its index.
        vertices: int64 ``[M]``, one vertex for each move.
        targets: float64 ``[M, 2]``, where it goes.
    """
    move, line = lines.beside(vertices)
    head, tail = lines.head[line], lines.tail[line]
    is_head = head == vertices[move]
    mover, other = np.where(is_head, head, tail), np.where(is_head, tail, head)
    # Seen from the moving end, a line's sides are exchanged if it ends there.
    left = np.where(is_head, lines.left[line], lines.right[line])
    right = np.where(is_head, lines.right[line], lines.left[line])
    corners = (drawing.place[mover], drawing.place[other], targets[move])
    return Sweeps.of_triangles(move, corners, left, right, drawing.graph.size)


def allowed_shifts(
    drawing: Drawing, lines: Lines, vertices: NDArray[np.int64], targets: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Choose moves that are valid when all of them are made at once.

    Args:
        drawing: a valid drawing.
        lines: its index.
        vertices: int64 ``[M]``, different vertices.
        targets: float64 ``[M, 2]``, where they go, in steps.

    Returns:
        Bool ``[M]``.
    """
    allowed = np.ones(len(vertices), dtype=bool)
    if len(vertices) == 0:
        return allowed
    old = whole(drawing.place)
    new = old.copy()
    new[vertices] = whole(targets)
    number = np.full(len(old), -1)
    number[vertices] = np.arange(len(vertices))
    _, line = lines.beside(vertices)
    line = np.flatnonzero(np.bincount(line, minlength=len(lines.head)))
    head, tail = lines.head, lines.tail
    places = np.stack([old[head[line]], old[tail[line]], new[head[line]], new[tail[line]]]) / UNITS
    low, high = places.min(axis=0) - lines.slack, places.max(axis=0) + lines.slack
    box, two = near_lines(lines.tree, low, high)
    one = line[box]
    kept = one != two
    one, two = one[kept], two[kept]
    swept_over = _swept_over(head, tail, old, new, one, two)
    while True:
        bad = swept_over | meet(new, head, tail, one, two)
        movers = number[np.concatenate([head[one[bad]], tail[one[bad]], head[two[bad]], tail[two[bad]]])]
        movers = movers[movers >= 0]
        movers = movers[allowed[movers]]
        if len(movers) == 0:
            return allowed
        allowed[movers] = False
        new[vertices[movers]] = old[vertices[movers]]
        # What no longer moves cannot sweep or be swept over by itself; the others are asked again.
        touched = np.zeros(len(old), dtype=bool)
        touched[vertices[allowed]] = True
        again = touched[head[one]] | touched[tail[one]] | touched[head[two]] | touched[tail[two]]
        one, two = one[again], two[again]
        swept_over = _swept_over(head, tail, old, new, one, two)


def _swept_over(
    head: NDArray[np.int64],
    tail: NDArray[np.int64],
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    one: NDArray[np.int64],
    two: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether the line ``one`` of a pair sweeps over an end of the line ``two``, at its old or its new place."""
    result = np.zeros(len(one), dtype=bool)
    h, t = head[one], tail[one]
    for end in (head[two], tail[two]):
        foreign = np.flatnonzero((end != h) & (end != t))
        i, k, e = h[foreign], t[foreign], end[foreign]
        over = np.zeros(len(foreign), dtype=bool)
        for places in (old, new):
            over |= in_triangle(old[i], old[k], new[i], places[e]) & (old[i] != new[i]).any(axis=1)
            over |= in_triangle(new[i], old[k], new[k], places[e]) & (old[k] != new[k]).any(axis=1)
        result[foreign] |= over
    return result


def apart(rank: NDArray[np.float64], one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose what ranks lower than all its neighbors.

    Args:
        rank: float64 ``[N]``, infinite for what is not to be chosen; no two neighbors rank the same.
        one: int64 ``[P]``, one of each pair of neighbors.
        two: int64 ``[P]``, the other.

    Returns:
        Bool ``[N]``, no two of them neighbors.
    """
    lowest = np.full(len(rank), np.inf)
    np.minimum.at(lowest, one, rank[two])
    np.minimum.at(lowest, two, rank[one])
    return np.asarray(np.isfinite(rank) & (rank < lowest))


def within_budget(
    order: NDArray[np.float64],
    move: NDArray[np.int64],
    item: NDArray[np.int64],
    amount: NDArray[np.float64],
    budget: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Choose moves that together use no more than there is.

    Args:
        order: float64 ``[M]``, smaller ones come first; infinite for moves that are not made.
        move: int64 ``[N]``, which move uses something.
        item: int64 ``[N]``, what it uses.
        amount: float64 ``[N]``, how much; what it gives back (negative) helps no other.
        budget: float64, how much there is of each item.

    Returns:
        Bool ``[M]``.
    """
    used = np.flatnonzero((amount > 0) & np.isfinite(order[move]))
    used = used[np.lexsort((order[move[used]], item[used]))]
    total = np.cumsum(amount[used])
    begins = np.append(True, np.diff(item[used]) > 0)[: len(used)]
    before = (total - amount[used])[begins]
    total = total - before[np.cumsum(begins) - 1]
    result = np.isfinite(order)
    result[move[used[total > budget[item[used]] + 1e-9]]] = False
    return result
