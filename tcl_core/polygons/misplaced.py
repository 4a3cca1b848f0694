"""Pixels that lie on the wrong side of simplified lines, found from the crossings of lines with rows of pixel centers.

Only borders are looked at: the cost follows their length and not the size of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.arcs import EdgeGraph
from tcl_core.polygons.drawing import Drawing

__all__ = ["Misplaced", "RowCrossings", "find_misplaced", "row_crossings", "sweep_pixels"]


@dataclass(frozen=True)
class RowCrossings:
    """Crossings of lines with the rows of pixel centers, row by row from left to right.

    Attributes:
        position: int64 ``[E]``, ``row * (width + 1) + column`` of the first pixel whose center is on the right.
        line: int64 ``[E]``, which line it is.
        before: int64 ``[E]``, the face on the left of the crossing.
        after: int64 ``[E]``, the face on its right.
    """

    position: NDArray[np.int64]
    line: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


@dataclass(frozen=True)
class Misplaced:
    """Where a drawing's partition of the image differs from its faces.

    Attributes:
        row: int64 ``[S]``, the row of each span of misplaced pixels.
        column: int64 ``[S]``, its first column.
        length: int64 ``[S]`` in pixels.
        right: int64 ``[S]``, the face that the pixels belong to.
        wrong: int64 ``[S]``, the face that holds their centers in the drawing.
        lines: int64 ``[S, 2]``, the lines at the beginning and at the end of the span, -1 where it is a pixel edge.
        disordered: bool ``[R]``, lines beside which the drawing does not fit together: one is on the wrong side of
            another, though they may not cross.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    length: NDArray[np.int64]
    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    lines: NDArray[np.int64]
    disordered: NDArray[np.bool_]

    def centers(self, spans: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Centers ``(x, y)`` of all pixels of some spans (bool ``[S]``), float64 ``[P, 2]``."""
        length = self.length[spans]
        which = np.repeat(np.flatnonzero(spans), length)
        within = np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length)
        return np.stack([self.column[which] + within, self.row[which]], axis=1) + 0.5

    def iou(self, area: NDArray[np.int64]) -> NDArray[np.float64]:
        """IoU of each face to its pixels by pixel centers, float64 ``[F]``; ``area`` is int64 ``[F]``."""
        count = len(area) + 1
        losses = np.bincount(self.right, self.length, minlength=count)[1:]
        gains = np.bincount(self.wrong, self.length, minlength=count)[1:]
        return np.asarray((area - losses) / (area + gains))


def row_crossings(
    graph: EdgeGraph,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
) -> RowCrossings:
    """Crossings of lines with the rows of pixel centers.

    Args:
        graph: of the image.
        start: float64 ``[R, 2]``, where each line begins.
        end: float64 ``[R, 2]``, where it ends.
        left: int64 ``[R]``, the face on its left.
        right: int64 ``[R]``, the face on its right.
    """
    height, width = graph.size
    first = np.ceil(np.minimum(start[:, 1], end[:, 1]) - 0.5).astype(np.int64).clip(0, height)
    last = np.ceil(np.maximum(start[:, 1], end[:, 1]) - 0.5).astype(np.int64).clip(0, height)
    count = last - first
    which = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(which)) + np.repeat(first - np.cumsum(count) + count, count)
    slope = (end[:, 0] - start[:, 0]) / np.where(count > 0, end[:, 1] - start[:, 1], 1.0)
    x = start[which, 0] + (row + 0.5 - start[which, 1]) * slope[which]
    order = np.argsort(row * (width + 2.0) + x, kind="stable")
    which, row, x = which[order], row[order], x[order]
    position = row * (width + 1) + np.ceil(x - 0.5).astype(np.int64).clip(0, width)
    southward = (end[:, 1] > start[:, 1])[which]  # walking south, the left hand points east
    before, after = np.where(southward, (right[which], left[which]), (left[which], right[which]))
    return RowCrossings(position, which, before, after)


def edge_crossings(graph: EdgeGraph) -> RowCrossings:
    """Crossings of the pixel edges with the rows of pixel centers; ``line`` is the point at which an edge begins."""
    step = np.diff(graph.points[:, 1])
    step[graph.starts[1:-1] - 1] = 0
    upright = np.flatnonzero(step)
    arc = np.searchsorted(graph.starts, upright, side="right") - 1
    row = np.minimum(graph.points[upright, 1], graph.points[upright + 1, 1])
    position = row * (graph.size[1] + 1) + graph.points[upright, 0]
    order = np.argsort(position)
    upright, arc, position = upright[order], arc[order], position[order]
    southward = step[upright] > 0
    left, right = graph.left[arc], graph.right[arc]
    return RowCrossings(position, upright, np.where(southward, right, left), np.where(southward, left, right))


def find_misplaced(drawing: Drawing, edges: RowCrossings) -> Misplaced:
    """Compare the partition that a drawing makes with the faces.

    Args:
        drawing: the lines; the result counts only where they do not cross.
        edges: of the graph, from :func:`edge_crossings`.
    """
    graph = drawing.graph
    head, tail = drawing.ends()
    lines = row_crossings(graph, drawing.place[head], drawing.place[tail], *drawing.sides())
    row = graph.size[1] + 1
    both = np.concatenate([edges.position, lines.position])
    order = np.argsort(both, kind="stable")  # two sorted halves, so it only merges
    position = both[order]
    # Where lines cross a row at one pixel, the last of them counts.
    last = np.append(position[1:] != position[:-1], True)
    old = np.cumsum(order < len(edges.position))[last] - 1
    new = np.flatnonzero(last) - old - 1
    position = position[last]
    same_row = edges.position[old] // row == position // row
    right = np.where(same_row & (old >= 0), edges.after[old], 0)
    same_row = lines.position[new] // row == position // row
    wrong = np.where(same_row & (new >= 0), lines.after[new], 0)
    span = np.flatnonzero((right != wrong) & (right > 0) & (wrong > 0))
    span = span[span + 1 < len(position)]
    begins = np.where(lines.position[new[span]] == position[span], lines.line[new[span]], -1)
    following = np.minimum(new[span] + 1, len(lines.position) - 1)
    ends = np.where(lines.position[following] == position[span + 1], lines.line[following], -1)

    disordered = np.zeros(len(head), dtype=bool)
    again = np.flatnonzero(lines.position[1:] // row == lines.position[:-1] // row)
    wrong_way = again[lines.after[again] != lines.before[again + 1]]
    disordered[lines.line[wrong_way]] = disordered[lines.line[wrong_way + 1]] = True
    return Misplaced(
        position[span] // row,
        position[span] % row,
        position[span + 1] - position[span],
        right[span],
        wrong[span],
        np.stack([begins, ends], axis=1),
        disordered,
    )


def sweep_pixels(
    a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64], size: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pixels whose centers lie in triangles.

    A center on a line counts as :func:`row_crossings` counts it, so that the pixels between two places of a line are
    those that change sides.

    Args:
        a: float64 ``[T, 2]``, first corners.
        b: float64 ``[T, 2]``, second corners.
        c: float64 ``[T, 2]``, third corners.
        size: height and width of the image.

    Returns:
        int64 ``[P]`` each: the triangle, and ``row * width + column`` of the pixel.
    """
    height, width = size
    corners = np.stack([a, b, c])
    y = corners[:, :, 1]
    first = np.ceil(y.min(axis=0) - 0.5).astype(np.int64).clip(0, height)
    last = np.ceil(y.max(axis=0) - 0.5).astype(np.int64).clip(0, height)
    count = last - first
    which = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(which)) + np.repeat(first - np.cumsum(count) + count, count)
    center = row + 0.5
    begin = np.full(len(which), np.inf)
    end = np.full(len(which), -np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        # From the same end as the line itself is drawn from, so that rounding is the same.
        start, stop = corners[i], corners[j]
        rise = stop[:, 1] - start[:, 1]
        slope = (stop[:, 0] - start[:, 0]) / np.where(rise == 0, 1.0, rise)
        y_i, y_j = start[which, 1], stop[which, 1]
        crosses = (np.minimum(y_i, y_j) <= center) & (center < np.maximum(y_i, y_j))
        x = start[which, 0] + (center - y_i) * slope[which]
        begin = np.where(crosses, np.minimum(begin, x), begin)
        end = np.where(crosses, np.maximum(end, x), end)
    left = np.ceil(begin - 0.5).clip(0, width)
    span = np.maximum(np.ceil(end - 0.5).clip(0, width) - left, 0).astype(np.int64)
    pixel = np.repeat(row * width + left.astype(np.int64) - np.cumsum(span) + span, span) + np.arange(span.sum())
    return np.repeat(which, span), pixel
