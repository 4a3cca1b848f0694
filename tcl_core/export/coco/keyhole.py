"""A polygon with holes as one closed line: bridges of no width lead to each hole and back.

COCO's polygon lists are united ring by ring, so a hole can be kept only inside the ring that surrounds it. Bridges
here join existing vertices and nothing else. ``pycocotools`` fills by parity and draws both ways of a bridge through
the same points, so they cancel to the last pixel; a bridge that ended inside an edge would split that edge and move
its drawn line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cmp_to_key

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon
from shapely.geometry.polygon import orient

__all__ = ["keyhole_ring"]

Point = tuple[float, float]
Bridge = tuple[Point, Point]

_CANDIDATES_AT_ONCE = 512
_PAIRS_AT_ONCE = 1_000_000


def keyhole_ring(polygon: Polygon) -> NDArray[np.float64]:
    """Join a polygon's rings into one weakly simple ring.

    The bridges are a spanning tree of the rings made of the shortest edges of the vertices' Delaunay triangulation
    that meet no ring on their way: they lie inside the polygon, end at vertices, and cross neither a ring nor each
    other. Where a hole touches another ring at a vertex the bridge has no length. The outer ring runs
    counter-clockwise (in x, y with y up), holes clockwise, and at every vertex the line turns so that it touches
    itself but never crosses, so that both filling rules give the same area.

    Args:
        polygon: a valid polygon, with any number of holes.

    Returns:
        float64 ``[n, 2]`` vertices (x, y), the first not repeated at the end.

    Example:
        >>> ring = shapely.box(0, 0, 4, 4) - shapely.box(1, 1, 2, 2)
        >>> keyhole_ring(ring).shape
        (10, 2)
    """
    oriented = orient(polygon)
    rings = [[(float(x), float(y)) for x, y in ring.coords[:-1]] for ring in (oriented.exterior, *oriented.interiors)]
    if len(rings) == 1:
        return np.asarray(rings[0])
    return np.asarray(_walk(rings, _bridges(rings)))


def _bridges(rings: list[list[Point]]) -> list[Bridge]:
    """Segments between vertices that connect all rings with little length; rings that share a vertex need none."""
    groups = _Groups(len(rings))
    ring_of: dict[Point, int] = {}
    for index, ring in enumerate(rings):
        for point in ring:
            groups.join(index, ring_of.setdefault(point, index))
    if groups.count == 1:
        return []
    edges = shapely.linestrings([pair for ring in rings for pair in zip(ring, ring[1:] + ring[:1], strict=True)])
    tree = shapely.STRtree(edges)
    chosen: list[Bridge] = []
    for start, stop in _open_bridges(_delaunay_edges(ring_of), tree):
        if groups.join(ring_of[start], ring_of[stop]):
            chosen.append((start, stop))
    while groups.count > 1:
        # A long edge without vertices can hide all Delaunay neighbors of a hole; then every pair of vertices is tried.
        tree = shapely.STRtree(np.concatenate([edges, shapely.linestrings(chosen)]) if chosen else edges)
        apart = groups.root(_lonely(groups, rings))
        inside = [p for p in ring_of if groups.root(ring_of[p]) == apart]
        outside = [p for p in ring_of if groups.root(ring_of[p]) != apart]
        start, stop = next(bridge for pairs in _pairs(inside, outside) for bridge in _open_bridges(pairs, tree))
        groups.join(ring_of[start], ring_of[stop])
        chosen.append((start, stop))
    return chosen


class _Groups:
    """Rings that are connected with each other (union-find)."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._parent = list(range(count))

    def root(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def join(self, one: int, other: int) -> bool:
        """Connect two; says whether they were apart."""
        one, other = self.root(one), self.root(other)
        if one == other:
            return False
        self._parent[one] = other
        self.count -= 1
        return True


def _lonely(groups: _Groups, rings: list[list[Point]]) -> int:
    """A ring of the group with the fewest vertices."""
    sizes: dict[int, int] = defaultdict(int)
    for index, ring in enumerate(rings):
        sizes[groups.root(index)] += len(ring)
    return min(sizes, key=lambda root: (sizes[root], root))


def _delaunay_edges(ring_of: dict[Point, int]) -> NDArray[np.float64]:
    """Edges of the Delaunay triangulation of all vertices that lead from ring to ring, float64 ``[n, 2, 2]``."""
    edges = shapely.get_parts(shapely.delaunay_triangles(shapely.multipoints(list(ring_of)), only_edges=True))
    ends = shapely.get_coordinates(edges).reshape(-1, 2, 2)
    names = np.asarray([[ring_of[a[0], a[1]], ring_of[b[0], b[1]]] for a, b in ends.tolist()])
    return ends[names[:, 0] != names[:, 1]]


def _pairs(inside: list[Point], outside: list[Point]) -> Iterator[NDArray[np.float64]]:
    """All pairs of two lists of points, in blocks that bound the memory."""
    one, other = np.asarray(inside), np.asarray(outside)
    rows = max(1, _PAIRS_AT_ONCE // len(other))
    for first in range(0, len(one), rows):
        block = one[first : first + rows]
        yield np.stack([np.repeat(block, len(other), axis=0), np.tile(other, (len(block), 1))], axis=1)


def _open_bridges(candidates: NDArray[np.float64], tree: shapely.STRtree) -> Iterator[Bridge]:
    """Candidates that meet the tree's segments with their ends only, shortest first.

    A segment that joins two rings and meets none on its way lies inside the polygon: the outside is shut off from the
    holes.
    """
    swap = (candidates[:, 0, 0] > candidates[:, 1, 0]) | (
        (candidates[:, 0, 0] == candidates[:, 1, 0]) & (candidates[:, 0, 1] > candidates[:, 1, 1])
    )
    ordered = np.where(swap[:, None, None], candidates[:, ::-1], candidates)
    lengths = np.hypot(*(ordered[:, 1] - ordered[:, 0]).T)
    # Coordinates break ties, so that the same polygon always gets the same bridges.
    ordered = ordered[np.lexsort((*ordered.reshape(-1, 4).T[::-1], lengths))]
    for first in range(0, len(ordered), _CANDIDATES_AT_ONCE):
        chunk = ordered[first : first + _CANDIDATES_AT_ONCE]
        lines = shapely.linestrings(chunk)
        which, met = tree.query(lines, predicate="intersects")
        apart = shapely.relate_pattern(lines[which], tree.geometries[met], "FF*******")
        blocked = np.zeros(len(chunk), dtype=bool)
        blocked[which[~apart]] = True
        yield from (((ax, ay), (bx, by)) for (ax, ay), (bx, by) in chunk[~blocked].tolist())


def _walk(rings: list[list[Point]], bridges: list[Bridge]) -> list[Point]:
    """Follow the boundary of the one face that all rings and bridges enclose, keeping it on the left."""
    leaving: dict[Point, list[Point]] = defaultdict(list)
    for ring in rings:
        for start, stop in zip(ring, ring[1:] + ring[:1], strict=True):
            leaving[start].append(stop)
    for start, stop in bridges:
        leaving[start].append(stop)
        leaving[stop].append(start)
    for point, targets in leaving.items():
        if len(targets) > 1:
            targets.sort(key=cmp_to_key(lambda a, b, p=point: _compare_angles(p, a, b)))  # type: ignore[misc]
    first = (rings[0][0], leaving[rings[0][0]][0])
    walk: list[Point] = []
    here, there = first
    while True:
        walk.append(here)
        here, there = there, _next_target(leaving[there], there, here)
        if (here, there) == first:
            return walk


def _next_target(targets: list[Point], at: Point, came_from: Point) -> Point:
    """The first way out, turning clockwise from the way back; the way back itself comes last."""
    if len(targets) == 1:
        return targets[0]
    for target in reversed(targets):
        if _compare_angles(at, target, came_from) < 0:
            return target
    return targets[-1]


def _compare_angles(at: Point, one: Point, other: Point) -> int:
    """Compare two directions by their angle from the positive x axis, without computing an angle."""
    ax, ay, bx, by = one[0] - at[0], one[1] - at[1], other[0] - at[0], other[1] - at[1]
    half_a, half_b = (ay < 0 or (ay == 0 and ax < 0)), (by < 0 or (by == 0 and bx < 0))
    if half_a != half_b:
        return 1 if half_a else -1
    cross = ax * by - ay * bx
    return (cross < 0) - (cross > 0)
