from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from scipy.ndimage import find_objects
from shapely import Polygon
from skimage.draw import disk, line
from skimage.measure import approximate_polygon, find_contours

from tcl_core.benchmarks.label_maps import KINDS, label_maps
from tcl_core.benchmarks.polygons import fewest_vertices, format_table, image, run
from tcl_core.benchmarks.scene_maps import street_map, tiny_map
from tcl_core.errors import SettingsError
from tcl_core.polygons import TOLERANCES as TOLERANCE_WORDS
from tcl_core.polygons.arcs import faces_of, trace_edges
from tcl_core.polygons.coverage import _simplify_rings, simplify_apart, simplify_coverage, tolerance_in_pixels
from tcl_core.specks import absorb_small

small_maps = st.integers(1, 14).flatmap(
    lambda h: st.integers(1, 14).flatmap(
        lambda w: st.integers(1, 4).flatmap(lambda k: arrays(np.int32, (h, w), elements=st.integers(0, k)))
    )
)
TOLERANCES = ["exact", "fine", "default", "easy-to-edit", 8.0]


def assert_partition(polygons, size):
    height, width = size
    assert shapely.is_valid(polygons).all()
    assert (shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON).all()
    assert (shapely.area(polygons) > 0).all()
    assert shapely.coverage_is_valid(polygons)
    assert shapely.area(polygons).sum() == pytest.approx(height * width)
    left, top, right, bottom = shapely.total_bounds(polygons)
    assert (left, top, right, bottom) == (0, 0, width, height)
    # Independent of the coverage test: a point a little off each pixel center lies in one polygon.
    y, x = np.mgrid[:height, :width] + 0.5
    covered = sum(shapely.contains_xy(polygon, x + 0.00123, y - 0.00231).astype(int) for polygon in polygons)
    assert (covered == 1).all()


def by_pycocotools(polygon, size):
    flat = [shapely.get_coordinates(polygon.exterior)[:-1].ravel().tolist()]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *size))).astype(bool)


def by_pycocotools_with_holes(polygon, size):
    drawn = np.zeros(size, dtype=bool)
    for ring in (polygon.exterior, *polygon.interiors):
        drawn ^= by_pycocotools(shapely.Polygon(ring), size)
    return drawn


@given(small_maps)
@settings(max_examples=150, deadline=None)
def test_zero_tolerance_is_exact(label_map):
    faces = faces_of(label_map)
    polygons = simplify_coverage(faces, "exact")
    assert_partition(polygons, label_map.shape)
    assert np.array_equal(shapely.area(polygons), np.bincount(faces.ravel())[1:])
    for number, polygon in enumerate(polygons, 1):
        if not polygon.interiors:
            assert np.array_equal(by_pycocotools(polygon, label_map.shape), faces == number)


@given(small_maps, st.sampled_from(TOLERANCES))
@settings(max_examples=150, deadline=None)
def test_any_tolerance_is_a_valid_partition(label_map, tolerance):
    faces = faces_of(label_map)
    polygons = simplify_coverage(faces, tolerance)
    assert len(polygons) == faces.max()
    assert_partition(polygons, label_map.shape)


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [0.5, 1, 3, 5, 8])
@pytest.mark.parametrize("draw", [street_map, tiny_map])
def test_scenes_are_partitions_at_any_tolerance(draw, tolerance):
    label_map = draw(np.random.default_rng(1))[60:180, :140]
    polygons = simplify_coverage(faces_of(label_map), tolerance)
    assert_partition(polygons, label_map.shape)


@pytest.mark.slow
def test_larger_tolerances_go_on_taking_vertices_away():
    faces = faces_of(absorb_small(street_map(np.random.default_rng(7)), 64))
    counts, ious = [], []
    for tolerance in (1, 3, 5, 8):
        polygons = simplify_coverage(faces, tolerance)
        assert shapely.coverage_is_valid(polygons) and shapely.is_valid(polygons).all()
        counts.append(shapely.get_num_coordinates(polygons).mean())
        drawn = [by_pycocotools_with_holes(polygon, faces.shape) for polygon in polygons]
        masks = [faces == number for number in range(1, len(polygons) + 1)]
        ious.append(np.mean([(d & m).sum() / (d | m).sum() for d, m in zip(drawn, masks, strict=True)]))
    assert counts[1] < 0.7 * counts[0] and counts[2] < 0.9 * counts[1] and counts[3] < 0.95 * counts[2]
    assert counts[2] <= 35 and ious[2] >= 0.94
    assert counts[3] <= 25 and ious[3] >= 0.90


