from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from scipy import ndimage
from shapely import MultiPolygon, Polygon

from tcl_core.export.coco import geometry, simple_rings
from tcl_core.export.coco.geometry import has_hole, pixel_outline, polygon_rings
from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.polygons import simplify_coverage
from tcl_core.polygons.arcs import faces_of
from tests.core.coco_helpers import blobs, drawn

masks = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask)
    return [labels == number for number in range(1, count + 1)]


def drawn_once_each(rings: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """The union of rings, none of which may draw a pixel of another."""
    encoded = coco_mask.frPyObjects(rings, *size)
    union = coco_mask.merge(encoded)
    assert coco_mask.area(encoded).sum() == coco_mask.area(union)
    return coco_mask.decode(union) > 0


def valid_together(rings: list[list[float]]) -> bool:
    return MultiPolygon([Polygon(np.reshape(ring, (-1, 2))) for ring in rings]).is_valid


@given(masks)
@settings(max_examples=150, deadline=None)
def test_pieces_of_an_outline_are_valid_together_and_draw_every_pixel_once(mask: np.ndarray) -> None:
    for piece in pieces(mask):
        rings = polygon_rings(pixel_outline(piece), mask.shape)
        assert valid_together(rings)
        assert np.array_equal(drawn_once_each(rings, mask.shape), piece)


@given(masks)
@settings(max_examples=150, deadline=None)
def test_so_do_pieces_along_pixel_edges(mask: np.ndarray) -> None:
    for piece in pieces(mask):
        rings = geometry._outline_rings(piece, (0, 0))
        assert len(rings) == 1 or has_hole(piece)
        assert valid_together(rings)
        assert np.array_equal(drawn_once_each(rings, mask.shape), piece)


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_simplified_polygons_are_cut_to_what_their_bridges_draw(tolerance: float) -> None:
    with_holes = 0
    for seed in range(4):
        label_map = blobs(seed, (40, 50), 3)
        label_map[4:36:8, 5:45:9] = 5
        faces = faces_of(label_map)
        for polygon in simplify_coverage(faces, tolerance):
            if not polygon.interiors:
                continue
            rings = polygon_rings(polygon, faces.shape)
            with_holes += 1
            assert len(rings) <= len(polygon.interiors) + 1
            assert valid_together(rings)
            bridged = polygon_rings(polygon, faces.shape, "keyhole")
            assert np.array_equal(drawn_once_each(rings, faces.shape), drawn(bridged, faces.shape))
            assert sum(Polygon(np.reshape(ring, (-1, 2))).area for ring in rings) == pytest.approx(polygon.area, abs=1)
    assert with_holes > 5


def test_what_cannot_be_triangulated_is_drawn_and_cut_along_pixel_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise shapely.GEOSException("Unable to find a convex corner")

    monkeypatch.setattr(simple_rings.shapely, "constrained_delaunay_triangles", refuse)
    polygon = Polygon([(1, 1), (19, 2), (17, 18), (2, 16)], [[(5, 5), (9, 6), (7, 11)]])
    rings = polygon_rings(polygon, (20, 20))
    assert valid_together(rings)
    assert np.array_equal(drawn_once_each(rings, (20, 20)), drawn([keyhole_ring(polygon).ravel().tolist()], (20, 20)))


def test_a_cut_stays_within_its_pixel_for_readers_that_cut_decimals_off() -> None:
    polygon = shapely.box(2, 2, 18, 18) - shapely.box(6, 6, 12, 12)
    rings = polygon_rings(polygon, (20, 20))
    truncated = [[int(value) for value in ring] for ring in rings]
    assert np.array_equal(drawn(truncated, (20, 20)), drawn(rings, (20, 20)))
