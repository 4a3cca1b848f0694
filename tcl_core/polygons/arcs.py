"""The pixel edges of a label map as a planar graph: faces, nodes and the arcs that two faces share.

Every pixel belongs to one *face* (a 4-connected piece of one value, background included). The unit edges
between different faces form a planar graph on the pixel corners. A *node* is a corner where three or more of
these edges meet (or a corner of the image); an *arc* is a chain of edges from node to node, or a closed loop.
An arc is stored once and read by the face on either side of it, so whatever replaces its inner points
replaces them for both neighbors: a shared border stays shared.

Everything here is array arithmetic (chains are ordered by pointer doubling), with no Python step per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.run_map import RunMap, strips

__all__ = ["EdgeGraph", "faces_of", "trace_edges"]

# Directions east, north, west, south, so that +1 turns left and -1 turns right on an image (y points down).
_STEP = np.array([[1, 0], [0, -1], [-1, 0], [0, 1]], dtype=np.int64)


@dataclass(frozen=True)
class EdgeGraph:
    """Arcs between faces, and the rings of every face as sequences of arcs.

    Attributes:
        size: height and width of the image in pixels.
        points: int64 ``[N, 2]``, the pixel corners ``(x, y)`` of all arcs one after the other, both ends included
            (a closed loop repeats its first point).
        is_loop: bool ``[A]``, true for a closed arc without a node; it starts at its corner farthest from its center,
            which is where a polygon of it would want a vertex.
        starts: int64 ``[A + 1]``; arc ``a`` is ``points[starts[a] : starts[a + 1]]``.
        left: int64 ``[A]``, the face on the left of each arc in walking direction.
        right: int64 ``[A]``, the face on its right; 0 is outside the image.
        ring_arcs: int64 ``[M]``, ``2 * arc`` for an arc walked forwards and ``2 * arc + 1`` backwards, ring by ring.
        ring_starts: int64 ``[R + 1]``, offsets of the rings in ``ring_arcs``.
        ring_faces: int64 ``[R]``, the face a ring bounds; rings of one face are consecutive, its shell first.
    """

    size: tuple[int, int]
    points: NDArray[np.int64]
    is_loop: NDArray[np.bool_]
    starts: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    ring_arcs: NDArray[np.int64]
    ring_starts: NDArray[np.int64]
    ring_faces: NDArray[np.int64]

    def polygons(self, points: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.object_]:
        """Build the polygon of every face from (simplified) arcs.

        Args:
            points: float64 ``[N', 2]``, the points of all arcs in this graph's order, both ends included.
            starts: int64 ``[A + 1]``, offsets of the arcs in ``points``.

        Returns:
            Shapely polygons with holes; entry ``f - 1`` is face ``f``. They are not checked for validity.
        """
        arc, backwards = self.ring_arcs // 2, self.ring_arcs % 2 == 1
        # The last point of an arc is the first of the next one in the ring, so each arc gives all but its last.
        length = starts[arc + 1] - starts[arc] - 1
        first = np.where(backwards, starts[arc + 1] - 1, starts[arc])
        offset = np.concatenate([[0], np.cumsum(length)])
        within = np.arange(offset[-1]) - np.repeat(offset[:-1], length)
        index = np.repeat(first, length) + np.where(np.repeat(backwards, length), -within, within)
        ring_offset = offset[self.ring_starts]
        closed = np.insert(index, ring_offset[1:], index[ring_offset[:-1]])
        ring_offset = ring_offset + np.arange(len(ring_offset))
        face_offset = np.concatenate([[0], np.cumsum(np.bincount(self.ring_faces)[1:])])
        polygons: NDArray[np.object_] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON,
            np.ascontiguousarray(points[closed], dtype=np.float64),
            (ring_offset, face_offset),
        )
        return polygons


def faces_of(label_map: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number the 4-connected pieces of equal value, background included, from 1 in reading order.

    Args:
        label_map: integers ``[H, W]``.

    Returns:
        int64 ``[H, W]``, every entry at least 1.

    Examples:
        >>> faces_of(np.array([[5, 5, 0], [0, 5, 5]])).tolist()
        [[1, 1, 2], [3, 1, 1]]
    """
    return RunMap.of(label_map).faces().pixels()


def trace_edges(faces: NDArray[np.int64] | RunMap, strip: int | None = None) -> EdgeGraph:
    """Trace the pixel edges between faces.

    Memory is needed for the edges, and for a strip of the image.

    Args:
        faces: int64 ``[H, W]`` from :func:`faces_of`, or its runs; each value from 1 to the maximum is one 4-connected
            piece.
        strip: pixels looked at together; it changes nothing but the memory.

    Returns:
        The graph; all arcs are made of unit steps.
    """
    runs = faces if isinstance(faces, RunMap) else RunMap.of(faces)
    height, width = runs.size
    row = width + 1
    corners, leaving = _corners(runs, strip)
    bits = (leaving[:, None] >> np.arange(4, dtype=np.uint8)) & 1
    degree = bits.sum(axis=1, dtype=np.int64)
    is_node = degree >= 3
    is_node[np.searchsorted(corners, [0, width, height * row, height * row + width])] = True
    # Half-edges in the order of their corner and direction; where those of each corner begin.
    corner, direction = np.nonzero(bits)
    first_of_corner = np.cumsum(degree) - degree
    start = corners[corner]
    step = _STEP[:, 0] + _STEP[:, 1] * row
    end = start + step[direction]
    end_corner = np.searchsorted(corners, end)
    next_direction = np.full(len(start), -1)
    for turn in (-1, 0, 1):  # the last match wins: the tightest left turn keeps 4-connected faces apart
        candidate = (direction + turn) % 4
        next_direction = np.where(bits[end_corner, candidate] == 1, candidate, next_direction)
    before = np.cumsum(bits, axis=1, dtype=np.int64) - bits  # half-edges of a corner in earlier directions
    following = first_of_corner[end_corner] + before[end_corner, next_direction]
    back = (direction + 2) % 4
    twin = first_of_corner[end_corner] + before[end_corner, back]
    end_is_node = is_node[end_corner]

    chain_next = np.where(end_is_node, -1, following)
    leader = _cycle_leaders(chain_next)
    chain_next[np.flatnonzero(leader[following] == following)] = -1  # open each closed loop before its leader
    last, remaining = _rank(chain_next)
    order = np.lexsort((-remaining, last))
    first_of_chain = np.flatnonzero(np.concatenate([[True], last[order][1:] != last[order][:-1]]))
    chain_of = np.empty(len(start), dtype=np.int64)
    chain_of[order] = np.repeat(np.arange(len(first_of_chain)), np.diff(np.append(first_of_chain, len(start))))
    head, tail = order[first_of_chain], order[np.append(first_of_chain[1:], len(start)) - 1]
    chain_twin = chain_of[twin[tail]]
    forward = np.arange(len(head)) < chain_twin
    arc_number = np.cumsum(forward) - 1
    half_arc = np.where(forward, 2 * arc_number, 2 * arc_number[chain_twin] + 1)

    kept = order[forward[chain_of[order]]]
    arc_length = np.bincount(arc_number[chain_of[kept]], minlength=int(forward.sum()))
    edge_offset = np.concatenate([[0], np.cumsum(arc_length)])
    places = np.insert(start[kept], edge_offset[1:], end[tail[forward]])
    half_next = np.empty(len(head), dtype=np.int64)
    half_next[half_arc] = half_arc[chain_of[following[tail]]]
    half_face = np.empty(len(head), dtype=np.int64)
    half_face[half_arc] = _left_faces(runs, start[head], direction[head])
    half_end = np.empty(len(head), dtype=np.int64)
    half_end[half_arc] = end[tail]
    points = np.stack([places % row, places // row], axis=1)
    starts = edge_offset + np.arange(len(edge_offset))
    is_loop = ~is_node[corner[head[forward]]]
    points = _turn_loops(points, starts, is_loop)
    rings, ring_starts, ring_faces = _rings(half_next, half_face, half_end, points, starts)
    return EdgeGraph(
        (height, width), points, is_loop, starts, half_face[0::2], half_face[1::2], rings, ring_starts, ring_faces
    )


def _corners(runs: RunMap, strip: int | None) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Pixel corners where edges meet, ascending, int64 ``[C]``; bit d is set where one leaves in direction d."""
    height, width = runs.size
    corners, leaving = [], []
    for rows in strips(height + 1, width + 1) if strip is None else strips(height + 1, width + 1, strip):
        # The rows of pixels above and below each row of corners; outside of the image there is face 0.
        faces = np.zeros((rows.stop - rows.start + 1, width + 2), dtype=np.int64)
        inside = slice(max(rows.start - 1, 0), min(rows.stop, height))
        faces[inside.start - rows.start + 1 : inside.stop - rows.start + 1, 1:-1] = runs.rows(inside)
        east_west = faces[:-1, 1:-1] != faces[1:, 1:-1]
        north_south = (faces[:, :-1] != faces[:, 1:]).astype(np.uint8)
        bits = np.zeros((rows.stop - rows.start, width + 1), dtype=np.uint8)
        bits[:, :-1] |= east_west.astype(np.uint8)
        bits[:, 1:] |= east_west.astype(np.uint8) << 2
        bits |= north_south[:-1] << 1
        bits |= north_south[1:] << 3
        found = np.flatnonzero(bits)  # few of the image's, so that what follows costs what the edges cost
        corners.append(found + rows.start * (width + 1))
        leaving.append(bits.ravel()[found])
    return np.concatenate(corners), np.concatenate(leaving)


def _left_faces(runs: RunMap, corner: NDArray[np.int64], direction: NDArray[np.int64]) -> NDArray[np.int64]:
    """The face on the left of steps from corners; 0 outside of the image."""
    height, width = runs.size
    row = corner // (width + 1) - np.array([1, 1, 0, 0])[direction]
    column = corner % (width + 1) - np.array([0, 1, 1, 0])[direction]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    faces = np.zeros(len(corner), dtype=np.int64)
    faces[inside] = runs[row[inside] * width + column[inside]]
    return faces


def _turn_loops(points: NDArray[np.int64], starts: NDArray[np.int64], is_loop: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Let every closed loop start at its corner farthest from the mean of its corners."""
    edges = np.diff(starts) - 1
    which = np.repeat(np.flatnonzero(is_loop), edges[is_loop])
    if len(which) == 0:
        return points
    offset = np.concatenate([[0], np.cumsum(edges[is_loop])])
    within = np.arange(len(which)) - np.repeat(offset[:-1], edges[is_loop])
    loop = points[starts[which] + within]
    mean = np.add.reduceat(loop, offset[:-1], axis=0) / edges[is_loop, None]
    distance = ((loop - np.repeat(mean, edges[is_loop], axis=0)) ** 2).sum(axis=1)
    order = np.lexsort((within, -distance, which))
    shift = within[order[offset[:-1]]]
    turned = points.copy()
    moved = (within + np.repeat(shift, edges[is_loop])) % edges[which]
    turned[starts[which] + within] = points[starts[which] + moved]
    turned[starts[1:][is_loop] - 1] = turned[starts[:-1][is_loop]]
    return turned


def _cycle_leaders(following: NDArray[np.int64]) -> NDArray[np.int64]:
    """Smallest index on the cycle of each element, -1 for elements of open chains (-1 ends a chain)."""
    count = len(following)
    jump = np.append(following, -1)  # index -1 is the sink
    smallest = np.append(np.arange(count), -1)
    for _ in range(max(count, 1).bit_length()):
        smallest = np.minimum(smallest, smallest[jump])
        jump = jump[jump]
    return smallest[:-1]


def _rank(following: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Last element of each open chain and the number of steps to it, by pointer doubling."""
    count = len(following)
    ends = following < 0
    jump = np.where(ends, np.arange(count), following)
    steps = np.where(ends, 0, 1)
    for _ in range(max(count, 1).bit_length()):
        further = steps[jump]
        if not further.any():
            break
        steps = steps + further
        jump = jump[jump]
    return jump, steps


def _rings(
    following: NDArray[np.int64],
    face: NDArray[np.int64],
    end: NDArray[np.int64],
    points: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Order half-arcs into rings: simple ones, sorted by face, the shell before the holes."""
    leader = _cycle_leaders(following)
    # Where a ring passes twice through one corner, crossing over splits it in two that touch there, which is
    # the form in which a polygon is valid (a hole may touch its shell in a point, a shell not itself).
    order = np.lexsort((leader, face, end))
    same = (end[order][1:] == end[order][:-1]) & (leader[order][1:] == leader[order][:-1])
    one, other = order[:-1][same], order[1:][same]
    following = following.copy()
    following[one], following[other] = following[other], following[one]
    leader = _cycle_leaders(following)

    inside = face > 0
    opened = np.where(leader[following] == following, -1, following)
    _, remaining = _rank(opened)
    shoelace = np.zeros(len(points))
    x, y = points[:, 0], points[:, 1]
    shoelace[:-1] = (x[:-1] * y[1:] - x[1:] * y[:-1]) / 2
    shoelace[starts[1:] - 1] = 0
    arc_area = np.add.reduceat(shoelace, starts[:-1])
    half_area = np.stack([arc_area, -arc_area], axis=1).ravel()
    # Walking with the face on the left on an image whose y points down makes the shell's shoelace negative.
    ring_area = np.bincount(leader, weights=half_area, minlength=len(face))
    is_hole = ring_area[leader] > 0
    order = np.lexsort((-remaining, leader, is_hole, face))
    order = order[inside[order]]
    first = np.flatnonzero(np.concatenate([[True], leader[order][1:] != leader[order][:-1]]))
    return order, np.append(first, len(order)), face[order][first]