@given(small_maps, st.sampled_from([0.3, 0.5, 1.0, 3.0, 8.0]))
@settings(max_examples=80, deadline=None)
def test_polygons_never_leave_their_box_by_more_than_the_tolerance(label_map, tolerance):
    faces = faces_of(label_map)
    for polygon, (rows, columns) in zip(simplify_coverage(faces, tolerance), find_objects(faces), strict=True):
        left, top, right, bottom = polygon.bounds
        beyond = max(columns.start - left, rows.start - top, right - columns.stop, bottom - rows.stop)
        assert beyond <= tolerance + 1e-9


@pytest.mark.parametrize("draw", [street_map, KINDS["lines"], KINDS["photographs"]])
@pytest.mark.parametrize("tolerance", [1.0, 5.0])
def test_boxes_of_polygons_hug_those_of_masks(draw, tolerance):
    faces = faces_of(draw(np.random.default_rng(2)))
    for polygon, (rows, columns) in zip(simplify_coverage(faces, tolerance), find_objects(faces), strict=True):
        left, top, right, bottom = polygon.bounds
        more = 0.65 if tolerance <= 1 else 0.45
        across, down = (min(tolerance, (side.stop - side.start) // 20 + more) for side in (columns, rows))
        assert max(columns.start - left, right - columns.stop) <= across + 1e-9
        assert max(rows.start - top, bottom - rows.stop) <= down + 1e-9


@pytest.mark.parametrize("tolerance", ["fine", "default", "easy-to-edit", 8.0])
def test_regions_one_pixel_wide_are_good(tolerance):
    label_map = tiny_map(np.random.default_rng(4))[:60, :60]
    label_map[10, 5:50] = 6
    label_map[line(15, 5, 55, 50)] = 7
    faces = faces_of(label_map)
    exact, polygons = simplify_coverage(faces, "exact"), simplify_coverage(faces, tolerance)
    thin = 2 * shapely.area(exact) < 1.05 * shapely.length(exact)
    assert thin.sum() > 100
    overlap = shapely.area(shapely.intersection(exact, polygons)) / shapely.area(shapely.union(exact, polygons))
    assert overlap[thin].min() >= 0.65
    assert overlap[thin].mean() >= 0.8


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_a_single_pixel_on_one_label_is_itself(tolerance):
    label_map = np.ones((20, 20), dtype=np.int32)
    label_map[7, 9] = 2
    assert simplify_coverage(faces_of(label_map), tolerance)[1].equals(shapely.box(9, 7, 10, 8))


@pytest.mark.parametrize("name", list(KINDS))
def test_kinds_are_partitions_and_hold_the_iou(name):
    label_map = KINDS[name](np.random.default_rng(3))[:110, :120]
    faces = faces_of(label_map)
    polygons = simplify_coverage(faces)
    assert_partition(polygons, label_map.shape)
    area = np.bincount(faces.ravel())
    for number in np.flatnonzero(area >= 64):
        drawn = by_pycocotools_with_holes(polygons[number - 1], faces.shape)
        mask = faces == number
        assert (drawn & mask).sum() / (drawn | mask).sum() >= 0.95


@given(small_maps, st.sampled_from(TOLERANCES))
@settings(max_examples=150, deadline=None)
def test_polygons_by_themselves_are_valid(label_map, tolerance):
    faces = faces_of(label_map)
    wanted = np.arange(faces.max()) % 2 == 0
    polygons = simplify_apart(faces, tolerance, wanted)
    assert np.array_equal(shapely.is_missing(polygons), ~wanted)
    assert shapely.is_valid(polygons[wanted]).all()
    if tolerance == "exact":
        assert np.array_equal(shapely.area(polygons[wanted]), np.bincount(faces.ravel())[1:][wanted])


@pytest.mark.parametrize("name", sorted(KINDS))
def test_polygons_by_themselves_hold_the_iou(name):
    faces = faces_of(KINDS[name](np.random.default_rng(4)))
    exact, polygons = (
        simplify_apart(faces, tolerance, np.ones(faces.max(), dtype=bool)) for tolerance in ("exact", "fine")
    )
    assert (shapely.area(exact & polygons) / shapely.area(exact | polygons) > 0.95).all()


def test_a_disc_by_itself_takes_few_vertices():
    mask = np.zeros((150, 150), dtype=np.int32)
    mask[disk((75, 75), 60)] = 1
    polygon = simplify_apart(faces_of(mask), "fine", np.array([False, True]))[1]
    assert shapely.get_num_coordinates(polygon) < 60
    assert polygon.area == pytest.approx(mask.sum(), rel=0.02)


def test_a_polygon_by_itself_keeps_a_hole_that_simplifying_would_lose():
    mask = np.zeros((60, 60), dtype=np.int32)
    mask[disk((30, 30), 25)] = 1
    mask[29:31, 29:31] = 0
    polygon = simplify_apart(faces_of(mask), "easy-to-edit", np.array([False, True, False]))[1]
    assert polygon.is_valid
    assert shapely.get_num_interior_rings(polygon) == 1


def test_rings_that_would_cross_are_noticed():
    """A bump of the outline with a hole in it: without the bump the hole would reach over the outline."""
    hole = [(13, 3), (17, 3), (17, 14), (13, 14)]
    bump = Polygon([(0, 0), (30, 0), (30, 12), (18, 12), (18, 15), (12, 15), (12, 12), (0, 12)], [hole])
    exact = np.array([bump, bump, shapely.box(0, 0, 2, 2)], dtype=object)
    polygons, fine = _simplify_rings(exact, np.array([3.0, 1.0, 5.0]))
    assert fine.tolist() == [False, True, False]
    assert polygons[1].equals(bump)


def test_collinear_corners_are_removed_at_full_detail():
    label_map = np.zeros((20, 30), dtype=np.int32)
    label_map[5:15, 5:25] = 1
    square = simplify_coverage(faces_of(label_map), "exact")[1]
    assert len(square.exterior.coords) == 5
    assert square.equals(shapely.box(5, 5, 25, 15))


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_rectangles_and_the_frame_stay_exact_at_any_tolerance(tolerance):
    label_map = np.ones((40, 60), dtype=np.int32)
    label_map[:, 30:] = 2
    label_map[10:30, 40:55] = 3
    polygons = simplify_coverage(faces_of(label_map), tolerance)
    assert polygons[0].equals(shapely.box(0, 0, 30, 40))
    assert polygons[2].equals(shapely.box(40, 10, 55, 30))
    assert len(polygons[1].interiors) == 1
    assert sum(len(p.exterior.coords) - 1 for p in polygons) == 12


def test_a_disc_takes_few_vertices():
    label_map = np.zeros((120, 120), dtype=np.int32)
    label_map[disk((60, 60), 50)] = 1
    polygon = simplify_coverage(faces_of(label_map))[1]
    assert len(polygon.exterior.coords) < 32
    # No vertex strays: each is within a pixel and a half of the circle.
    radius = np.hypot(*(shapely.get_coordinates(polygon) - 60.5).T)
    assert np.abs(radius - 50).max() < 1.5


def test_less_tolerance_takes_more_vertices():
    faces = faces_of(KINDS["blobs"](np.random.default_rng(5)))
    counts = [shapely.get_num_coordinates(simplify_coverage(faces, d)).sum() for d in TOLERANCES[:4]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[2]


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_single_pixels_and_lines_stay(tolerance):
    label_map = np.zeros((40, 40), dtype=np.int32)
    label_map[3, 3] = 1
    label_map[10, 5:35] = 2
    label_map[12:38, 20] = 3
    label_map[line(14, 2, 36, 15)] = 4
    polygons = simplify_coverage(faces_of(label_map), tolerance)
    assert_partition(polygons, label_map.shape)
    assert (shapely.area(polygons) > 0.3).all()


def test_a_region_pinched_at_a_corner_is_valid():
    # One 4-connected region whose outline passes twice through a corner, outside and around a hole.
    label_map = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 1, 1, 1]], dtype=np.int32)
    for tolerance in TOLERANCES:
        assert_partition(simplify_coverage(faces_of(label_map), tolerance), label_map.shape)


