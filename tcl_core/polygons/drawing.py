"""The simplified arcs of an edge graph while they are worked on: lines between vertices that move and go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl_core.polygons.arcs import EdgeGraph
from tcl_core.polygons.simplify import FittedArcs, Runs, join_following, join_runs, merge_within

__all__ = ["UNITS", "Drawing", "snap"]

UNITS = 1000
"""Steps per pixel of every coordinate, so that crossings are decided in whole numbers, without rounding."""


def snap(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round coordinates to the nearest step."""
    return np.rint(points * UNITS) / UNITS


@dataclass
class Drawing:
    """Lines of all arcs and the places of their vertices.

    A vertex keeps its number for good: every corner of the pixel edges has one, whether a line ends in it or not, and
    corners where arcs meet have one in common.

    Attributes:
        graph: the pixel edges.
        base: their axis-parallel runs with the price that each has now.
        runs: the lines, in the order of the arcs.
        vertex_of: int64 ``[N]``, the vertex of each point of the graph.
        home: float64 ``[V, 2]``, the pixel corner of each vertex.
        place: float64 ``[V, 2]``, where it is now.
        low: float64 ``[V, 2]``, the smallest coordinates it may have.
        high: float64 ``[V, 2]``, the largest.
        is_node: bool ``[V]``, whether it is the end of an arc.
        held: bool ``[V]``, vertices that stay where they are.
        on_frame: bool ``[A]``, arcs along the image's frame.
        near: bool ``[A]``, arcs whose exact lines may move a little, until they are at fault.
    """

    graph: EdgeGraph
    base: Runs
    runs: Runs
    vertex_of: NDArray[np.int64]
    home: NDArray[np.float64]
    place: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    is_node: NDArray[np.bool_]
    held: NDArray[np.bool_]
    on_frame: NDArray[np.bool_]
    near: NDArray[np.bool_]
    _ends: tuple[Runs, NDArray[np.int64], NDArray[np.int64]] | None = None

    @classmethod
    def begin(cls, graph: EdgeGraph, base: Runs, boxes: NDArray[np.float64], reach: NDArray[np.float64]) -> Drawing:
        """Make the exact drawing: every run is a line, every vertex is at home.

        Args:
            graph: the pixel edges.
            base: their runs, from :func:`tcl_core.polygons.simplify.straight_runs`.
            boxes: float64 ``[F, 4]``, left, top, right and bottom of each face.
            reach: float64 ``[F, 2]``, pixels by which a vertex may leave the box of a face beside it, across and down.
        """
        height, width = graph.size
        points = graph.points
        last = graph.starts[1:] - 1
        ends = np.concatenate([graph.starts[:-1], last])
        key = points[:, 1] * (width + 1) + points[:, 0]
        nodes, shared = np.unique(key[ends], return_inverse=True)
        vertex_of = len(nodes) + np.arange(len(points))
        vertex_of[ends] = shared
        home = np.empty((len(nodes) + len(points), 2))
        home[len(nodes) :] = points
        home[shared] = points[ends]
        is_node = np.arange(len(home)) < len(nodes)
        low, high = _bounds(graph, vertex_of, len(home), boxes, reach)
        # The frame is straight: what lies on it moves along it, and the image's corners stay.
        for axis, size in ((0, width), (1, height)):
            on_edge = (home[:, axis] == 0) | (home[:, axis] == size)
            low[on_edge, axis] = high[on_edge, axis] = home[on_edge, axis]
        on_frame = (graph.left == 0) | (graph.right == 0)
        held = (low == high).all(axis=1)
        return cls(
            graph, base, base, vertex_of, home, home.copy(), low, high, is_node, held, on_frame, np.zeros_like(on_frame)
        )

    def edge_vertices(
        self, boxes: NDArray[np.float64], reach: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Vertices that hold the sides of faces' boxes: those that lie within reach of one, inside or outside.

        Args:
            boxes: float64 ``[F, 4]``.
            reach: float64 ``[F, 2]``.

        Returns:
            Pairs, int64 each: the vertex, and ``4 * (f - 1) + side`` of the face ``f``; each pair is there once.
        """
        head, tail = self.ends()
        left, right = self.sides()
        vertex, face = np.concatenate([head, head, tail, tail]), np.concatenate([left, right, left, right])
        vertex, face = vertex[face > 0], face[face > 0] - 1
        place, box, far = self.place[vertex], boxes[face], reach[face]
        near = np.concatenate([place <= box[:, :2] + far, place >= box[:, 2:] - far], axis=1)
        pair, side = np.nonzero(near)
        key = np.sort(vertex[pair] * (4 * len(boxes)) + 4 * face[pair] + side)
        key = key[np.append(True, key[1:] != key[:-1])[: len(key)]]
        return key // (4 * len(boxes)), key % (4 * len(boxes))

    def keep_sides(self, boxes: NDArray[np.float64], reach: NDArray[np.float64]) -> None:
        """Let vertices that hold the sides of faces' boxes move along these only."""
        vertex, item = self.edge_vertices(boxes, reach)
        face, side = item // 4, item % 4
        for axis in (0, 1):
            low, high = side == axis, side == axis + 2
            np.minimum.at(self.high[:, axis], vertex[low], (boxes[:, axis] + reach[:, axis])[face[low]])
            np.maximum.at(self.low[:, axis], vertex[high], (boxes[:, axis + 2] - reach[:, axis])[face[high]])
        crossed = self.low > self.high  # the face is smaller than its reach
        middle = (self.low[crossed] + self.high[crossed]) / 2
        self.low[crossed] = self.high[crossed] = snap(middle)

    def keep_near(self, arcs: NDArray[np.bool_], reach: float) -> None:
        """Keep vertices of some arcs (bool ``[A]``) within ``reach`` of their pixel corners, also of exact lines."""
        self.near = arcs
        of_arc = np.repeat(arcs, np.diff(self.graph.starts))
        vertices = self.vertex_of[of_arc]
        self.low[vertices] = np.maximum(self.low[vertices], self.home[vertices] - reach)
        self.high[vertices] = np.minimum(self.high[vertices], self.home[vertices] + reach)

    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Vertices at the beginning and at the end of each line, int64 ``[R]`` each."""
        if self._ends is not None and self._ends[0] is self.runs:
            return self._ends[1], self._ends[2]
        first = self.runs.first
        following = np.append(first[1:], len(self.graph.points) - 1)
        last = np.minimum(following, self.graph.starts[self.runs.arc + 1] - 1)
        head, tail = self.vertex_of[first], self.vertex_of[last]
        self._ends = (self.runs, head, tail)
        return head, tail

    def sides(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Faces on the left and on the right of each line, int64 ``[R]`` each."""
        return self.graph.left[self.runs.arc], self.graph.right[self.runs.arc]

    def beside(self, vertices: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool ``[V]``: these vertices (bool ``[V]``) and those at the other ends of their lines."""
        head, tail = self.ends()
        result = vertices.copy()
        result[head[vertices[tail]]] = True
        result[tail[vertices[head]]] = True
        return result

    def exact(self) -> NDArray[np.bool_]:
        """Bool ``[R]``: lines that are runs of pixel edges and stay so."""
        return np.asarray(self.on_frame[self.runs.arc] | ((self.runs.price <= 0) & ~self.near[self.runs.arc]))

    def hold_exact(self) -> None:
        """Put the vertices of exact lines back to their pixel corners, for good."""
        head, tail = self.ends()
        exact = (self.runs.price <= 0) & ~(self.on_frame | self.near)[self.runs.arc]
        vertices = np.concatenate([head[exact], tail[exact]])
        self.held[vertices] = True
        self.place[vertices] = self.home[vertices]

    def clip(self, place: NDArray[np.float64], which: NDArray[np.int64]) -> NDArray[np.float64]:
        """Places of the vertices ``which``, moved into their bounds and rounded to steps."""
        return snap(place.clip(self.low[which], self.high[which]))

    def make_finer(self, lines: NDArray[np.bool_], factor: float, floor: float) -> NDArray[np.bool_]:
        """Split lines into finer ones.

        Args:
            lines: bool ``[R]``, lines to split.
            factor: what their price is multiplied by.
            floor: a lower price becomes 0, which is exact.

        Returns:
            Bool ``[R]`` of the new lines: those that are parts of split ones. Their inner vertices are at home.
        """
        self.near[self.runs.arc[lines]] = False
        owner = np.searchsorted(self.runs.first, self.base.first, side="right") - 1
        inside = lines[owner]
        price = self.base.price[inside] * factor
        price[price < floor] = 0
        self.base.price[inside] = price
        parts = merge_within(self.base.select(inside), owner[inside])
        is_inner = np.zeros(len(self.graph.points), dtype=bool)
        is_inner[parts.first] = True
        is_inner[self.runs.first[lines]] = False
        inner = self.vertex_of[is_inner]
        self.place[inner] = self.home[inner]
        self.runs = join_runs(self.runs.select(~lines), parts)
        is_inner[parts.first] = True
        return np.asarray(is_inner[self.runs.first])

    def join_lines(self, first: NDArray[np.int64]) -> None:
        """Make one line of each line in ``first`` and the next one on its arc, which is in no other pair."""
        self.runs = join_following(self.runs, first)

    def release(self, arcs: NDArray[np.bool_], price: float) -> None:
        """Let the exact lines of some arcs (bool ``[A]``) move and be joined again, as if they had this price."""
        for runs in (self.base, self.runs):
            runs.price[arcs[runs.arc] & (runs.price <= 0)] = price
        self.held = (self.low == self.high).all(axis=1)
        self.hold_exact()

    def arcs(self) -> FittedArcs:
        """The lines as points of all arcs, both ends of each arc included."""
        head, tail = self.ends()
        count = np.bincount(self.runs.arc, minlength=len(self.graph.left))
        starts = np.concatenate([[0], np.cumsum(count + 1)])
        vertex = np.empty(starts[-1], dtype=np.int64)
        is_last = np.zeros(starts[-1], dtype=bool)
        is_last[starts[1:] - 1] = True
        vertex[~is_last] = head
        vertex[is_last] = tail[np.cumsum(count) - 1]
        return FittedArcs(self.place[vertex], starts)

    def polygons(self) -> NDArray[np.object_]:
        """Shapely polygons of all faces."""
        arcs = self.arcs()
        return self.graph.polygons(arcs.points, arcs.starts)

    def lines_of_ring(self) -> NDArray[np.int64]:
        """How many lines each ring of the graph has, int64."""
        lines = np.bincount(self.runs.arc, minlength=len(self.graph.left))
        return np.asarray(np.add.reduceat(lines[self.graph.ring_arcs // 2], self.graph.ring_starts[:-1]))


def _bounds(
    graph: EdgeGraph,
    vertex_of: NDArray[np.int64],
    vertices: int,
    boxes: NDArray[np.float64],
    reach: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each vertex may be: not farther outside the boxes of the faces beside it than these reach."""
    face_low = np.concatenate([[[-np.inf, -np.inf]], boxes[:, :2] - reach])
    face_high = np.concatenate([[[np.inf, np.inf]], boxes[:, 2:] + reach])
    arc_low = np.maximum(face_low[graph.left], face_low[graph.right])
    arc_high = np.minimum(face_high[graph.left], face_high[graph.right])
    low, high = np.full((vertices, 2), -np.inf), np.full((vertices, 2), np.inf)
    arc = np.repeat(np.arange(len(graph.left)), np.diff(graph.starts))
    low[vertex_of], high[vertex_of] = arc_low[arc], arc_high[arc]
    for end in (graph.starts[:-1], graph.starts[1:] - 1):
        np.maximum.at(low, vertex_of[end], arc_low)
        np.minimum.at(high, vertex_of[end], arc_high)
    height, width = graph.size
    return np.maximum(low, 0), np.minimum(high, np.array([width, height], dtype=np.float64))
