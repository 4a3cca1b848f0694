from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.affinity
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tcl_core.errors import CocoError, SettingsError
from tcl_core.export.coco import (
    GEOMETRIES,
    ImageResult,
    categories_of,
    region_to_annotation,
    regions_to_annotations,
    validate_coco,
    write_coco_file,
)
from tcl_core.export.coco.geometry import describes, pixel_outline, polygon_rings
from tcl_core.export.coco.rle import Runs, counts_of_crop
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary
from tests.core.coco_helpers import blobs, drawn, iou, pixel_union, regions_of

SIZE = (32, 40)


def region(mask: np.ndarray, *, x: int = 3, y: int = 2, polygon: shapely.Geometry | None = None, score: float = 0.5):
    height, width = mask.shape
    return Region(1, "one", score, int(mask.sum()), (x, y, width, height), mask, polygon)


RING = np.pad(np.zeros((3, 3), dtype=bool), 2, constant_values=True)
BAR = np.ones((1, 9), dtype=bool)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("polygons", [True, False])
def test_every_region_comes_back_with_area_and_box_of_its_mask(seed: int, geometry: str, polygons: bool) -> None:
    for one in regions_of(blobs(seed, SIZE), polygons=polygons):
        annotation = region_to_annotation(one, SIZE, geometry)
        mask = one.full_mask(SIZE)
        assert np.array_equal(drawn(annotation["segmentation"], SIZE), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == list(one.bbox)
        assert annotation["iscrowd"] == 0
        assert annotation["category_id"] == one.label_id


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_file_has_one_geometry(geometry: str) -> None:
    kinds = {
        type(region_to_annotation(one, SIZE, geometry)["segmentation"])
        for seed in range(3)
        for one in regions_of(blobs(seed, SIZE))
    }
    assert kinds == {dict if geometry == "rle" else list}


@pytest.mark.parametrize("geometry", ["polygon", "keyhole"])
def test_a_hole_that_its_simplified_polygon_has_lost_is_kept(geometry: str) -> None:
    speck = np.pad(np.zeros((1, 1), dtype=bool), 5, constant_values=True)
    filled = shapely.box(3, 2, 6, 13)
    annotation = region_to_annotation(region(speck, polygon=filled), SIZE, geometry)
    assert not drawn(annotation["segmentation"], SIZE)[7, 8]


def test_keyhole_mode_keeps_a_hole_by_a_bridge() -> None:
    annotation = region_to_annotation(region(RING), SIZE, "keyhole")
    assert len(annotation["segmentation"]) == 1
    assert np.array_equal(drawn(annotation["segmentation"], SIZE), region(RING).full_mask(SIZE))


def test_polygon_mode_cuts_a_hole_open() -> None:
    annotation = region_to_annotation(region(RING), SIZE, "polygon")
    assert len(annotation["segmentation"]) == 2
    assert np.array_equal(drawn(annotation["segmentation"], SIZE), region(RING).full_mask(SIZE))


@pytest.mark.parametrize("geometry", ["polygon", "keyhole"])
def test_a_polygon_that_no_longer_describes_its_mask_is_replaced_by_the_outline(geometry: str) -> None:
    gone = shapely.Polygon([(3, 2), (12, 2), (12, 2.01)])
    elsewhere = shapely.box(20, 20, 29, 21)
    for polygon in (gone, elsewhere, shapely.Polygon()):
        annotation = region_to_annotation(region(BAR, polygon=polygon), SIZE, geometry)
        assert np.array_equal(drawn(annotation["segmentation"], SIZE), region(BAR).full_mask(SIZE))


def test_a_polygon_that_describes_its_mask_is_kept() -> None:
    disc = np.hypot(*(np.mgrid[:21, :21] - 10)) <= 10
    polygon = shapely.affinity.translate(shapely.coverage_simplify([pixel_union(disc)], 1.5)[0], 3, 2)
    annotation = region_to_annotation(region(disc, polygon=polygon), SIZE, "polygon")
    ring = np.asarray(annotation["segmentation"][0]).reshape(-1, 2)
    assert {tuple(p) for p in ring.tolist()} == {tuple(p) for p in polygon.exterior.coords}
    assert iou(drawn(annotation["segmentation"], SIZE), region(disc).full_mask(SIZE)) > 0.9


def test_describes_says_no_for_each_kind_of_difference() -> None:
    square = Runs(counts_of_crop(np.ones((10, 10), dtype=bool), (10, 10), SIZE), SIZE)
    assert describes([[10, 10, 20, 10, 20, 20, 10, 20]], square)
    assert describes([[10, 10, 20, 10, 20, 20, 11, 20]], square)
    assert not describes([], square)
    assert describes([[10, 10, 20, 10, 20, 16, 10, 16]], square)
    assert not describes([[10, 10, 20, 10, 20, 14, 10, 14]], square)
    assert not describes([[15, 10, 25, 10, 25, 20, 15, 20]], square)
    thin = Runs(counts_of_crop(np.eye(12, dtype=bool), (10, 10), SIZE), SIZE)
    assert not describes([[10, 22, 22, 10, 23, 11, 11, 23]], thin)


def test_parts_that_meet_at_corners_only_are_several_rings() -> None:
    mask = np.eye(3, dtype=bool)
    annotation = region_to_annotation(region(mask, polygon=pixel_outline(mask, (3, 2))), SIZE, "polygon")
    assert len(annotation["segmentation"]) == 3
    assert np.array_equal(drawn(annotation["segmentation"], SIZE), region(mask).full_mask(SIZE))


def test_the_outline_has_corners_only() -> None:
    assert len(polygon_rings(pixel_outline(np.ones((5, 8), dtype=bool)), (5, 8))[0]) == 8


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("seed", range(3))
def test_merging_unites_the_regions_of_a_label(geometry: str, seed: int) -> None:
    label_map = blobs(seed, SIZE)
    regions = regions_of(label_map, scores=np.random.default_rng(seed))
    merged = regions_to_annotations(reversed(regions), SIZE, geometry, merge=True)
    assert [a["category_id"] for a in merged] == [1, 2, 3, 4]
    for annotation in merged:
        own = [r for r in regions if r.label_id == annotation["category_id"]]
        mask = label_map == annotation["category_id"]
        assert np.array_equal(drawn(annotation["segmentation"], SIZE), mask)
        assert annotation["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        assert annotation["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        mean = np.average([r.score for r in own], weights=[r.area for r in own])
        assert annotation["score"] == pytest.approx(mean, abs=1e-6)
        assert isinstance(annotation["segmentation"], dict) == (geometry == "rle")


def test_an_annotation_is_plain_json() -> None:
    one = Region(np.int64(1), "one", np.float32(0.25), np.int64(9), tuple(np.array([3, 2, 9, 1])), BAR)  # type: ignore[arg-type]
    for geometry in GEOMETRIES:
        annotation = region_to_annotation(one, SIZE, geometry)
        assert json.loads(json.dumps(annotation)) == annotation


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_out_of_range_is_refused(score: float) -> None:
    with pytest.raises(CocoError, match="score"):
        region_to_annotation(region(BAR, score=score), SIZE)


def test_masks_that_cannot_be_are_refused() -> None:
    with pytest.raises(CocoError, match="no pixel"):
        region_to_annotation(region(np.zeros((2, 2), dtype=bool)), SIZE)
    with pytest.raises(CocoError, match="inside the image"):
        region_to_annotation(region(BAR, x=36), SIZE)
    with pytest.raises(CocoError, match="start at 1"):
        region_to_annotation(Region(0, "none", 0.5, 9, (3, 2, 9, 1), BAR), SIZE)
    with pytest.raises(SettingsError, match="polygon, keyhole, rle"):
        region_to_annotation(region(BAR), SIZE, "mask")  # type: ignore[arg-type]


def test_categories_follow_the_vocabulary() -> None:
    vocabulary = Vocabulary.from_options(["Sofa=sofa,couch", "cat", "Änne"])
    assert [(c["id"], c["name"]) for c in categories_of(vocabulary)] == [(1, "Sofa"), (2, "cat"), (3, "Änne")]


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_file_against_itself_is_perfect(tmp_path: Path, geometry: str, merge: bool) -> None:
    path = tmp_path / "out.json"
    maps = [blobs(seed, SIZE) for seed in range(2)] + [np.zeros(SIZE, dtype=np.int32)]
    generator = np.random.default_rng(0)
    images = [
        ImageResult(
            f"p {i}.png", *SIZE, regions_to_annotations(regions_of(m, scores=generator), SIZE, geometry, merge=merge)
        )
        for i, m in enumerate(maps)
    ]
    vocabulary = Vocabulary.from_options(["label 1", "label 2", "label 3", "label 4"])
    write_coco_file(path, images, vocabulary, {"geometry": geometry})
    assert validate_coco(path) == []
    truth, found = COCO(str(path)), COCO(str(path))
    assert len(truth.imgs) == 3 and min(truth.anns) == 1
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == 1.0
    for annotation in truth.anns.values():
        label_map = maps[annotation["image_id"] - 1]
        mask = truth.annToMask(annotation).astype(bool)
        assert annotation["area"] == mask.sum()
        assert (label_map[mask] == annotation["category_id"]).all()


@pytest.mark.slow
def test_simplified_regions_pass_the_check(tmp_path: Path) -> None:
    maps = [blobs(seed, (48, 64)) for seed in range(6)]
    vocabulary = Vocabulary.from_options(["label 1", "label 2", "label 3", "label 4"])
    for merge in (False, True):
        images = []
        for i, label_map in enumerate(maps):
            scores = np.full(label_map.shape, 0.5, dtype=np.float32)
            regions = label_map_to_regions(Segmentation(label_map, scores, vocabulary))
            annotations = regions_to_annotations(regions, label_map.shape, "polygon", merge=merge)
            images.append(ImageResult(f"{i}.png", *label_map.shape, annotations))
        path = tmp_path / f"{merge}.json"
        write_coco_file(path, images, vocabulary, {})
        assert [str(f) for f in validate_coco(path)] == []