def test_holes_and_islands_are_kept():
    label_map = np.zeros((100, 100), dtype=np.int32)
    for radius, value in ((45, 1), (35, 2), (25, 0), (15, 1)):
        label_map[disk((50, 50), radius)] = value
    polygons = simplify_coverage(faces_of(label_map))
    assert [len(p.interiors) for p in polygons] == [1, 1, 1, 1, 0]


def test_degenerate_sizes():
    assert len(simplify_coverage(faces_of(np.zeros((0, 5), dtype=np.int32)))) == 0
    assert simplify_coverage(faces_of(np.ones((1, 1), dtype=np.int32)))[0].equals(shapely.box(0, 0, 1, 1))
    assert simplify_coverage(faces_of(np.ones((1, 9), dtype=np.int32)))[0].equals(shapely.box(0, 0, 9, 1))


def test_the_same_map_gives_the_same_polygons():
    faces = faces_of(KINDS["photographs"](np.random.default_rng(2))[:80, :80])
    assert shapely.equals_exact(simplify_coverage(faces), simplify_coverage(faces)).all()


@pytest.mark.parametrize("tolerance", ["finest", -1, float("nan"), float("inf"), "-2"])
def test_an_unknown_tolerance_is_one_clear_sentence(tolerance):
    with pytest.raises(SettingsError, match="tolerance"):
        tolerance_in_pixels(tolerance)


