"""Maps that are known by their runs, compared with their pixels and with what scipy and scikit-image find in these."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from skimage.draw import disk
from skimage.measure import label as connected_components

import tcl_core.polygons.run_map as module
import tcl_core.regions as regions_module
from tcl_core.benchmarks.label_maps import KINDS
from tcl_core.benchmarks.scene_maps import street_map
from tcl_core.polygons.arcs import faces_of, trace_edges
from tcl_core.polygons.run_map import RunMap, strips
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

SIZES = [(1, 1), (1, 9), (9, 1), (2, 300), (37, 41), (64, 8)]


def noise(size: tuple[int, int], values: int = 3) -> NDArray[np.int32]:
    return np.random.default_rng(size).integers(0, values, size).astype(np.int32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strip", [1, 100, 1 << 22])
def test_runs_hold_every_pixel(size: tuple[int, int], strip: int) -> None:
    pixels = noise(size)
    runs = RunMap.of(pixels, strip)
    assert np.array_equal(runs.pixels(), pixels)
    assert all(np.array_equal(runs.rows(rows), pixels[rows]) for rows in strips(*size, pixels=50))
    assert (runs.lengths > 0).all() and ((runs.starts % size[1]) + runs.lengths <= size[1]).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_pixels_are_looked_up_by_counting_runs(
    size: tuple[int, int], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise(size, values)
    monkeypatch.setattr(module, "_KEPT_PIXELS", -1)
    runs = RunMap.of(pixels)
    asked = np.random.default_rng(0).permutation(pixels.size)
    assert np.array_equal(runs[asked], pixels.ravel()[asked])


def test_windows_are_cut_out_of_the_map() -> None:
    pixels = noise((37, 41))
    runs = RunMap.of(pixels)
    rng = np.random.default_rng(1)
    for _ in range(50):
        (top, bottom), (left, right) = np.sort(rng.integers(0, 38, 2)), np.sort(rng.integers(0, 42, 2))
        found = runs.window(slice(top, bottom), slice(left, right))
        assert np.array_equal(found, pixels[top:bottom, left:right])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("strip", [1, 100, 1 << 22])
def test_runs_that_touch(size: tuple[int, int], strip: int) -> None:
    pixels = noise(size)
    runs = RunMap.of(pixels)
    number = np.repeat(np.arange(len(runs.starts)), runs.lengths).reshape(size)
    touching = np.stack([number[:-1].ravel(), number[1:].ravel()], axis=1)
    expected, count = np.unique(touching, axis=0, return_counts=True)
    one, other, lengths = runs.below(strip)
    assert np.array_equal(np.stack([one, other], axis=1), expected) and np.array_equal(lengths, count)


@pytest.mark.parametrize("size", SIZES)
def test_faces_are_the_connected_components(size: tuple[int, int]) -> None:
    pixels = noise(size, 2)
    expected = connected_components(pixels + 1, background=0, connectivity=1)
    assert np.array_equal(faces_of(pixels), expected)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("strip", [1, 333])
def test_edges_across_strips_are_whole(kind: str, strip: int) -> None:
    faces = faces_of(KINDS[kind](np.random.default_rng(3))[:61, :83])
    whole, cut = trace_edges(faces), trace_edges(RunMap.of(faces), strip)
    for field in dataclasses.fields(whole):
        assert np.array_equal(getattr(whole, field.name), getattr(cut, field.name)), field.name


@pytest.mark.parametrize("small", ["merge", "drop"])
@pytest.mark.parametrize("shared", [True, False])
def test_regions_across_strips_are_whole(small: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    label_map = street_map(np.random.default_rng(2))[100:260, 60:290].copy()
    score_map = np.random.default_rng(0).random(label_map.shape).astype(np.float32)
    found = Segmentation(label_map, score_map, Vocabulary.from_options([f"label {k}" for k in range(11)]))
    whole = label_map_to_regions(found, min_area=20, small=small, shared=shared)
    for pixels in (1, 700, 4099):

        def few(height: int, width: int, _: int = 0, pixels: int = pixels):  # type: ignore[no-untyped-def]
            return strips(height, width, pixels)

        for place in (module, regions_module):
            monkeypatch.setattr(place, "strips", few)
        monkeypatch.setattr("tcl_core.polygons.arcs.strips", few)
        monkeypatch.setattr(module, "_KEPT_PIXELS", 0)
        cut = label_map_to_regions(found, min_area=20, small=small, shared=shared)
        monkeypatch.undo()
        assert len(cut) == len(whole) > 10
        for one, other in zip(cut, whole, strict=True):
            assert (one.label_id, one.score, one.area, one.bbox) == (
                other.label_id,
                other.score,
                other.area,
                other.bbox,
            )
            assert np.array_equal(one.mask, other.mask)
            assert shapely.to_wkb(one.polygon) == shapely.to_wkb(other.polygon)


def test_regions_need_little_memory_beside_the_maps() -> None:
    label_map = np.zeros((2000, 2500), np.int32)
    label_map[:, 1200:] = 1
    label_map[disk((900, 1100), 700)] = 2
    score_map = np.ones(label_map.shape, np.float32)
    found = Segmentation(label_map, score_map, Vocabulary.from_options(["a", "b"]))
    tracemalloc.start()
    try:
        regions = label_map_to_regions(found, min_area=100, small="merge")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(regions) == 2 and all(region.polygon is not None for region in regions)
    # One byte of each mask, and strips; a 64-bit number for each pixel would be 8.
    assert peak < 3 * label_map.size


def test_regions_agree_with_scipy() -> None:
    label_map = noise((60, 70), 4)
    label_map[10:50, 15:40] = 2
    score_map = np.random.default_rng(0).random(label_map.shape).astype(np.float32)
    found = label_map_to_regions(
        Segmentation(label_map, score_map, Vocabulary.from_options(["a", "b", "c"])), tolerance=None
    )
    expected = []
    for label_id in (1, 2, 3):
        pieces, _ = ndimage.label(label_map == label_id)
        for number, (rows, columns) in enumerate(ndimage.find_objects(pieces), start=1):
            mask = pieces[rows, columns] == number
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            score = float(score_map[rows, columns][mask].mean(dtype=np.float64))
            expected.append((label_id, box, mask, score))
    assert len(found) == len(expected)
    for region, (label_id, box, mask, score) in zip(found, expected, strict=True):
        assert (region.label_id, region.bbox, region.area) == (label_id, box, int(mask.sum()))
        assert np.array_equal(region.mask, mask) and region.score == pytest.approx(score, abs=1e-9)
