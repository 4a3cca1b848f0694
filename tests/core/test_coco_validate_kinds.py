"""Kinds of COCO files, severities, and findings that are counted instead of repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tcl_core.cli.main import run
from tcl_core.export.coco.validate import CODES, WARNINGS, Kind, check_coco, group_issues, validate_coco
from tests.core.test_coco_validate import Data, annotation, block, compressed, pop, put, sound, write

SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]


def images() -> list[Data]:
    return [{"id": 0, "file_name": "a.png", "width": 60, "height": 40}]


def boxes() -> Data:
    box = {"image_id": 0, "category_id": 0, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0}
    return {
        "images": images(),
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [
            {"id": 1, **box, "segmentation": []},
            {"id": 2, **box},
            {"id": 3, **box, "segmentation": None},
            # The area of a mask that was left out.
            {"id": 4, **box, "area": 60, "segmentation": []},
        ],
    }


def keypoints() -> Data:
    person = {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
    own: Data = {"keypoints": [8, 8, 2, 0, 0, 0, 12.5, 9, 1], "num_keypoints": 2}
    crowd = {"size": [40, 60], "counts": [40 * 50, 40, 40 * 9]}
    nobody = {"keypoints": [0] * 9, "num_keypoints": 0}
    return {
        "images": images(),
        "categories": [person],
        "annotations": [
            annotation(1, SQUARE, 100, [5, 5, 10, 10], **own) | {"image_id": 0},
            annotation(2, [], 100, [5, 5, 10, 10], **own) | {"image_id": 0},
            annotation(3, crowd, 40, [50, 0, 1, 40], **nobody) | {"image_id": 0, "iscrowd": 1},
        ],
    }


def panoptic() -> Data:
    segment = {"id": 3226956, "category_id": 1, "area": 100, "bbox": [5, 5, 10, 10], "iscrowd": 0}
    return {
        "images": images(),
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
        "annotations": [
            {"image_id": 0, "file_name": "a.png", "segments_info": [segment, {**segment, "id": 7, "category_id": 2}]}
        ],
    }


def captions() -> Data:
    return {"images": images(), "annotations": [{"id": 1, "image_id": 0, "caption": "A cat."}]}


KINDS: dict[Kind, Callable[[], Data]] = {
    Kind.INSTANCES: sound,
    Kind.BOXES: boxes,
    Kind.KEYPOINTS: keypoints,
    Kind.PANOPTIC: panoptic,
    Kind.CAPTIONS: captions,
}


def codes(tmp_path: Path, data: Data) -> list[str]:
    return [issue.code for issue in validate_coco(write(tmp_path / "coco.json", data))]


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_is_recognized_and_misses_nothing_of_another(
    tmp_path: Path, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "coco.json", KINDS[kind]())
    check = check_coco(path)
    assert check.kind is kind and check.issues == []
    if kind is not Kind.PANOPTIC:
        # pycocotools reads it too; panoptic files have a library of their own.
        COCO(str(path))
    capsys.readouterr()
    assert run(["validate-coco", str(path)]) == 0
    shown = "" if kind is Kind.INSTANCES else f" ({kind})"
    assert capsys.readouterr().err == f"{path}: no issues found{shown}\n"


FAULTS: list[tuple[Kind, Callable[[Data], None], str]] = [
    (Kind.BOXES, put(bbox=[5, 5, 100, 10]), "bbox-outside"),
    (Kind.BOXES, put(area=300), "area-mismatch"),
    (Kind.BOXES, pop("bbox"), "missing-key"),
    (Kind.BOXES, pop("area"), "missing-key"),
    (Kind.BOXES, pop("iscrowd"), "missing-key"),
    (Kind.BOXES, put(category_id=4), "unknown-category"),
    (Kind.KEYPOINTS, put(num_keypoints=3), "keypoints-count"),
    (Kind.KEYPOINTS, pop("num_keypoints"), "missing-key"),
    (Kind.KEYPOINTS, pop("keypoints"), "missing-key"),
    (Kind.KEYPOINTS, put(keypoints="8 8 2"), "wrong-type"),
    (Kind.KEYPOINTS, put(keypoints=[8, 8, 2]), "bad-keypoints"),
    (Kind.KEYPOINTS, put(keypoints=[8, 8, 3, 0, 0, 0, 12.5, 9, 1]), "bad-keypoints"),
    (Kind.KEYPOINTS, put(keypoints=[8, 8, 2, 0, 0, 0, 99, 9, 1]), "keypoint-outside"),
    (Kind.KEYPOINTS, put(area=300), "area-mismatch"),
    (Kind.PANOPTIC, lambda a: a["segments_info"][0].update(id=0), "zero-id"),
    (Kind.PANOPTIC, lambda a: a["segments_info"][0].update(id=7), "duplicate-id"),
    (Kind.PANOPTIC, lambda a: a["segments_info"][0].update(id=256**3), "segment-id"),
    (Kind.PANOPTIC, lambda a: a["segments_info"][0].update(category_id=9), "unknown-category"),
    (Kind.PANOPTIC, lambda a: a["segments_info"][0].pop("area"), "missing-key"),
    (Kind.PANOPTIC, lambda a: a["segments_info"].append(3), "wrong-type"),
    (Kind.PANOPTIC, put(segments_info={}), "wrong-type"),
    (Kind.PANOPTIC, put(image_id=5), "unknown-image"),
    (Kind.PANOPTIC, pop("file_name"), "missing-key"),
    (Kind.PANOPTIC, put(file_name="../a.png"), "outside-file-name"),
    (Kind.CAPTIONS, put(caption=""), "empty-name"),
    (Kind.CAPTIONS, put(image_id=5), "unknown-image"),
    (Kind.CAPTIONS, put(id=0), "zero-id"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f[0]}-{f[2]}")
def test_one_fault_gives_one_issue(tmp_path: Path, fault: Any) -> None:
    kind, plant, code = fault
    data = KINDS[kind]()
    plant(data["annotations"][0])
    check = check_coco(write(tmp_path / "coco.json", data))
    assert check.kind is kind
    assert [issue.code for issue in check.issues] == [code], [str(issue) for issue in check.issues]
    assert check.issues[0].location.startswith("annotations[0]")


@pytest.mark.parametrize("skeleton", [[[1, 4]], [[0, 1]], [[1]], {"a": 1}, [["nose", "left_eye"]]])
def test_a_skeleton_joins_points_of_its_category(tmp_path: Path, skeleton: Any) -> None:
    data = keypoints()
    data["categories"][0]["skeleton"] = skeleton
    assert codes(tmp_path, data) == ["bad-skeleton"]
    data["categories"][0].update(skeleton=[], keypoints="nose")
    assert codes(tmp_path, data)[0] == "wrong-type"


def test_a_list_of_results_is_told_from_a_data_set(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}]))
    (issue,) = validate_coco(path)
    assert issue.code == "wrong-type" and "tcl-annotate score --gt FILE --dt FILE" in issue.message


# -- zero ids ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["images", "categories", "annotations"])
def test_a_zero_id_is_reported_exactly_where_it_changes_a_score(tmp_path: Path, section: str) -> None:
    """COCOeval itself is asked: a perfect detection scores 1 unless an annotation has the id 0."""
    ids = {"images": 3, "categories": 3, "annotations": 3} | {section: 0}
    own = {"image_id": ids["images"], "category_id": ids["categories"], "id": ids["annotations"]}
    data = {
        "info": {},
        "images": [{"id": ids["images"], "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": ids["categories"], "name": "cat"}],
        "annotations": [annotation(1, SQUARE, 100, [5, 5, 10, 10]) | own],
    }
    path = write(tmp_path / "coco.json", data)
    reported = codes(tmp_path, data)
    truth = COCO(str(path))
    evaluation = COCOeval(truth, truth.loadRes([{**data["annotations"][0], "score": 0.9}]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    is_missed = bool(evaluation.stats[0] < 0.99)
    assert reported == (["zero-id"] if is_missed else [])
    assert is_missed is (section == "annotations")


# -- severities and groups ---------------------------------------------------------------------------------------------


def test_every_warning_is_a_code() -> None:
    assert WARNINGS < set(CODES)


def test_warnings_alone_leave_the_exit_code_at_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sound()
    data["annotations"][0]["segmentation"] = [[5, 5, 15, 15, 15, 5, 5, 15]]
    path = str(write(tmp_path / "coco.json", data))
    assert run(["validate-coco", path]) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("warning: annotations[0] (id 11): ") and streams.err == f"{path}: 1 warning\n"
    assert run(["validate-coco", path, "--strict"]) == 1
    data["annotations"][1]["image_id"] = 9
    write(tmp_path / "coco.json", data)
    capsys.readouterr()
    assert run(["validate-coco", path]) == 1
    streams = capsys.readouterr()
    # Errors come first, although they are later in the file.
    assert [line.split(":")[0] for line in streams.out.splitlines()] == ["error", "warning"]
    assert streams.err == f"{path}: 1 error, 1 warning\n"


def test_crowds_are_judged_mildly(tmp_path: Path) -> None:
    data = sound()
    crowd = data["annotations"][3]
    crowd.update(area=90, bbox=[48, 0, 5, 40])
    issues = validate_coco(write(tmp_path / "coco.json", data))
    assert [(issue.code, issue.severity) for issue in issues] == [
        ("area-mismatch", "warning"),
        ("bbox-mismatch", "warning"),
    ]
    data = sound()
    data["annotations"][2].update(area=90, bbox=[38, 20, 12, 12])
    severities = {i.code: i.severity for i in validate_coco(write(tmp_path / "coco.json", data))}
    assert severities == {"area-mismatch": "warning", "bbox-mismatch": "error"}


def test_an_area_of_nothing_is_odd_and_one_below_is_wrong(tmp_path: Path) -> None:
    for area, severity in ((0, "warning"), (-1, "error")):
        data = sound()
        data["annotations"][0]["area"] = area
        (issue,) = validate_coco(write(tmp_path / "coco.json", data))
        assert (issue.code, issue.severity) == ("bad-area", severity)


def test_what_is_alike_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sound()
    data["annotations"] = [
        annotation(n + 1, compressed(block(n % 40, 0, 3, 3)), 9, [n % 40, 0, 3, 3]) for n in range(1500)
    ]
    for index, entry in enumerate(data["annotations"]):
        if index % 3 == 0:
            del entry["iscrowd"]
        if index in (10, 20):
            entry["image_id"] = 77 + index
    path = str(write(tmp_path / "coco.json", data))
    issues = validate_coco(path)
    assert len(issues) == 502
    assert [len(group.issues) for group in group_issues(issues)] == [500, 2]
    assert run(["validate-coco", path]) == 1
    streams = capsys.readouterr()
    assert streams.out.splitlines() == [
        "error: annotations[0] (id 1): iscrowd is missing [missing-key]",
        "    and 499 similar ones, the last at annotations[1497] (id 1498)",
        "error: annotations[10] (id 11): image_id is 87; no image has this id [unknown-image]",
        "error: annotations[20] (id 21): image_id is 97; no image has this id [unknown-image]",
    ]
    assert streams.err == f"{path}: 502 errors\n"
    assert run(["validate-coco", path, "--all"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 502


def test_findings_about_different_fields_are_not_alike(tmp_path: Path) -> None:
    data = sound()
    for entry in data["annotations"]:
        del entry["iscrowd"], entry["area"]
    groups = group_issues(validate_coco(write(tmp_path / "coco.json", data)))
    assert sorted({issue.message for group in groups for issue in group.issues}) == [
        "area is missing",
        "iscrowd is missing",
    ]
    assert len(groups) == 2 and np.prod([len(group.issues) for group in groups]) == 25