def test_tolerances_have_words():
    assert TOLERANCE_WORDS == {"exact": 0.0, "fine": 0.5, "default": 1.0, "easy-to-edit": 5.0}
    assert [tolerance_in_pixels(word) for word in TOLERANCE_WORDS] == [0.0, 0.5, 1.0, 5.0]


def test_tolerance_accepts_a_number_written_as_text():
    assert tolerance_in_pixels("1.5") == 1.5


@given(small_maps)
@settings(max_examples=60, deadline=None)
def test_every_edge_is_on_one_arc(label_map):
    faces = faces_of(label_map)
    graph = trace_edges(faces)
    padded = np.pad(faces, 1)
    edges = np.count_nonzero(padded[1:] != padded[:-1]) + np.count_nonzero(padded[:, 1:] != padded[:, :-1])
    assert np.diff(graph.starts).sum() - len(graph.left) == edges
    assert (graph.left != graph.right).all()
    walked = np.bincount(graph.ring_arcs // 2, minlength=len(graph.left))
    assert np.array_equal(walked, 2 - ((graph.left == 0) | (graph.right == 0)))


def test_the_comparison_reaches_the_iou_with_few_vertices():
    mask = np.zeros((80, 80), dtype=bool)
    mask[disk((40, 40), 30)] = True
    contours = [c[:, ::-1] - 0.5 for c in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    assert fewest_vertices(contours, mask, 0.5) < fewest_vertices(contours, mask, 0.97)
    assert fewest_vertices(contours, mask, 0.97) < fewest_vertices(contours, mask, 1.0)


def test_the_comparison_is_what_approximate_polygon_needs():
    mask = np.zeros((70, 70), dtype=bool)
    mask[disk((35, 35), 28)] = True
    mask[disk((30, 40), 9)] = False
    mask &= np.random.default_rng(0).random(mask.shape) < 0.97
    contours = [c[:, ::-1] - 0.5 for c in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    fewest = 10**9
    for tolerance in np.arange(0, 3, 0.05):
        rings = [approximate_polygon(c, tolerance)[:-1] for c in contours]
        if min(map(len, rings)) < 3:  # a hole is lost
            break
        drawn = coco_mask.decode(coco_mask.frPyObjects([r.ravel().tolist() for r in rings], *mask.shape))
        inside = drawn.sum(axis=2) % 2 == 1
        if (inside & mask).sum() / (inside | mask).sum() >= 0.96:
            fewest = min(fewest, sum(map(len, rings)))
    assert 0.5 * fewest < fewest_vertices(contours, mask, 0.96) <= fewest


def test_label_maps_do_not_depend_on_how_many_are_drawn():
    few, many = list(label_maps(4, 7)), list(label_maps(8, 7))
    for (kind, one), (other_kind, other) in zip(few, many, strict=False):
        assert kind == other_kind and np.array_equal(one, other)


@pytest.mark.slow
def test_benchmark_on_a_few_maps(tmp_path):
    figures = run(6, seed=35, progress=False)
    targets = {text: met for text, _, met in figures.targets()}
    assert len(targets) == 6
    assert [met for text, met in targets.items() if "vertices" not in text] == [True] * 5
    assert figures.exit_code == (0 if figures.passed else 1)
    assert "ratio" in format_table(figures)
    image(tmp_path / "polygons.png", count=2)
    assert (tmp_path / "polygons.png").stat().st_size > 1000


@pytest.mark.slow
def test_benchmark_meets_every_bar():
    # A sample: `tcl-annotate benchmark polygons` measures 200 maps.
    figures = run(48, progress=False)
    assert [text for text, _, met in figures.targets() if not met] == [], format_table(figures)
