from __future__ import annotations

import numpy as np
import pytest
import shapely

from tcl_core.export.coco.geometry import polygon_rings
from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.export.coco.validate.rings import first_crossing
from tests.core.coco_helpers import blobs, drawn, iou, pixel_union, polygons_of

RING = np.pad(np.zeros((2, 3), dtype=bool), 1, constant_values=True)
THREE_HOLES = np.array(
    [[c == "#" for c in row] for row in ["#########", "#.##.##.#", "#########", "##...####", "#########"]]
)
CORNER_TOUCH = np.array([[c == "#" for c in row] for row in ["####", "#.##", "##.#", "####"]])
TOUCHES_OUTSIDE = np.array([[c == "#" for c in row] for row in [".###", "#.##", "####"]])
NESTED = np.pad(np.pad(np.pad(np.ones((1, 1), dtype=bool), 1), 1, constant_values=True), ((0, 1), (2, 3)))


def signed_area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def xor_drawn(polygon: shapely.Polygon, size: tuple[int, int]) -> np.ndarray:
    """Parity fill of all rings, each drawn alone: what a bridge of no width must give."""
    result = np.zeros(size, dtype=bool)
    for ring in (polygon.exterior, *polygon.interiors):
        result ^= drawn([shapely.get_coordinates(ring)[:-1].ravel().tolist()], size)
    return result


@pytest.mark.parametrize("mask", [RING, THREE_HOLES, CORNER_TOUCH, TOUCHES_OUTSIDE, NESTED])
@pytest.mark.parametrize("margin", [0, 3])
def test_holes_come_back_to_the_last_pixel(mask: np.ndarray, margin: int) -> None:
    mask = np.pad(mask, margin)
    rings = [ring for polygon in polygons_of(mask) for ring in polygon_rings(polygon, mask.shape, "keyhole")]
    assert len(rings) == len(polygons_of(mask))
    assert np.array_equal(drawn(rings, mask.shape), mask)


@pytest.mark.parametrize("seed", range(24))
def test_random_masks_come_back_and_the_line_never_crosses_itself(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(2, 20, 2)) < generator.uniform(0.5, 0.95)
    mask[0, 0] = True
    rings = []
    for polygon in polygons_of(mask):
        ring = keyhole_ring(polygon)
        # Winding once around everything and minus once around each hole: both filling rules agree.
        assert signed_area(ring) == pytest.approx(polygon.area)
        assert first_crossing(ring) is None
        rings.append(ring.ravel().tolist())
    assert np.array_equal(drawn(rings, mask.shape), mask)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0.7, 1.5, 3.0])
def test_bridges_of_simplified_polygons_lose_no_pixel(seed: int, tolerance: float) -> None:
    label_map = blobs(seed)
    coverage = [pixel_union(label_map == k) for k in range(5)]
    bridged = 0
    for geometry in shapely.coverage_simplify(coverage, tolerance):
        for polygon in shapely.get_parts(geometry):
            ring = keyhole_ring(polygon)
            assert first_crossing(ring) is None
            expected = xor_drawn(polygon, label_map.shape)
            assert np.array_equal(drawn([ring.ravel().tolist()], label_map.shape), expected)
            bridged += len(polygon.interiors)
    assert bridged > 0


def test_bridges_stay_inside_and_end_at_vertices() -> None:
    polygon = polygons_of(THREE_HOLES)[0]
    ring = keyhole_ring(polygon)
    assert {tuple(p) for p in ring.tolist()} == {tuple(p) for p in shapely.get_coordinates(polygon).tolist()}
    edges = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    assert shapely.covers(polygon, edges).all()
    # Two further visits of a vertex for each bridge, of which each hole needs one.
    assert len(ring) == len(shapely.get_coordinates(polygon)) - 5 + 2 * 4


def test_bridges_are_the_shortest() -> None:
    polygon = shapely.box(0, 0, 100, 50) - shapely.box(2, 20, 4, 24) - shapely.box(6, 20, 8, 24)
    ring = keyhole_ring(polygon)
    lengths = np.hypot(*(np.roll(ring, -1, axis=0) - ring).T)
    assert lengths.sum() == pytest.approx(polygon.length + 2 * (2 + np.hypot(2, 20)))


def test_a_hole_between_long_walls_without_vertices_nearby_is_reached() -> None:
    walls = [shapely.box(10, 10, 190, 11), shapely.box(10, 13, 190, 14)]
    crowd = [shapely.box(x, y, x + 1, y + 1) for x in range(20, 180, 10) for y in (8, 15)]
    holes = [*walls, shapely.box(100, 11.9, 100.5, 12.1), *crowd]
    polygon = shapely.Polygon(shapely.box(0, 0, 200, 30).exterior, [hole.exterior for hole in holes])
    ring = keyhole_ring(polygon)
    assert signed_area(ring) == pytest.approx(polygon.area)
    assert first_crossing(ring) is None
    assert {(100.0, 11.9), (100.5, 12.1)} <= {tuple(p) for p in ring.tolist()}


