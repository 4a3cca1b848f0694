"""The parts that polygons are worked on with, each compared with an independent way to the same answer."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tcl_core.benchmarks.label_maps import KINDS
from tcl_core.benchmarks.scene_maps import street_map
from tcl_core.polygons.arcs import faces_of, trace_edges
from tcl_core.polygons.coverage_check import CoverageCheck
from tcl_core.polygons.crossings import crossing_lines, in_triangle, meet
from tcl_core.polygons.drawing import Drawing
from tcl_core.polygons.misplaced import edge_crossings, find_misplaced, sweep_pixels
from tcl_core.polygons.moves import Lines, allowed_shifts, shift_sweeps, within_budget
from tcl_core.polygons.rasterize import partition_of_arcs
from tcl_core.polygons.run_map import RunMap
from tcl_core.polygons.simplify import merge_runs, straight_runs

points = arrays(np.int64, (12, 2), elements=st.integers(0, 6))


def exact_drawing(faces, price=1.0):
    graph = trace_edges(faces)
    check = CoverageCheck.of(graph, RunMap.of(faces), np.ones(int(faces.max()), dtype=bool), 1.0)
    return Drawing.begin(graph, straight_runs(graph, price), check.boxes, np.full((len(check.boxes), 2), 2.0)), check


def merged_drawing(faces, price=1.0):
    drawing, check = exact_drawing(faces, price)
    drawing.runs = merge_runs(drawing.base)
    return drawing, check


@given(points)
@settings(max_examples=300, deadline=None)
def test_lines_meet_where_geos_says_so(place):
    head, tail = np.array([0, 1, 2, 3, 0, 5]), np.array([4, 5, 6, 7, 8, 9])
    one, two = np.triu_indices(6, 1)
    same_place = (place[:, None] == place[None]).all(axis=2)
    lines = shapely.linestrings(np.stack([place[head], place[tail]], axis=1))
    for i, j, met in zip(one, two, meet(place, head, tail, one, two), strict=True):
        ends = {int(head[i]), int(tail[i])} & {int(head[j]), int(tail[j])}
        others = [k for line in (i, j) for k in (head[line], tail[line]) if k not in ends]
        if same_place[head[i], tail[i]] or same_place[head[j], tail[j]]:
            continue  # a line without length is at fault by itself
        common = shapely.intersection(lines[i], lines[j])
        expected = not common.is_empty if not ends else common.length > 0
        assert met == expected, (i, j, ends, others)


@given(arrays(np.int64, (4, 2), elements=st.integers(0, 5)))
@settings(max_examples=300, deadline=None)
def test_points_in_triangles_as_geos_sees_them(place):
    corners = place[:3]
    shape = shapely.MultiPoint(corners).convex_hull
    expected = shapely.intersects(shape, shapely.Point(place[3]))
    assert in_triangle(*(corner[None] for corner in place)).item() == expected


@given(arrays(np.float64, (3, 2), elements=st.floats(-1, 13).map(lambda v: round(v, 3))))
@settings(max_examples=200, deadline=None)
def test_swept_pixels_have_their_centers_in_the_triangle(corners):
    a, b, c = corners[:, None]
    _, pixel = sweep_pixels(a, b, c, (12, 11))
    assert len(np.unique(pixel)) == len(pixel)
    y, x = np.mgrid[:12, :11] + 0.5
    shape = shapely.Polygon(corners)
    inside = shapely.contains_xy(shape, x, y)
    on_border = shapely.dwithin(shape.boundary, shapely.points(x, y), 1e-6)
    found = np.zeros((12, 11), dtype=bool)
    found.ravel()[pixel] = True
    assert np.array_equal(found[~on_border], inside[~on_border])


@pytest.mark.parametrize("kind", list(KINDS))
def test_misplaced_pixels_are_those_of_the_whole_partition(kind):
    faces = faces_of(KINDS[kind](np.random.default_rng(6))[:100, :90])
    for price in (0.0, 0.4, 4.0):
        drawing, _ = merged_drawing(faces, price)
        drawn = partition_of_arcs(drawing.graph, drawing.arcs())
        misplaced = find_misplaced(drawing, edge_crossings(drawing.graph))
        found = np.zeros(faces.shape, dtype=bool)
        x, y = (misplaced.centers(np.ones(len(misplaced.row), dtype=bool)) - 0.5).astype(int).T
        found[y, x] = True
        crossed = crossing_lines(drawing).any() or misplaced.disordered.any()
        if not crossed:
            assert np.array_equal(found, drawn != faces)
        if price == 0:
            assert not found.any() and not crossed


def test_crossings_of_some_lines_are_those_of_all():
    faces = faces_of(street_map(np.random.default_rng(3))[100:300, 100:300])
    drawing, _ = merged_drawing(faces, 4.0)
    every = crossing_lines(drawing)
    assert every.any()
    rng = np.random.default_rng(0)
    for _ in range(5):
        changed = rng.random(len(every)) < 0.1
        some = crossing_lines(drawing, changed)
        assert np.array_equal(some & changed, every & changed)
        assert not (some & ~every).any()


def test_areas_borders_and_boxes_of_faces_come_from_their_arcs():
    faces = faces_of(KINDS["rings"](np.random.default_rng(1)))
    _, check = exact_drawing(faces)
    assert np.array_equal(check.area, np.bincount(faces.ravel())[1:])
    polygons = check.graph.polygons(check.graph.points.astype(float), check.graph.starts)
    assert np.allclose(check.border, shapely.length(polygons))
    assert np.array_equal(check.boxes, shapely.bounds(polygons))
    assert not check.invalid(polygons).any()


def test_inverted_and_crossing_faces_are_invalid():
    faces = faces_of(np.array([[1, 1, 1, 1], [1, 2, 3, 1], [1, 1, 1, 1]], dtype=np.int32))
    _, check = exact_drawing(faces)
    polygons = check.graph.polygons(check.graph.points.astype(float), check.graph.starts)
    turned = polygons.copy()
    turned[1] = shapely.Polygon(polygons[1].exterior.coords[::-1])
    assert check.invalid(turned).tolist() == [False, True, False]
    crossed = polygons.copy()
    crossed[2] = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    assert check.invalid(crossed)[2]


def test_allowed_shifts_leave_a_coverage_and_are_counted_exactly():
    faces = faces_of(KINDS["blobs"](np.random.default_rng(8))[:80, :80])
    drawing, _ = exact_drawing(faces)
    edges = edge_crossings(drawing.graph)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(8):
        lines = Lines.of(drawing, 0.0)
        head, tail = drawing.ends()
        used = np.unique(np.concatenate([head, tail]))
        free = used[~drawing.held[used]]
        vertices = np.sort(rng.choice(free, len(free) // 3, replace=False))
        targets = drawing.clip(drawing.place[vertices] + rng.normal(0, 0.6, (len(vertices), 2)), vertices)
        allowed = allowed_shifts(drawing, lines, vertices, targets)
        refused += np.count_nonzero(~allowed)
        # One vertex by itself: the pixels that it sweeps are those that change in the partition.
        for k in np.flatnonzero(allowed)[:4]:
            before = partition_of_arcs(drawing.graph, drawing.arcs())
            sweeps = shift_sweeps(drawing, lines, vertices[k : k + 1], targets[k : k + 1])
            gain = sweeps.gains(RunMap.of(faces), 1)[0]
            old = drawing.place[vertices[k]].copy()
            drawing.place[vertices[k]] = targets[k]
            after = partition_of_arcs(drawing.graph, drawing.arcs())
            drawing.place[vertices[k]] = old
            assert gain == np.count_nonzero(after != faces) - np.count_nonzero(before != faces)
        drawing.place[vertices[allowed]] = targets[allowed]
        polygons = drawing.polygons()
        assert shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons)
        assert not crossing_lines(drawing).any()
        assert not find_misplaced(drawing, edges).disordered.any()
    assert refused > 10


def test_budgets_are_not_overdrawn():
    order = np.array([0.0, 1.0, np.inf, 2.0])
    move, item = np.array([0, 1, 1, 2, 3, 3]), np.array([0, 0, 1, 0, 0, 1])
    amount = np.array([1.0, 1.0, 1.0, 9.0, -5.0, 1.0])
    # Move 1 asks for more of item 0 than move 0 has left, which gives no room in item 1 either.
    assert within_budget(order, move, item, amount, np.array([1.0, 1.0])).tolist() == [True, False, False, False]
    assert within_budget(order, move, item, amount, np.array([2.0, 2.0])).tolist() == [True, True, False, True]
