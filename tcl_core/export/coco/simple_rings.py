"""A polygon with holes as simple rings: it is cut into pieces without holes.

A hole can stand in COCO's lists of rings in two ways. A bridge (:mod:`tcl_core.export.coco.keyhole`) makes one ring
that touches itself, which libraries on top of GEOS call invalid: what they then make of it has a hole again, and they
write its shell alone. Cuts make several rings, each simple, whose union is the polygon; no reader has to know more than
what a polygon is.

Cuts join existing vertices and nothing else. ``pycocotools`` draws both sides of a cut through the same points, so that
the pieces share no pixel and leave none out; a cut that ended inside an edge would split that edge and move its drawn
line. One end of each cut is then moved by a hundredth of a pixel or two on one side, so that pieces meet in points
alone and are together what GEOS calls a valid multi-polygon; otherwise it would be repaired, and the hole filled.
``pycocotools`` rounds coordinates to fifths of a pixel, and no end is moved across such a step.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely import Polygon
from shapely.geometry.polygon import orient

__all__ = ["cut_mask", "simple_rings"]

_DECIMALS = 2
_STEPS = 5
"""``pycocotools`` tells points within a pixel apart by so many steps."""


def simple_rings(polygon: Polygon) -> list[NDArray[np.float64]] | None:
    """Cut a polygon into pieces without holes, along segments between its vertices.

    The pieces are unions of triangles of a constrained Delaunay triangulation. Triangles grow together across the
    longest edges first, as long as the union's outline touches itself nowhere, so that few and short cuts are left.

    Args:
        polygon: a valid polygon, with any number of holes.

    Returns:
        float64 ``[n, 2]`` vertices (x, y) of each piece, the first not repeated at the end, counter-clockwise (in x, y
        with y up). Pieces are ordered by their first vertex, overlap nowhere, and
        meet in points alone. ``None`` where GEOS cannot
        triangulate the polygon, as happens where many of its rings touch each other.

    Example:
        >>> pieces = simple_rings(shapely.box(0, 0, 4, 4) - shapely.box(1, 1, 2, 2))
        >>> len(pieces), round(sum(Polygon(piece).area for piece in pieces), 1)
        (2, 15.0)
    """
    if not polygon.interiors:
        return [shapely.get_coordinates(orient(polygon).exterior)[:-1]]
    try:
        triangles = shapely.get_parts(shapely.constrained_delaunay_triangles(polygon))
    except shapely.GEOSException:
        return None
    corners = shapely.get_coordinates(triangles).reshape(-1, 4, 2)[:, :3]
    places, index = np.unique(corners.reshape(-1, 2), axis=0, return_inverse=True)
    faces = _counter_clockwise(index.reshape(-1, 3), places)
    pieces = np.repeat(_grown(faces, places), 3)
    edges = dict.fromkeys(
        zip(pieces.tolist(), faces.ravel().tolist(), np.roll(faces, -1, axis=1).ravel().tolist(), strict=True)
    )
    following: dict[int, dict[int, int]] = {}
    for piece, tail, head in edges:
        # Walked both ways, an edge lies inside its piece.
        if (piece, head, tail) not in edges:
            following.setdefault(piece, {})[tail] = head
    walks = sorted(_walk(steps) for steps in following.values())
    rings = [places[walk] for walk in walks]
    if min(map(len, rings)) < 3 or not np.isclose(sum(map(_area, rings)), polygon.area, rtol=1e-9):
        return None
    _move_apart(walks, rings)
    return rings if shapely.MultiPolygon([Polygon(ring) for ring in rings]).is_valid else None


def cut_mask(mask: NDArray[np.bool_]) -> list[tuple[tuple[int, int], NDArray[np.bool_], bool]]:
    """Cut a mask into connected pieces without holes, along the edges of pixels.

    Args:
        mask: bool ``[h, w]``.

    Returns:
        Pieces that cover the mask's pixels once each: ``(x, y)`` of the upper left pixel, bool ``[h, w]``, and whether
        there was a cut along its upper side. Their outlines touch themselves nowhere.

    Example:
        >>> ring = np.ones((3, 3), dtype=bool)
        >>> ring[1, 1] = False
        >>> [(origin, piece.astype(int).tolist(), cut) for origin, piece, cut in cut_mask(ring)]
        [((0, 0), [[1, 1, 1]], False), ((0, 1), [[1, 0, 1], [1, 1, 1]], True)]
    """
    return list(_cut(mask, 0, 0, -1))


def _cut(
    mask: NDArray[np.bool_], x: int, y: int, cut: int
) -> Iterator[tuple[tuple[int, int], NDArray[np.bool_], bool]]:
    labels, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        piece = labels[box] == number
        left, top = x + box[1].start, y + box[0].start
        outside, pieces = ndimage.label(~np.pad(piece, 1))
        if pieces == 1:
            yield (left, top), piece, top == cut
            continue
        # The hole in the middle, so that halves have half of the holes; padding moved the rows by one.
        tops = sorted(hole[0].start - 1 for hole in ndimage.find_objects(outside)[1:])
        row = tops[len(tops) // 2]
        yield from _cut(piece[:row], left, top, cut)
        yield from _cut(piece[row:], left, top + row, top + row)


def _move_apart(walks: list[list[int]], rings: list[NDArray[np.float64]]) -> None:
    """Move an end of each cut on one of its sides, in place, along that piece's next edge."""
    sides = {edge: (piece, at) for piece, walk in enumerate(walks) for at, edge in enumerate(_edges(walk))}
    for (tail, head), (piece, at) in sides.items():
        if tail > head or (head, tail) not in sides:
            continue
        other, back = sides[head, tail]
        options = [(other, back, 1), (other, back, 0), (piece, at, 1), (piece, at, 0)]
        # Readers that cut decimals off see whole pixels alone, so the first choice stays within one.
        for far, truncated in ((0.02, True), (0.01, True), (0.02, False), (0.01, False)):
            moved = [_moved(rings[where], edge, end, far, truncated) for where, edge, end in options]
            found = next((choice for choice, point in enumerate(moved) if point is not None), None)
            if found is not None:
                where, edge, end = options[found]
                rings[where][(edge + end) % len(rings[where])] = moved[found]
                break


