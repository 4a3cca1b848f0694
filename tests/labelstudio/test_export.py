"""What Label Studio's own COCO export gets wrong must be right here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO

from labelstudio_backend.brush_rle import encode_brush
from labelstudio_backend.export import Annotators, export_tasks, is_annotated
from labelstudio_backend.labeling_config import parse_labeling_config
from tcl_core.cli.main import run
from tcl_core.errors import CocoError

CONFIG = parse_labeling_config(
    '<View><Image name="image" value="$image"/>'
    '<PolygonLabels name="p" toName="image"><Label value="cat"/><Label value="dog"/></PolygonLabels>'
    '<BrushLabels name="b" toName="image"><Label value="cat"/><Label value="Background"/></BrushLabels>'
    '<RectangleLabels name="r" toName="image"><Label value="cat"/></RectangleLabels>'
    '<KeyPointLabels name="k" toName="image"><Label value="cat"/></KeyPointLabels></View>'
)
SIZE = (40, 60)


def mask_of(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Boxes ``(top, bottom, left, right)``; overlaps are holes."""
    mask = np.zeros(SIZE, dtype=bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] ^= True
    return mask


def region(kind: str, value: dict[str, Any], label: str = "cat", **more: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "type": kind,
        "from_name": kind[0],
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {**value, kind: [label]},
        **more,
    }


def brush(mask: NDArray[np.bool_], label: str = "cat") -> dict[str, Any]:
    return region("brushlabels", {"format": "rle", "rle": encode_brush(mask)}, label)


def polygon(points: list[tuple[float, float]], label: str = "cat") -> dict[str, Any]:
    percent = [[x / SIZE[1] * 100, y / SIZE[0] * 100] for x, y in points]
    return region("polygonlabels", {"points": percent, "closed": True}, label)


def task(number: int, *annotations: list[dict[str, Any]], url: str | None = None) -> dict[str, Any]:
    made = [
        {"id": 10 * number + place, "result": result, "updated_at": f"2026-01-0{place + 1}T00:00:00Z"}
        for place, result in enumerate(annotations)
    ]
    return {"id": number, "data": {"image": url or f"/data/upload/1/{number}.png"}, "annotations": made}


def export(tmp_path: Path, tasks: list[dict[str, Any]], annotators: Annotators = "latest") -> COCO:
    """Export, check the file as any COCO file is checked, and load it."""
    out = tmp_path / "coco.json"

    def size_of(_: Mapping[str, Any]) -> tuple[int, int]:
        return SIZE

    summary = export_tasks(tasks, CONFIG, out, annotators=annotators, size_of=size_of)
    assert summary.failed == {} and summary.left_out == {}
    assert run(["validate-coco", str(out)]) == 0
    return COCO(str(out))


def masks(coco: COCO, category: str = "cat") -> list[NDArray[np.bool_]]:
    wanted = coco.getCatIds(catNms=[category])
    return [coco.annToMask(one).astype(bool) for one in coco.loadAnns(coco.getAnnIds(catIds=wanted))]


def test_a_brushed_ring_keeps_its_hole(tmp_path: Path) -> None:
    ring = mask_of((5, 35, 5, 45), (15, 25, 15, 35))
    (mask,) = masks(export(tmp_path, [task(1, [brush(ring)])]))
    assert np.array_equal(mask, ring)


def test_a_polygon_along_the_pixels_is_the_mask(tmp_path: Path) -> None:
    (mask,) = masks(export(tmp_path, [task(1, [polygon([(3, 2), (9, 2), (9, 8), (3, 8)])])]))
    assert np.array_equal(mask, mask_of((2, 8, 3, 9)))


def test_a_line_of_one_pixel(tmp_path: Path) -> None:
    (mask,) = masks(export(tmp_path, [task(1, [polygon([(3, 2), (33, 2), (33, 3), (3, 3)])])]))
    assert np.array_equal(mask, mask_of((2, 3, 3, 33)))


def test_a_box_is_a_box(tmp_path: Path) -> None:
    value = {"x": 10, "y": 25, "width": 50, "height": 50, "rotation": 0}
    coco = export(tmp_path, [task(1, [region("rectanglelabels", value)])])
    assert coco.anns[1]["bbox"] == [6, 10, 30, 20] and coco.anns[1]["area"] == 600
    assert np.array_equal(masks(coco)[0], mask_of((10, 30, 6, 36)))


def test_parts_of_one_object_stay_together(tmp_path: Path) -> None:
    parts = mask_of((2, 10, 2, 10), (20, 30, 30, 50))
    (mask,) = masks(export(tmp_path, [task(1, [brush(parts)])]))
    assert np.array_equal(mask, parts)


