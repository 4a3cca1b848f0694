from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from labelstudio_backend.labeling_config import LabelingConfig, parse_labeling_config
from labelstudio_backend.results import overall_score, region_results, text_result
from labelstudio_backend.shapes import mask_of_value
from tcl_core.polygons.rasterize import mask_iou
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary

SIZE = (90, 120)


def config(*tags: str) -> LabelingConfig:
    body = "".join(
        f'<{tag} name="{tag[:4].lower()}" toName="image"><Label value="cat"/></{tag.split()[0]}>' for tag in tags
    )
    return parse_labeling_config(f'<View><Image name="image" value="$image"/>{body}</View>')


def regions_of(mask: NDArray[np.bool_], tolerance: str | float = "fine") -> list[Region]:
    scores = np.where(mask, 0.75, 0).astype(np.float32)
    segmentation = Segmentation(mask.astype(np.int32), scores, Vocabulary.from_options(["cat"]))
    return label_map_to_regions(segmentation, tolerance=tolerance)


def disk(hole: bool = False) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 44, columns - 60)
    return (distance < 35) & (distance > (12 if hole else -1))


def drawn(mask: NDArray[np.bool_]) -> list[tuple[str, Region]]:
    return [("cat", region) for region in regions_of(mask)]


def test_every_tag_draws_the_region() -> None:
    results = region_results(config("PolygonLabels", "BrushLabels", "RectangleLabels"), drawn(disk()), SIZE)
    assert [result["type"] for result in results] == ["polygonlabels", "brushlabels", "rectanglelabels"]
    assert len({result["id"] for result in results}) == 3
    for result in results:
        assert (result["original_width"], result["original_height"], result["image_rotation"]) == (120, 90, 0)
        assert result["score"] == 0.75 and result["to_name"] == "image"
        assert result["value"][result["type"]] == ["cat"]


def test_brush_is_the_mask_and_the_polygon_nearly_so() -> None:
    mask = disk()
    polygon, brush = region_results(config("PolygonLabels", "BrushLabels"), drawn(mask), SIZE)
    assert np.array_equal(mask_of_value("brushlabels", brush["value"], SIZE), mask)
    assert mask_iou(mask_of_value("polygonlabels", polygon["value"], SIZE), mask) >= 0.98
    assert len(polygon["value"]["points"]) < 80 and polygon["value"]["closed"] is True


def test_box_is_tight_and_in_percent() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[9:45, 30:60] = True
    (box,) = region_results(config("RectangleLabels"), drawn(mask), SIZE)
    assert box["value"] == {"x": 25, "y": 10, "width": 25, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    assert np.array_equal(mask_of_value("rectanglelabels", box["value"], SIZE), mask)


def test_a_hole_is_brushed_where_there_is_a_brush() -> None:
    results = region_results(config("PolygonLabels", "BrushLabels"), drawn(disk(hole=True)), SIZE)
    assert [result["type"] for result in results] == ["brushlabels"]
    assert np.array_equal(mask_of_value("brushlabels", results[0]["value"], SIZE), disk(hole=True))


def test_a_hole_is_kept_by_the_polygon_where_there_is_no_brush() -> None:
    (polygon,) = region_results(config("PolygonLabels"), drawn(disk(hole=True)), SIZE)
    assert mask_iou(mask_of_value("polygonlabels", polygon["value"], SIZE), disk(hole=True)) >= 0.98


def test_a_brush_for_holes_only() -> None:
    tags = config("PolygonLabels", 'BrushLabels model_regions="holes"')
    assert [r["type"] for r in region_results(tags, drawn(disk()), SIZE)] == ["polygonlabels"]
    assert [r["type"] for r in region_results(tags, drawn(disk(hole=True)), SIZE)] == ["brushlabels"]


def test_a_skipped_tag_and_a_foreign_label_draw_nothing() -> None:
    assert region_results(config('PolygonLabels model_skip="true"'), drawn(disk()), SIZE) == []
    region = regions_of(disk())[0]
    assert region_results(config("PolygonLabels"), [("dog", region)], SIZE) == []


def test_ragged_regions_keep_their_shape_as_far_as_the_tolerance_says() -> None:
    mask = np.zeros(SIZE, dtype=bool)
    mask[:24, :32] = np.random.default_rng(3).random((24, 32)) > 0.45
    for region in regions_of(mask, 2.0):
        (result,) = region_results(config("PolygonLabels"), [("cat", region)], SIZE)
        # Specks may lose more, as the documentation of tolerances says.
        least = 0.9 if region.area >= 64 else 0.5
        assert mask_iou(mask_of_value("polygonlabels", result["value"], SIZE), region.full_mask(SIZE)) >= least


def test_scores_are_finite_and_count_every_region_the_same() -> None:
    one = Region(1, "cat", float("nan"), 4, (0, 0, 2, 2), np.ones((2, 2), dtype=bool))
    (result,) = region_results(config("RectangleLabels"), [("cat", one)], SIZE)
    assert result["score"] == 0
    small = Region(1, "cat", 0.9, 1, (0, 0, 1, 1), np.ones((1, 1), dtype=bool))
    large = Region(1, "cat", 0.5, 3, (0, 0, 3, 1), np.ones((1, 3), dtype=bool))
    assert overall_score([("cat", small), ("cat", large)]) == 0.7
    assert overall_score([]) == 0


def test_text_needs_a_prompt_field() -> None:
    assert text_result(config("PolygonLabels"), ["hello"]) == []


def test_turned_rectangle() -> None:
    value = {"x": 50, "y": 50, "width": 25, "height": 20, "rotation": 90}
    mask = mask_of_value("rectanglelabels", value, (100, 100))
    expected = np.zeros((100, 100), dtype=bool)
    expected[50:75, 30:50] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("polygonlabels", {}),
        ("polygonlabels", {"points": [[0, 0], [1, 1]]}),
        ("polygonlabels", {"points": [[0, 0], [1, 1], ["a", 2]]}),
        ("polygonlabels", {"points": [[0, 0], [1, 1], [float("inf"), 2]]}),
        ("rectanglelabels", {"x": 1}),
        ("rectanglelabels", {"x": 1, "y": 1, "width": float("nan"), "height": 1}),
        ("brushlabels", {"rle": "abc"}),
        ("ellipselabels", {}),
    ],
)
def test_values_that_are_no_region(kind: str, value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        mask_of_value(kind, value, SIZE)