def _moved(ring: NDArray[np.float64], edge: int, end: int, far: float, truncated: bool) -> NDArray[np.float64] | None:
    """An end of an edge, moved off the edge's line into the ring's next edge; ``None`` where that could be seen."""
    at = (edge + end) % len(ring)
    here, beyond, fixed = ring[at], ring[(at + (1 if end else -1)) % len(ring)], ring[(edge + 1 - end) % len(ring)]
    length = np.hypot(*(beyond - here))
    point = np.round(here + (beyond - here) * min(far / length, 0.25), _DECIMALS)
    drawn = (np.floor(point * _STEPS + 0.5) != np.floor(here * _STEPS + 0.5)).any()
    if drawn or (truncated and (np.floor(point) != np.floor(here)).any()):
        return None
    (ax, ay), (bx, by) = fixed - here, point - here
    turn = ax * by - ay * bx
    return point if (turn < 0 if end else turn > 0) else None


def _edges(walk: list[int]) -> Iterator[tuple[int, int]]:
    return zip(walk, walk[1:] + walk[:1], strict=True)


def _area(ring: NDArray[np.float64]) -> float:
    x, y = (ring - ring[0]).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _counter_clockwise(faces: NDArray[np.int64], places: NDArray[np.float64]) -> NDArray[np.int64]:
    """The triangles, turned alike; one whose corners lie on a line would turn neither way and has no area to keep."""
    one, two, three = places[faces[:, 0]], places[faces[:, 1]], places[faces[:, 2]]
    turn = (two[:, 0] - one[:, 0]) * (three[:, 1] - one[:, 1]) - (two[:, 1] - one[:, 1]) * (three[:, 0] - one[:, 0])
    return np.where((turn < 0)[:, None], faces[:, ::-1], faces)


def _grown(faces: NDArray[np.int64], places: NDArray[np.float64]) -> NDArray[np.int64]:
    """The piece of each triangle."""
    sides = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    owner = np.repeat(np.arange(len(faces)), 3)
    order = np.lexsort((owner, sides[:, 1], sides[:, 0]))
    sides, owner = sides[order], owner[order]
    inner = np.flatnonzero((sides[1:] == sides[:-1]).all(axis=1))
    lengths = np.hypot(*(places[sides[inner, 0]] - places[sides[inner, 1]]).T)
    parent = list(range(len(faces)))
    # Vertices lie on the polygon's border, so none is ever shut in by a piece: sets of vertices only grow.
    vertices: list[set[int]] = [set(face) for face in faces.tolist()]

    def root(face: int) -> int:
        while parent[face] != face:
            parent[face] = parent[parent[face]]
            face = parent[face]
        return face

    for place in inner[np.argsort(-lengths, kind="stable")].tolist():
        one, other = root(int(owner[place])), root(int(owner[place + 1]))
        if one == other:
            continue
        if len(vertices[one]) < len(vertices[other]):
            one, other = other, one
        # Two pieces with a common edge make a simple polygon if they share its two ends and nothing else.
        if sum(vertex in vertices[one] for vertex in vertices[other]) == 2:
            vertices[one] |= vertices[other]
            vertices[other] = set()
            parent[other] = one
    return np.asarray([root(face) for face in range(len(faces))])


def _walk(following: dict[int, int]) -> list[int]:
    """A ring from the step that leaves each vertex, beginning at the smallest vertex; cut off if it does not close."""
    ring = [min(following)]
    while len(ring) <= len(following) and (here := following.get(ring[-1], ring[0])) != ring[0]:
        ring.append(here)
    return ring
