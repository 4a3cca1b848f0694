from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label as components
from skimage.measure import regionprops

from tcl_core.errors import SettingsError
from tcl_core.polygons.arcs import faces_of
from tcl_core.polygons.rasterize import polygon_iou
from tcl_core.regions import drop_small, label_map_to_regions
from tcl_core.specks import absorb_small
from tcl_core.types import Segmentation

NAMES = ["a", "b", "c", "d", "e"]
small_maps = arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3))


def segmentation(label_map, score_map=None):
    label_map = np.asarray(label_map, dtype=np.int32)
    if score_map is None:
        score_map = np.where(label_map > 0, 0.5, 0)
    vocabulary = SimpleNamespace(labels=tuple(SimpleNamespace(name=name) for name in NAMES))
    return Segmentation(label_map, np.asarray(score_map, dtype=np.float32), vocabulary)


@given(small_maps)
@settings(max_examples=80, deadline=None)
def test_regions_against_regionprops(label_map):
    rng = np.random.default_rng(0)
    scores = rng.random(label_map.shape).astype(np.float32)
    regions = label_map_to_regions(segmentation(label_map, scores), tolerance=None)
    expected, means = [], []
    for value in range(1, 4):
        for props in regionprops(components(label_map == value, connectivity=1), intensity_image=scores):
            top, left, bottom, right = props.bbox
            box = (left, top, right - left, bottom - top)
            expected.append((value, int(props.area), box, props.image.tobytes()))
            means.append(float(props.intensity_mean))
    assert [(r.label_id, r.area, r.bbox, r.mask.tobytes()) for r in regions] == expected
    assert [r.score for r in regions] == pytest.approx(means, abs=1e-6)
    assert all(r.polygon is None and r.label == NAMES[r.label_id - 1] for r in regions)


@given(small_maps)
@settings(max_examples=40, deadline=None)
def test_masks_and_polygons_put_together_are_the_label_map(label_map):
    rebuilt = np.zeros_like(label_map)
    for region in label_map_to_regions(segmentation(label_map), tolerance="exact"):
        mask = region.full_mask(label_map.shape)
        assert not (rebuilt[mask]).any()
        rebuilt[mask] = region.label_id
        assert polygon_iou(region) == 1.0
        assert region.polygon.area == region.area
    assert np.array_equal(rebuilt, label_map)


def test_pixels_that_touch_at_a_corner_are_two_regions():
    regions = label_map_to_regions(segmentation([[1, 0], [0, 1]]))
    assert [r.bbox for r in regions] == [(0, 0, 1, 1), (1, 1, 1, 1)]
    assert all(r.polygon.is_valid for r in regions)


def test_order_is_by_label_then_reading_order():
    regions = label_map_to_regions(segmentation([[2, 0, 1], [0, 0, 0], [1, 0, 2]]))
    assert [(r.label_id, r.bbox[:2]) for r in regions] == [(1, (2, 0)), (1, (0, 2)), (2, (0, 0)), (2, (2, 2))]


def test_nothing_to_find():
    assert label_map_to_regions(segmentation(np.zeros((5, 6)))) == []
    assert label_map_to_regions(segmentation(np.zeros((0, 6)))) == []


def test_small_regions_are_dropped_before_polygons_are_traced():
    label_map = np.ones((20, 20))
    label_map[8:10, 8:10] = 2
    [region] = label_map_to_regions(segmentation(label_map), min_area=5)
    assert region.area == 396
    assert len(region.polygon.interiors) == 1


def test_small_regions_are_merged_and_do_not_change_the_score():
    label_map = np.ones((20, 20))
    label_map[8:10, 8:10] = 2
    scores = np.where(label_map == 1, 0.75, 0.1)
    [region] = label_map_to_regions(segmentation(label_map, scores), min_area=5, small="merge")
    assert (region.area, region.score) == (400, 0.75)
    assert region.polygon.equals(shapely.box(0, 0, 20, 20))


def test_merging_goes_to_the_longest_border():
    label_map = np.array([[1, 1, 2, 2], [1, 3, 2, 2], [1, 2, 2, 2]], dtype=np.int32)
    assert absorb_small(label_map, 2)[1, 1] == 1 or absorb_small(label_map, 2)[1, 1] == 2
    label_map = np.array([[1, 2, 2], [1, 3, 2], [1, 2, 2]], dtype=np.int32)
    assert absorb_small(label_map, 2)[1, 1] == 2


def test_equal_borders_go_to_the_smaller_label():
    assert absorb_small(np.array([[2, 3, 1]] * 1, dtype=np.int32), 1).tolist() == [[2, 3, 1]]
    label_map = np.array([[2, 2, 3, 1, 1]], dtype=np.int32)
    assert absorb_small(label_map, 2).tolist() == [[2, 2, 1, 1, 1]]


@given(small_maps, st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_after_merging_every_region_with_a_neighbor_is_large_enough(label_map, min_area):
    merged = absorb_small(label_map, min_area)
    faces = faces_of(merged)
    area = np.bincount(faces.ravel())
    if faces.max() > 1:
        assert (area[faces] >= min_area).all()
    assert set(np.unique(merged)) <= set(np.unique(label_map))
    assert np.array_equal(absorb_small(merged, min_area), merged)


@given(small_maps, st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_after_dropping_every_region_is_large_enough(label_map, min_area):
    regions = label_map_to_regions(segmentation(label_map), min_area=min_area)
    assert all(r.area >= min_area for r in regions)
    kept = drop_small(label_map, min_area)
    assert sum(r.area for r in regions) == np.count_nonzero(kept)


@pytest.mark.parametrize(
    "options", [{"min_area": -1}, {"small": "hide"}, {"tolerance": "finest"}, {"min_area": 5, "small": "Merge"}]
)
def test_a_wrong_option_is_one_clear_sentence(options):
    with pytest.raises(SettingsError, match=next(k for k in options if k != "min_area" or len(options) == 1)):
        label_map_to_regions(segmentation([[1, 1]]), **options)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(SettingsError, match="number of labels"):
        label_map_to_regions(segmentation([[9]]))
    with pytest.raises(SettingsError, match="shape"):
        label_map_to_regions(segmentation([[1]], [[0.5, 0.5]]))