def test_other_tags_of_the_same_label_change_nothing(tmp_path: Path) -> None:
    point = region("keypointlabels", {"x": 1, "y": 1, "width": 1})
    coco = export(tmp_path, [task(1, [point, brush(mask_of((1, 5, 1, 5)))])])
    assert [category["name"] for category in coco.cats.values()] == ["cat", "dog"]
    assert len(coco.anns) == 1


def test_ids_begin_with_one_and_every_image_is_there_once(tmp_path: Path) -> None:
    box = [brush(mask_of((1, 9, 1, 9)))]
    coco = export(tmp_path, [task(1, box, box), task(2), task(3, box)], "all")
    assert sorted(coco.anns) == [1, 2, 3] and sorted(coco.imgs) == [1, 2, 3]
    assert [image["file_name"] for image in coco.imgs.values()] == ["1.png", "2.png", "3.png"]
    assert (coco.imgs[2]["height"], coco.imgs[2]["width"]) == SIZE


def test_several_annotators(tmp_path: Path) -> None:
    one, two, three = mask_of((0, 20, 0, 30)), mask_of((10, 30, 0, 30)), mask_of((10, 20, 0, 60))
    tasks = [task(1, [brush(one)], [brush(two)], [brush(three)])]
    (latest,) = masks(export(tmp_path / "a", tasks))
    assert np.array_equal(latest, three)
    assert len(masks(export(tmp_path / "b", tasks, "all"))) == 3
    (agreed,) = masks(export(tmp_path / "c", tasks, "consensus"))
    assert np.array_equal(agreed, one.astype(int) + two + three >= 2)


def test_skipped_annotations_and_background_do_not_count(tmp_path: Path) -> None:
    kept = brush(mask_of((1, 9, 1, 9)))
    tasks = [task(1, [kept, brush(mask_of((20, 30, 20, 30)), "Background")], [brush(mask_of((0, 40, 0, 60)))])]
    tasks[0]["annotations"][1]["was_cancelled"] = True
    (mask,) = masks(export(tmp_path, tasks))
    assert np.array_equal(mask, mask_of((1, 9, 1, 9)))


def test_an_image_without_objects_is_not_one_that_nobody_looked_at(tmp_path: Path) -> None:
    """Label Studio's export lists both without annotations, and nobody can tell them apart (its issue 9774)."""
    reviewed, skipped, untouched = task(1, []), task(2, []), task(3)
    skipped["annotations"][0]["was_cancelled"] = True
    wanted = [each for each in (reviewed, skipped, untouched) if is_annotated(each)]
    coco = export(tmp_path, wanted)
    assert [image["file_name"] for image in coco.imgs.values()] == ["1.png"] and coco.anns == {}


def test_names_of_files(tmp_path: Path) -> None:
    urls = [
        "/data/upload/1/ab12-a%20b.png",
        "http://h/data/local-files/?d=sub/a.png",
        "https://bucket.example/x/a.png?X-Amz-Signature=1",
        "https://other.example/y/a.png",
        "data:image/png;base64,AAAA",
    ]
    coco = export(tmp_path, [task(number, url=url) for number, url in enumerate(urls, start=1)])
    names = [image["file_name"] for image in coco.imgs.values()]
    assert names == ["ab12-a b.png", "sub/a.png", "a.png", "a-task-4.png", "task-5"]


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    fine = brush(mask_of((1, 9, 1, 9)))
    turned = {**fine, "image_rotation": 90}
    foreign = brush(mask_of((1, 9, 1, 9)), "zebra")
    damaged = region("brushlabels", {"rle": [1, 2]})
    other = {**fine, "original_width": 61}
    out = tmp_path / "coco.json"
    tasks = [task(1, [fine, turned, foreign, damaged]), task(2, [fine, other]), task(3)]

    def size_of(_: Mapping[str, Any]) -> tuple[int, int]:
        raise CocoError("its image is gone")

    summary = export_tasks(tasks, CONFIG, out, size_of=size_of)
    assert (summary.images, summary.annotations) == (1, 1)
    assert len(summary.left_out[1]) == 3 and "zebra" in summary.left_out[1][1]
    assert "different sizes" in summary.failed[2] and summary.failed[3] == "its image is gone"
    assert len(json.loads(out.read_text())["annotations"]) == 1
    with pytest.raises(CocoError, match="exists"):
        export_tasks(tasks, CONFIG, out, size_of=size_of)
