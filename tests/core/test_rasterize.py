from __future__ import annotations

import numpy as np
import pytest
import shapely
from scipy import ndimage
from skimage.draw import disk

from tcl_core.benchmarks.label_maps import KINDS
from tcl_core.polygons.arcs import faces_of, trace_edges
from tcl_core.polygons.drawing import Drawing
from tcl_core.polygons.rasterize import mask_iou, partition_of_arcs, polygon_iou, polygon_to_mask
from tcl_core.polygons.simplify import FittedArcs, merge_runs, straight_runs
from tcl_core.types import Region


def region(mask, polygon, x=0, y=0):
    return Region(1, "a", 1.0, int(mask.sum()), (x, y, mask.shape[1], mask.shape[0]), mask, polygon)


def test_a_hole_is_open():
    polygon = shapely.box(1, 1, 9, 9).difference(shapely.box(3, 3, 6, 6))
    expected = np.zeros((10, 12), dtype=bool)
    expected[1:9, 1:9] = True
    expected[3:6, 3:6] = False
    assert np.array_equal(polygon_to_mask(polygon, (10, 12)), expected)


def test_an_origin_moves_the_window():
    polygon = shapely.box(11, 21, 13, 24)
    assert np.array_equal(
        polygon_to_mask(polygon, (4, 4), origin=(10, 20)), polygon_to_mask(polygon, (30, 30))[20:24, 10:14]
    )


def test_an_empty_polygon_and_an_empty_mask():
    assert not polygon_to_mask(shapely.Polygon(), (3, 4)).any()
    assert polygon_to_mask(shapely.box(0, 0, 1, 1), (0, 4)).shape == (0, 4)


def test_mask_iou():
    one, two = np.zeros((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    assert mask_iou(one, two) == 1.0
    one[:2], two[1:3] = True, True
    assert mask_iou(one, two) == pytest.approx(1 / 3)


def test_polygon_iou_sees_what_lies_outside_the_box():
    mask = np.ones((4, 4), dtype=bool)
    assert polygon_iou(region(mask, shapely.box(5, 5, 9, 9), 5, 5)) == 1.0
    assert polygon_iou(region(mask, shapely.box(5, 5, 13, 9), 5, 5)) == pytest.approx(0.5)
    assert polygon_iou(region(mask, shapely.box(1, 5, 9, 9), 5, 5)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no polygon"):
        polygon_iou(region(mask, None))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_exact_partition_is_the_face_map(kind):
    faces = faces_of(KINDS[kind](np.random.default_rng(0))[:90, :100])
    graph = trace_edges(faces)
    assert np.array_equal(partition_of_arcs(graph, FittedArcs(graph.points.astype(float), graph.starts)), faces)


def test_the_partition_is_where_each_pixel_center_lies():
    label_map = np.zeros((90, 100), dtype=np.int32)
    label_map[disk((40, 40), 30)] = 1
    label_map[disk((60, 60), 25)] = 2
    faces = faces_of(label_map)
    graph = trace_edges(faces)
    extents = ndimage.find_objects(faces)
    boxes = np.array([[x.start, y.start, x.stop, y.stop] for y, x in extents], dtype=float)
    drawing = Drawing.begin(graph, straight_runs(graph, 3.0), boxes, np.ones((len(boxes), 2)))
    drawing.runs = merge_runs(drawing.base)
    arcs = drawing.arcs()
    drawn = partition_of_arcs(graph, arcs)
    y, x = np.mgrid[:90, :100] + 0.5
    for number, polygon in enumerate(graph.polygons(arcs.points, arcs.starts), 1):
        on_border = shapely.intersects_xy(polygon.boundary, x, y)
        assert np.array_equal((drawn == number)[~on_border], shapely.contains_xy(polygon, x, y)[~on_border])