def test_a_polygon_without_holes_is_its_outline() -> None:
    ring = keyhole_ring(shapely.box(1, 2, 3, 5))
    assert sorted(ring.tolist()) == [[1, 2], [1, 5], [3, 2], [3, 5]]


def test_the_same_polygon_always_gets_the_same_bridges() -> None:
    polygon = polygons_of(THREE_HOLES)[0]
    shifted = shapely.Polygon(
        polygon.exterior.coords[2:-1] + polygon.exterior.coords[:3], [r.coords for r in polygon.interiors][::-1]
    )
    one, other = keyhole_ring(polygon), keyhole_ring(shifted)
    sides = [{frozenset((tuple(a), tuple(b))) for a, b in zip(r, np.roll(r, -1, 0), strict=True)} for r in (one, other)]
    assert sides[0] == sides[1]


def test_rounding_keeps_coordinates_to_two_decimals_and_the_polygon_valid() -> None:
    generator = np.random.default_rng(0)
    for _ in range(8):
        blob = shapely.MultiPoint(generator.random((40, 2)) * 4).buffer(0.31)
        for polygon in shapely.get_parts(blob):
            for ring in polygon_rings(polygon, (5, 5), "keyhole"):
                values = np.asarray(ring)
                assert np.array_equal(values, np.round(values, 2))
                assert first_crossing(values.reshape(-1, 2)) is None
    sliver = shapely.Polygon([(0, 0), (1, 0.004), (2, 0), (1, 0.001)])
    assert polygon_rings(sliver, (2, 2), "keyhole") == []


def test_the_hole_of_a_ring_is_worth_a_third_of_its_overlap() -> None:
    ring = np.hypot(*(np.mgrid[:40, :40] - 19.5)) < 18
    ring &= np.hypot(*(np.mgrid[:40, :40] - 19.5)) >= 12
    filled = [keyhole_ring(shapely.Polygon(polygons_of(ring)[0].exterior)).ravel().tolist()]
    assert iou(drawn(filled, ring.shape), ring) < 0.65
    assert iou(drawn(polygon_rings(polygons_of(ring)[0], ring.shape, "keyhole"), ring.shape), ring) == 1.0


def points(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=float).reshape(-1, 2)


CROSSING = {
    "bow-tie": points(0, 0, 2, 2, 2, 0, 0, 2),
    "bow-tie with a vertex on one line": points(0, 0, 1, 1, 2, 2, 2, 0, 0, 2),
    "bow-tie with a vertex on both": points(0, 0, 1, 1, 2, 2, 2, 0, 1, 1, 0, 2),
    "curl": points(0, 0, 4, 0, 4, 4, 2, 4, 2, 1, 3, 1, 3, 2, 0, 2),
    "pentagram": points(*[c for k in range(5) for c in (np.cos(4 * np.pi * k / 5), np.sin(4 * np.pi * k / 5))]),
    "bow-tie beside a bridge": points(0, 0, 9, 0, 9, 9, 0, 9, 0, 2, 1, 2, 2, 3, 2, 2, 1, 3, 1, 2, 0, 2),
}
TOUCHING = {
    "triangle, closed": points(0, 0, 1, 0, 1, 1, 0, 0),
    "point repeated": points(0, 0, 1, 0, 1, 0, 1, 1),
    "two triangles at a point": points(0, 0, 1, 1, 2, 0, 2, 2, 1, 1, 0, 2),
    "corner against an edge": points(0, 0, 4, 0, 4, 4, 2, 0, 0, 4),
    "spike": points(0, 0, 4, 0, 4, 4, 2, 4, 2, 6, 2, 4, 0, 4),
    "keyhole": points(0, 0, 4, 0, 4, 4, 0, 4, 0, 2, 1, 2, 2, 2, 2, 1, 1, 1, 1, 2, 0, 2),
    "keyhole, hole turning the same way": points(0, 0, 4, 0, 4, 4, 0, 4, 0, 2, 1, 2, 1, 1, 2, 1, 2, 2, 1, 2, 0, 2),
    "two squares and a line": points(0, 0, 1, 0, 1, 1, 5, 1, 5, 0, 6, 0, 6, 2, 5, 2, 5, 1, 1, 1, 1, 2, 0, 2),
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", CROSSING)
def test_a_line_through_itself_is_found(name: str, backwards: bool) -> None:
    assert first_crossing(CROSSING[name][:: -1 if backwards else 1]) is not None


@pytest.mark.parametrize("shift", range(4))
@pytest.mark.parametrize("name", TOUCHING)
def test_a_line_against_itself_is_none(name: str, shift: int) -> None:
    assert first_crossing(np.roll(TOUCHING[name], shift, axis=0)) is None
    assert first_crossing(np.roll(TOUCHING[name], shift, axis=0)[::-1]) is None
