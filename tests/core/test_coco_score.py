"""Scores of detections: the figures of pycocotools itself, and a sentence for each way in which files do not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tcl_core.cli.main import run
from tcl_core.errors import CocoError
from tcl_core.evaluation.coco_score import METRICS, score_coco

Data = dict[str, Any]
SIZE = (120, 160)


def rle_of(box: list[int], size: tuple[int, int] = SIZE) -> Data:
    mask = np.zeros(size, dtype=np.uint8, order="F")
    x, y, w, h = box
    mask[y : y + h, x : x + w] = 1
    # A corner is missing, so that masks and boxes overlap differently.
    mask[y : y + h // 2, x : x + w // 2] = 0
    encoded = coco_mask.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode()}


def world(seed: int) -> tuple[Data, list[Data]]:
    """Ground truth with crowds, rings and run lengths of all sizes, and detections near it, beside it and twice."""
    rng = np.random.default_rng(seed)
    images = [{"id": 10 * n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in range(6)]
    categories = [{"id": n, "name": f"c{n}"} for n in (3, 5, 8)]
    annotations, results = [], []
    for image in images:
        for _ in range(rng.integers(0, 7)):
            x, y = (int(v) for v in rng.integers(0, 60, 2))
            w, h = (int(v) for v in rng.integers(4, 58, 2))
            rle = rle_of([x, y, w, h])
            rings = [[x + w / 2, y, x + w, y, x + w, y + h, x, y + h, x, y + h / 2, x + w / 2, y + h / 2]]
            crowd = int(rng.random() < 0.15)
            annotations.append(
                {
                    "id": len(annotations) + 100,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([3, 5, 8])),
                    "bbox": [x, y, w, h],
                    "segmentation": rle if crowd or rng.random() < 0.5 else rings,
                    "area": float(coco_mask.area(rle)),
                    "iscrowd": crowd,
                }
            )
            for _ in range(rng.integers(0, 3)):
                shift = [int(v) for v in rng.integers(-4, 5, 2)]
                box = [max(0, x + shift[0]), max(0, y + shift[1]), w, h]
                other = int(rng.choice([3, 5, 8])) if rng.random() < 0.2 else annotations[-1]["category_id"]
                results.append(
                    {
                        "image_id": image["id"],
                        "category_id": other,
                        "bbox": [float(v) for v in box],
                        "segmentation": rle_of(box),
                        "score": float(rng.random()),
                    }
                )
    return {"images": images, "categories": categories, "annotations": annotations}, results


def as_coco_file(truth: Data, results: list[Data]) -> Data:
    """The same detections with images and categories in another order, and ids of their own."""
    images = [{**image, "id": n} for n, image in enumerate(reversed(truth["images"]), start=1)]
    categories = [{**category, "id": n} for n, category in enumerate(reversed(truth["categories"]), start=1)]
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    labels = {category["id"]: category["name"] for category in truth["categories"]}
    image_ids = {image["file_name"]: image["id"] for image in images}
    category_ids = {category["name"]: category["id"] for category in categories}
    annotations = [
        {
            **result,
            "id": n,
            "image_id": image_ids[names[result["image_id"]]],
            "category_id": category_ids[labels[result["category_id"]]],
        }
        for n, result in enumerate(results, start=1)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def reference(truth: Path, results: list[Data], kind: str) -> list[float | None]:
    """What the usual few lines with pycocotools give, on results as its format wants them."""
    coco = COCO(str(truth))
    key = "bbox" if kind == "box" else "segmentation"
    found = coco.loadRes([{k: copy.deepcopy(r[k]) for k in ("image_id", "category_id", "score", key)} for r in results])
    evaluation = COCOeval(coco, found, "bbox" if kind == "box" else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [None if value < 0 else float(value) for value in evaluation.stats]


@pytest.mark.parametrize("seed", range(8))
def test_figures_are_those_of_pycocotools(tmp_path: Path, seed: int) -> None:
    truth, results = world(seed)
    gt = write(tmp_path / "gt.json", truth)
    for dt in (write(tmp_path / "r.json", results), write(tmp_path / "dt.json", as_coco_file(truth, results))):
        scores = score_coco(gt, dt)
        assert [score.kind for score in scores.scores] == ["box", "segm"] and scores.notes == ()
        assert (scores.images, scores.annotations) == (6, len(truth["annotations"]))
        for score in scores.scores:
            assert list(score.figures) == list(METRICS)
            expected = reference(gt, results, score.kind)
            for got, wanted in zip(score.figures.values(), expected, strict=True):
                assert got == (None if wanted is None else pytest.approx(wanted, abs=1e-12))
            own = [value for value in score.categories.values() if value is not None]
            assert score.figures["AP"] == pytest.approx(np.mean(own), abs=1e-12)


def one_image(results: list[Data]) -> tuple[Data, list[Data]]:
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 120, "width": 160}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": [40 * n, 10, 20, 20], "area": 400, "iscrowd": 0}
            for n in (0, 1)
        ],
    }
    return truth, [{"image_id": 1, "category_id": 1, **result} for result in results]


@pytest.mark.parametrize(
    ("results", "precision"),
    [
        # One of two found: precision 1 at the 51 of 101 recalls from 0 to 0.5.
        ([{"bbox": [0, 10, 20, 20], "score": 0.9}], 51 / 101),
        ([{"bbox": [40, 10, 20, 20], "score": 0.9}], 51 / 101),
        ([{"bbox": [0, 10, 20, 20], "score": 0.9}, {"bbox": [40, 10, 20, 20], "score": 0.1}], 1.0),
        # A wrong one before it halves the precision of the right one.
        ([{"bbox": [90, 90, 20, 20], "score": 0.9}, {"bbox": [0, 10, 20, 20], "score": 0.5}], 51 / 101 / 2),
        # IoU 2/3 is right up to the threshold 0.65: four of ten.
        ([{"bbox": [4, 10, 20, 20], "score": 0.9}], 51 / 101 * 4 / 10),
        ([], 0.0),
    ],
)
def test_figures_counted_by_hand(tmp_path: Path, results: list[Data], precision: float) -> None:
    """The ids of the annotations are 0 and 1, and the one with 0 counts like the other."""
    truth, found = one_image(results)
    scores = score_coco(write(tmp_path / "gt.json", truth), write(tmp_path / "dt.json", found), ["box"])
    (score,) = scores.scores
    assert score.figures["AP"] == pytest.approx(precision)
    assert score.categories == {"cat": pytest.approx(precision)}
    assert score.figures["AP large"] is None


def test_what_is_left_out_or_filled_in_is_said(tmp_path: Path) -> None:
    truth, results = world(1)
    dt = as_coco_file(truth, results)
    gt = write(tmp_path / "gt.json", truth)
    whole = score_coco(gt, write(tmp_path / "dt.json", dt))
    dt["images"].append({"id": 99, "file_name": "other.png", "height": 9, "width": 9})
    dt["categories"] += [{"id": 98, "name": "tree"}]
    strange = {"bbox": [0, 0, 5, 5], "segmentation": rle_of([0, 0, 5, 5]), "score": 1.0}
    dt["annotations"] += [
        {**strange, "id": 1001, "image_id": 99, "category_id": 1},
        {**strange, "id": 1002, "image_id": 1, "category_id": 98},
    ]
    more = score_coco(gt, write(tmp_path / "more.json", dt))
    assert more.scores == whole.scores
    assert [note.split(",")[0] for note in more.notes] == ["1 detections are left out"] * 2
    # Fewer images and categories than the ground truth.
    gone = dt["images"].pop(0)
    dt["categories"] = [category for category in dt["categories"] if category["name"] != "c5"]
    kept = {category["id"] for category in dt["categories"]}
    dt["annotations"] = [a for a in dt["annotations"] if a["image_id"] != gone["id"] and a["category_id"] in kept]
    notes = score_coco(gt, write(tmp_path / "fewer.json", dt)).notes
    assert any(note.startswith("1 images of") and note.endswith("count as missed") for note in notes)
    assert any("score 0: c5" in note for note in notes)
    # Ground truth of another writer.
    for entry in truth["annotations"]:
        del entry["iscrowd"], entry["area"]
    notes = score_coco(write(tmp_path / "bare.json", truth), tmp_path / "dt.json").notes
    assert any("lack iscrowd; 0 is taken" in note for note in notes)
    assert any("lack area; that of the mask or box is taken" in note for note in notes)


def test_a_missing_area_and_iscrowd_give_the_same_figures(tmp_path: Path) -> None:
    truth, results = world(2)
    for entry in truth["annotations"]:
        entry.update(iscrowd=0, area=float(coco_mask.area(rle_of(entry["bbox"]))), segmentation=rle_of(entry["bbox"]))
    dt = write(tmp_path / "dt.json", results)
    whole = score_coco(write(tmp_path / "gt.json", truth), dt)
    for entry in truth["annotations"]:
        del entry["iscrowd"], entry["area"]
    assert score_coco(write(tmp_path / "bare.json", truth), dt).scores == whole.scores


def test_images_in_other_folders_are_told_by_the_last_part_of_their_names(tmp_path: Path) -> None:
    truth, results = world(3)
    dt = as_coco_file(truth, results)
    gt = write(tmp_path / "gt.json", truth)
    whole = score_coco(gt, write(tmp_path / "dt.json", dt))
    for image in dt["images"]:
        image["file_name"] = f"photos\\{image['file_name']}"
    moved = score_coco(gt, write(tmp_path / "moved.json", dt))
    assert moved.scores == whole.scores and "last part of their file names" in moved.notes[0]


def test_boxes_alone(tmp_path: Path) -> None:
    truth, results = world(4)
    gt = write(tmp_path / "gt.json", truth)
    boxes = [{key: value for key, value in result.items() if key != "segmentation"} for result in results]
    dt = write(tmp_path / "boxes.json", boxes)
    scores = score_coco(gt, dt)
    assert [score.kind for score in scores.scores] == ["box"]
    # loadRes would make a mask of each box, and score that.
    assert scores.notes == (f"masks are not scored: {dt}: [0] has no segmentation",)
    with pytest.raises(CocoError, match=r"boxes\.json: \[0\]: has no segmentation.*--type box"):
        score_coco(gt, dt, ["segm"])
    masks = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    both = score_coco(gt, write(tmp_path / "masks.json", masks))
    assert [score.kind for score in both.scores] == ["box", "segm"]
    assert both.scores[1] == score_coco(gt, write(tmp_path / "r.json", results)).scores[1]


def test_more_detections_than_count(tmp_path: Path) -> None:
    truth, _ = one_image([])
    results = [{"image_id": 1, "category_id": 1, "bbox": [n, 50, 5, 5], "score": 0.5} for n in range(103)]
    scores = score_coco(write(tmp_path / "gt.json", truth), write(tmp_path / "dt.json", results))
    assert any(note.startswith("3 detections do not count, for COCO takes the 100 best") for note in scores.notes)


def put(path: str, value: Any) -> Callable[[Any, Any], None]:
    """Put a value at a path such as ``dt.annotations.0.score``; ``...`` removes it."""

    def plant(gt: Any, dt: Any) -> None:
        side, *keys = path.split(".")
        where: Any = gt if side == "gt" else dt
        steps = [int(key) if key.isdigit() else key for key in keys]
        for step in steps[:-1]:
            where = where[step]
        if value is ...:
            del where[steps[-1]]
        else:
            where[steps[-1]] = value

    return plant


def rename(section: str, key: str) -> Callable[[Any, Any], None]:
    def plant(_: Any, dt: Any) -> None:
        for entry in dt[section]:
            entry[key] = f"x{entry['id']}"

    return plant


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (put("r.0.image_id", 11), r"r\.json: \[0\]: image_id is 11, but .*gt\.json has no image with that id; results"),
        (put("r.0.category_id", 1), r"r\.json: \[0\]: category_id is 1, but .*gt\.json has no category with that id"),
        (put("r.0.image_id", "10"), r"r\.json: \[0\]: image_id is not a whole number"),
        (put("r.0.image_id", ...), r"r\.json: \[0\]: image_id is missing"),
        (put("r.0.score", ...), r"r\.json: \[0\]: score is missing; average precision needs a score"),
        (put("r.0.score", "high"), r"r\.json: \[0\]: score is not a number"),
        (put("r.0.bbox", [1, 2, 3]), r"r\.json: \[0\]: bbox is not four numbers"),
        (put("r.0.bbox", [1, 2, 3, -4]), r"r\.json: \[0\]: bbox is not four numbers"),
        (put("r.0.segmentation", [[1, 2, 3, 4]]), r"r\.json: \[0\]: segmentation: .*at least three points"),
        (put("r.0.segmentation.size", [9, 9]), r"r\.json: \[0\]: segmentation: its size is \[9, 9\], the image is 120"),
        (put("r.0.segmentation.counts", "\x7f"), r"r\.json: \[0\]: segmentation: "),
        (put("r.0", 3), r"r\.json: \[0\]: is not an object"),
        (put("gt.annotations.0.image_id", 11), r"gt\.json: annotations\[0\] \(id 100\): image_id is 11"),
        (put("gt.annotations.0.caption", "x"), r"gt\.json: annotations\[0\].* is a caption or has panoptic segments"),
        (put("gt.images.1.id", 0), r"gt\.json: images\[1\] \(id 0\): the id 0 is used twice"),
        (put("gt.images", ...), r"gt\.json: has no list of images; pass a COCO file"),
        (put("gt.images.0.width", ...), r"gt\.json: the image with id 0 has no width and height, which masks need"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, plant: Callable[[Any, Any], None], message: str) -> None:
    truth, results = world(0)
    results.sort(key=lambda result: result["image_id"])
    assert results[0]["image_id"] == 0
    plant(truth, results)
    with pytest.raises(CocoError, match=message) as caught:
        score_coco(write(tmp_path / "gt.json", truth), write(tmp_path / "r.json", results))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (
            put("dt.images.0.width", 161),
            r"'5\.png' is 161x120, in .*gt\.json it is 160x120; score detections of",
        ),
        (
            put("dt.annotations.0.image_id", 77),
            r"annotations\[0\].*image_id is 77, and the file has no image",
        ),
        (put("dt.annotations.0.score", ...), r"dt\.json: annotations\[0\] \(id 1\): score is missing"),
        (
            lambda gt, dt: [c.update(name="x") for c in dt["categories"]],
            r"no category has the name of one in .*\('x' here",
        ),
        (
            lambda gt, dt: [i.update(file_name=f"x{i['id']}") for i in dt["images"]],
            "no image has the file name of one in",
        ),
        (put("dt.categories", ...), r"dt\.json: has no list of categories"),
    ],
)
def test_detections_in_a_coco_file_that_do_not_fit(
    tmp_path: Path, plant: Callable[[Any, Any], None], message: str
) -> None:
    truth, results = world(0)
    dt = as_coco_file(truth, results)
    plant(truth, dt)
    with pytest.raises(CocoError, match=message):
        score_coco(write(tmp_path / "gt.json", truth), write(tmp_path / "dt.json", dt))


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"\xff", b'"x"'])
def test_files_that_are_no_json(tmp_path: Path, content: bytes) -> None:
    truth, _ = one_image([])
    (tmp_path / "bad.json").write_bytes(content)
    gt = write(tmp_path / "gt.json", truth)
    for pair in ((gt, tmp_path / "bad.json"), (tmp_path / "bad.json", gt), (tmp_path / "none.json", gt)):
        with pytest.raises(CocoError, match=r"(bad|none)\.json"):
            score_coco(*pair)
    with pytest.raises(CocoError, match="are --gt and --dt swapped"):
        score_coco(write(tmp_path / "list.json", []), gt)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    truth, results = world(5)
    write(tmp_path / "gt.json", truth)
    write(tmp_path / "dt.json", results)
    words = ["score", "--gt", "gt.json", "--dt", "dt.json"]
    assert run([*words, "--per-category", "--json", "s.json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"6 images, {len(truth['annotations'])} annotations, {len(results)} detections"
    assert shown[1].split() == ["box", "segm"]
    rows = {line[:9].strip(): line[9:].split()[:2] for line in shown[2:]}
    expected = score_coco("gt.json", "dt.json")
    written = json.loads((tmp_path / "s.json").read_text())
    for place, score in enumerate(expected.scores):
        for name, value in score.figures.items():
            assert rows[name][place] == ("-" if value is None else f"{value:.3f}")
        for name, value in score.categories.items():
            assert rows[f"AP {name}"][place] == ("-" if value is None else f"{value:.3f}")
        assert written[score.kind]["figures"] == score.figures
    # pycocotools' own talk is not mixed in.
    assert not any("DONE" in line or "Accumulating" in line for line in shown)
    assert run([*words, "--json", "s.json"]) == 2
    assert "already exists; add --overwrite" in capsys.readouterr().err
    assert run([*words, "--json", "gt.json", "--overwrite"]) == 2
    assert "is an input of this command" in capsys.readouterr().err
    assert run([*words, "--type", "box"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["box"]
