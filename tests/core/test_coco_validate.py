from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tcl_core.errors import CocoError
from tcl_core.export.coco import CODES, Issue, validate_coco

Data = dict[str, Any]
KEYHOLE = [10, 10, 30, 10, 30, 30, 10, 30, 10, 20, 15, 20, 25, 20, 25, 15, 15, 15, 15, 20, 10, 20]


def compressed(mask: np.ndarray) -> Data:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def block(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return mask


def annotation(number: int, segmentation: Any, area: float, bbox: list[float], **more: Any) -> Data:
    ids = {"id": number, "image_id": 1, "category_id": 1}
    return {**ids, "segmentation": segmentation, "area": area, "bbox": bbox, "iscrowd": 0, **more}


def sound() -> Data:
    """A file without fault: a square, a square with a hole, an RLE, a crowd with plain counts."""
    crowd = {"size": [40, 60], "counts": [40 * 50, 40, 40 * 9]}
    return {
        "info": {"description": "test", "year": 2017},
        "licenses": [{"id": 1, "name": "free"}],
        "images": [
            {"id": 1, "file_name": "a.png", "width": 60, "height": 40, "license": 1, "flickr_url": "x"},
            {"id": 2, "file_name": "sub/b c.jpg", "width": 20, "height": 30},
        ],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 90, "name": "dog"}],
        "annotations": [
            annotation(11, [[5, 5, 15, 5, 15, 15, 5, 15]], 100, [5, 5, 10, 10], score=0.5),
            annotation(12, [KEYHOLE], 350, [10, 10, 20, 20]),
            annotation(13, compressed(block(40, 20, 10, 12)), 120, [40, 20, 10, 12], caption="a block"),
            annotation(14, crowd, 40, [50, 0, 1, 40], iscrowd=1),
            annotation(15, [[0, 0, 9, 0, 9, 4, 0, 4], [20, 0, 29, 0, 29, 4, 20, 4]], 72.5, [0, 0, 29.0, 4.0]),
        ],
    }


def write(path: Path, data: Any) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


def check(tmp_path: Path, data: Any) -> list[Issue]:
    return validate_coco(write(tmp_path / "coco.json", data))


def pop(*keys: str) -> Callable[[Data], None]:
    def plant(entry: Data) -> None:
        for key in keys:
            del entry[key]

    return plant


def put(**values: Any) -> Callable[[Data], None]:
    return lambda entry: entry.update(values)


def rle(**values: Any) -> Callable[[Data], None]:
    return lambda entry: entry["segmentation"].update(values)


def rings(*new: Any) -> Callable[[Data], None]:
    return put(segmentation=list(new))


def first_coordinate(value: float) -> Callable[[Data], None]:
    def plant(entry: Data) -> None:
        entry["segmentation"][0][0] = value

    return plant


SQUARE = "annotations", 0, "annotations[0] (id 11)"
HOLED = "annotations", 1, "annotations[1] (id 12)"
MASK = "annotations", 2, "annotations[2] (id 13)"
CROWD = "annotations", 3, "annotations[3] (id 14)"
IMAGE = "images", 1, "images[1] (id 2)"
DOG = "categories", 1, "categories[1] (id 90)"
NAN, INF = float("nan"), float("inf")

FAULTS: list[tuple[tuple[str, int, str], Callable[[Data], None], str]] = [
    # ids and references
    (HOLED, put(id=11), "duplicate-id"),
    (SQUARE, put(id=0), "zero-id"),
    (SQUARE, put(id=-3), "negative-id"),
    (SQUARE, put(id="11"), "wrong-type"),
    (SQUARE, put(id=11.0), "wrong-type"),
    (SQUARE, put(id=True), "wrong-type"),
    (SQUARE, put(id=None), "wrong-type"),
    (SQUARE, pop("id"), "missing-key"),
    (SQUARE, put(image_id=7), "unknown-image"),
    (SQUARE, put(image_id=[1]), "wrong-type"),
    (SQUARE, pop("image_id"), "missing-key"),
    (SQUARE, put(category_id=2), "unknown-category"),
    (SQUARE, put(category_id="cat"), "wrong-type"),
    (SQUARE, pop("category_id"), "missing-key"),
    (IMAGE, put(id=1), "duplicate-id"),
    (IMAGE, put(id="b"), "wrong-type"),
    (DOG, put(id=1), "duplicate-id"),
    (DOG, pop("id"), "missing-key"),
    # images and categories
    (IMAGE, put(file_name="a.png"), "duplicate-file-name"),
    (IMAGE, put(file_name=" "), "empty-name"),
    (IMAGE, put(file_name=3), "wrong-type"),
    (IMAGE, pop("file_name"), "missing-key"),
    (IMAGE, put(file_name="/etc/passwd"), "absolute-file-name"),
    (IMAGE, put(file_name="C:\\b.jpg"), "absolute-file-name"),
    (IMAGE, put(file_name="sub/../../b.jpg"), "outside-file-name"),
    (IMAGE, put(file_name="sub\\..\\b.jpg"), "outside-file-name"),
    (IMAGE, put(file_name="b\udcff.jpg"), "file-name-not-text"),
    (IMAGE, put(width=0), "image-size"),
    (IMAGE, put(height=-30), "image-size"),
    (IMAGE, put(width=2**20, height=2**20), "image-size"),
    (IMAGE, put(width=20.0), "wrong-type"),
    (IMAGE, put(height="30"), "wrong-type"),
    (IMAGE, pop("width"), "missing-key"),
    (DOG, put(name="cat"), "duplicate-category-name"),
    (DOG, put(name=""), "empty-name"),
    (DOG, put(name=None), "wrong-type"),
    (DOG, pop("name"), "missing-key"),
    # area, box, crowd, score
    (SQUARE, put(area=0), "bad-area"),
    (SQUARE, put(area=-100), "bad-area"),
    (SQUARE, put(area="100"), "wrong-type"),
    (SQUARE, put(area=10**400), "wrong-type"),
    (SQUARE, put(area=120), "area-mismatch"),
    (SQUARE, put(area=85), "area-mismatch"),
    (SQUARE, pop("area"), "missing-key"),
    (HOLED, put(area=400), "area-mismatch"),
    (MASK, put(area=122), "area-mismatch"),
    (MASK, put(area=118), "area-mismatch"),
    (CROWD, put(area=42), "area-mismatch"),
    (SQUARE, put(bbox=[5, 5, 15, 15]), "bbox-mismatch"),
    (SQUARE, put(bbox=[8, 5, 10, 10]), "bbox-mismatch"),
    (SQUARE, put(bbox=[5, 5, 10, 7]), "bbox-mismatch"),
    (MASK, put(bbox=[40, 20, 10, 10]), "bbox-mismatch"),
    (MASK, put(bbox=[38, 20, 12, 12]), "bbox-mismatch"),
    (SQUARE, put(bbox=[5, 5, 60, 10]), "bbox-outside"),
    (SQUARE, put(bbox=[-1, 5, 16, 10]), "bbox-outside"),
    (SQUARE, put(bbox=[5, 5, 0, 10]), "bbox-empty"),
    (SQUARE, put(bbox=[5, 5, 10, -10]), "bbox-empty"),
    (SQUARE, put(bbox=[5, 5, 10]), "wrong-type"),
    (SQUARE, put(bbox=[5, 5, 10, "10"]), "wrong-type"),
    (SQUARE, put(bbox={"x": 5}), "wrong-type"),
    (SQUARE, pop("bbox"), "missing-key"),
    (SQUARE, put(iscrowd=2), "bad-iscrowd"),
    (SQUARE, put(iscrowd=True), "bad-iscrowd"),
    (SQUARE, put(iscrowd="0"), "bad-iscrowd"),
    (SQUARE, put(iscrowd=None), "bad-iscrowd"),
    (SQUARE, put(iscrowd=[0]), "bad-iscrowd"),
    (SQUARE, pop("iscrowd"), "missing-key"),
    (SQUARE, put(score="high"), "wrong-type"),
    # polygons
    (SQUARE, pop("segmentation"), "missing-key"),
    (SQUARE, put(segmentation=None), "wrong-type"),
    (SQUARE, put(segmentation="[[5, 5]]"), "wrong-type"),
    (SQUARE, rings(), "empty-segmentation"),
    (SQUARE, rings(5, 5, 15, 5, 15, 15, 5, 15), "wrong-type"),
    (SQUARE, rings([5, 5, 15, 5, 15, 15, 5]), "odd-coordinates"),
    (SQUARE, put(segmentation=[[5, 5, 15, 5, 15, 15, 5, 15]] * 2, area=200), "area-mismatch"),
    (SQUARE, rings([5, 5, 15, 15]), "too-few-points"),
    (SQUARE, rings([5, 5, 15, 15, 5, 5, 15, 15]), "too-few-points"),
    (SQUARE, rings([]), "too-few-points"),
    (SQUARE, rings([[5, 5], [15, 5], [15, 15], [5, 15]]), "wrong-type"),
    (SQUARE, rings([5, "5", 15, 5, 15, 15]), "wrong-type"),
    (SQUARE, rings([5, 5, 15, 15, 15, 5, 5, 15]), "self-crossing"),
    (SQUARE, rings([5, 5, 10, 10, 15, 15, 15, 5, 10, 10, 5, 15]), "self-crossing"),
    (HOLED, rings(KEYHOLE, [12, 12, 14, 14, 14, 12, 12, 14]), "self-crossing"),
    (SQUARE, rings([5, 5, 15, 5, 15, 41, 5, 15]), "polygon-outside"),
    (SQUARE, rings([-1, 5, 15, 5, 15, 15, 5, 15]), "polygon-outside"),
    (SQUARE, rings([5, 5, 1e9, 5, 15, 15, 5, 15]), "polygon-outside"),
    (SQUARE, rings([5, 5, 15, 5.01, 10, 5.0]), "empty-geometry"),
    # run lengths
    (MASK, rle(size=[60, 40]), "rle-size"),
    (MASK, rle(size=[40, 61]), "rle-size"),
    (MASK, rle(size=[0, 60]), "rle-size"),
    (MASK, rle(size=[40.0, 60]), "wrong-type"),
    (MASK, rle(size="40x60"), "wrong-type"),
    (MASK, rle(counts="\x7f\x00"), "rle-undecodable"),
    (MASK, rle(counts=""), "rle-undecodable"),
    (MASK, rle(counts="Rao"), "rle-undecodable"),
    (MASK, rle(counts="1é"), "rle-undecodable"),
    (MASK, rle(counts=None), "rle-undecodable"),
    (MASK, rle(counts=[100, -20, 2320]), "rle-undecodable"),
    (MASK, rle(counts=[100, 20]), "rle-undecodable"),
    (MASK, rle(counts=[10**40]), "rle-undecodable"),
    (MASK, rle(counts=[1.5, 2398.5]), "rle-undecodable"),
    (MASK, rle(counts=[2400]), "empty-geometry"),
    (MASK, rle(counts=compressed(block(0, 0, 0, 0))["counts"]), "empty-geometry"),
    (MASK, lambda a: a["segmentation"].pop("counts"), "missing-key"),
    (MASK, lambda a: a["segmentation"].pop("size"), "missing-key"),
    # numbers that are not JSON
    (SQUARE, put(score=NAN), "non-finite"),
    (SQUARE, put(area=INF), "non-finite"),
    (SQUARE, put(bbox=[5, 5, NAN, 10]), "non-finite"),
    (SQUARE, put(id=NAN), "non-finite"),
    (SQUARE, put(iscrowd=-INF), "non-finite"),
    (SQUARE, put(anything={"deep": [NAN]}), "non-finite"),
    (SQUARE, first_coordinate(NAN), "non-finite"),
    (IMAGE, put(width=NAN), "non-finite"),
]


def test_a_sound_file_has_no_issue(tmp_path: Path) -> None:
    assert check(tmp_path, sound()) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f[2]}-{f[0][2].split('[')[0]}")
def test_one_fault_gives_one_issue_with_its_place(tmp_path: Path, fault: Any) -> None:
    (section, index, location), plant, code = fault
    data = sound()
    before = copy.deepcopy(data)
    plant(data[section][index])
    assert str(data) != str(before)
    issues = check(tmp_path, data)
    assert [f.code for f in issues] == [code], [str(f) for f in issues]
    number = data[section][index].get("id")
    plain = location.split(" ")[0]
    assert issues[0].location == (f"{plain} (id {number})" if isinstance(number, int) else plain)
    assert str(issues[0]).startswith(plain)
    assert issues[0].message.isprintable()


def test_every_code_is_planted_somewhere() -> None:
    elsewhere = {
        "duplicate-key",
        "empty-file",
        "not-utf8",
        "invalid-json",
        "image-missing",
        "image-size-differs",
        "image-unreadable",
        # In test_coco_validate_kinds.py.
        "bad-keypoints",
        "bad-skeleton",
        "keypoint-outside",
        "keypoints-count",
        "segment-id",
    }
    assert {code for *_, code in FAULTS} | elsewhere == set(CODES)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_section_that_is_missing_or_not_a_list(tmp_path: Path, key: str) -> None:
    data = sound()
    del data[key]
    assert [(f.location, f.code) for f in check(tmp_path, data)] == [("file", "missing-key")]
    data[key] = {}
    assert [(f.location, f.code) for f in check(tmp_path, data)] == [(key, "wrong-type")]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("entry", [None, 3, "x", [], True])
def test_an_entry_that_is_not_an_object(tmp_path: Path, key: str, entry: Any) -> None:
    data = sound()
    data[key].append(entry)
    location = f"{key}[{len(data[key]) - 1}]"
    assert [(f.location, f.code) for f in check(tmp_path, data)] == [(location, "wrong-type")]


@pytest.mark.parametrize(
    ("raw", "code", "location"),
    [
        (b"", "empty-file", "file"),
        (b" \n", "empty-file", "file"),
        (b'{"images": [}', "invalid-json", "line 1 column 13"),
        (b'{"images": [],\n "annotations": [', "invalid-json", "line 2 column 18"),
        (b'{"images": []} x', "invalid-json", "line 1 column 16"),
        (b"[" * 100_000, "invalid-json", "file"),
        (b"\xef\xbb\xbf{}", "invalid-json", "line 1 column 1"),
        (b'{"a": "\xff"}', "not-utf8", "byte 7"),
        (b"[]", "wrong-type", "file"),
        (b"null", "wrong-type", "file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "invalid-json", "file"),
        (b"\x00\x00", "invalid-json", "line 1 column 1"),
    ],
)
def test_a_file_that_is_not_coco(tmp_path: Path, raw: bytes, code: str, location: str) -> None:
    path = tmp_path / "coco.json"
    path.write_bytes(raw)
    assert [(f.code, f.location) for f in validate_coco(path)] == [(code, location)]


def test_a_large_exponent_and_info_are_searched_for_numbers_that_are_not_finite(tmp_path: Path) -> None:
    text = json.dumps(sound()).replace('"year": 2017', '"year": 1e999')
    assert [(f.location, f.code) for f in check(tmp_path, text)] == [("info.year", "non-finite")]
    text = json.dumps(sound()).replace('"area": 100', '"area": 1e2')
    assert check(tmp_path, text) == []


def test_a_key_that_is_there_twice_hides_nothing(tmp_path: Path) -> None:
    text = json.dumps(sound())
    twice = text.replace('{"info"', '{"annotations": [{"id": 0}], "info"', 1)
    assert [(f.location, f.code) for f in check(tmp_path, twice)] == [("file", "duplicate-key")]
    inner = text.replace('"iscrowd": 1', '"iscrowd": 0, "iscrowd": 1').replace('{"size"', '{"size": 3, "size"', 1)
    issues = check(tmp_path, inner)
    assert [(f.location, f.code) for f in issues] == [(MASK[2], "duplicate-key"), (CROWD[2], "duplicate-key")]
    assert "segmentation.size" in issues[0].message


@pytest.mark.parametrize(
    ("box", "codes"),
    [
        ([1, 1, 4, 4], []),
        ([1.5, 1.5, 3.5, 3.5], []),
        ([3, 3, 4, 4], ["bbox-mismatch"]),
        ([1, 1, 5, 5], ["bbox-mismatch"]),
    ],
)
def test_the_box_of_a_small_object_must_be_its_own(tmp_path: Path, box: list[float], codes: list[str]) -> None:
    data = sound()
    data["annotations"] = [annotation(1, [[1, 1, 5, 1, 5, 5, 1, 5]], 16, box)]
    assert [f.code for f in check(tmp_path, data)] == codes


def test_rings_on_top_of_each_other_count_once(tmp_path: Path) -> None:
    data = sound()
    data["annotations"][0].update(segmentation=[[5, 5, 15, 5, 15, 15, 5, 15]] * 3)
    assert check(tmp_path, data) == []


def test_what_other_writers_do_is_right(tmp_path: Path) -> None:
    data = sound()
    del data["info"], data["licenses"], data["categories"][0]["supercategory"]
    data["videos"] = [{"id": 1}]
    data["annotations"] = [
        # The box counts pixel centers; the area is that of the polygon, not of the pixels.
        annotation(1, [[5.5, 5.25, 15.75, 5.5, 15.25, 15.5, 5.5, 15.0]], 98.3, [5.5, 5.25, 10.25, 10.25]),
        annotation(2, compressed(block(40, 20, 10, 12)), 120.0, [40.0, 20.0, 9.0, 11.0]),
        # A ring given closed, one with a point twice, one along the image's edge, one that overlaps another.
        annotation(3, [[5, 5, 15, 5, 15, 15, 5, 15, 5, 5]], 100, [5, 5, 10, 10], keypoints=[1, 2, 2], num_keypoints=1),
        annotation(4, [[5, 5, 15, 5, 15, 5, 15, 15, 5, 15]], 100, [5, 5, 10, 10]),
        annotation(5, [[0, 0, 60, 0, 60.3, 40, 0, 40.2]], 2400, [0, 0, 60, 40]),
        annotation(6, [[0, 0, 9, 0, 9, 4, 0, 4], [5, 0, 14, 0, 14, 4, 5, 4]], 56, [0, 0, 14, 4]),
        # A bridge drawn by hand whose hole turns the same way, and two parts joined by a line.
        annotation(7, [[0, 0, 9, 0, 9, 9, 0, 9, 0, 5, 3, 5, 3, 2, 6, 2, 6, 5, 3, 5, 0, 5]], 72, [0, 0, 9, 9]),
        annotation(
            8, [[0, 0, 4, 0, 4, 4, 20, 4, 20, 0, 24, 0, 24, 8, 20, 8, 20, 4, 4, 4, 4, 8, 0, 8]], 64, [0, 0, 24, 8]
        ),
        annotation(9, [[0, 0, 9, 0, 9, 4, 0, 4]], 36, [0, 0, 9, 4], iscrowd=1, attributes={"occluded": False}),
    ]
    assert [str(f) for f in check(tmp_path, data)] == []


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(folder / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "sub" / "b c.jpg", exif=turned)
    return folder


def test_images_are_there_with_their_size_after_exif_rotation(tmp_path: Path, images: Path) -> None:
    path = write(tmp_path / "coco.json", sound())
    assert validate_coco(path, images) == []
    data = sound()
    data["images"][1].update(width=30, height=20)
    issues = validate_coco(write(path, data), images)
    assert [(f.location, f.code) for f in issues] == [("images[1] (id 2)", "image-size-differs")]
    assert "20x30 after EXIF rotation" in issues[0].message


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("missing.png", "image-missing"),
        ("nul\x00.png", "image-missing"),
        ("x" * 5000, "image-missing"),
        ("\udcff\ud800.png", "file-name-not-text"),
        ("/etc/passwd", "absolute-file-name"),
        ("../coco.json", "outside-file-name"),
        ("sub", "image-unreadable"),
        ("text.png", "image-unreadable"),
        ("empty.png", "image-unreadable"),
    ],
)
def test_an_image_that_is_not_there_or_not_an_image(tmp_path: Path, images: Path, name: str, code: str) -> None:
    (images / "text.png").write_text("not an image")
    (images / "empty.png").write_bytes(b"")
    data = sound()
    data["images"][1]["file_name"] = name
    issues = validate_coco(write(tmp_path / "coco.json", data), images)
    assert [(f.location, f.code) for f in issues] == [("images[1] (id 2)", code)]
    str(issues[0]).encode("utf-8")


def test_what_is_to_be_checked_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="cannot be read"):
        validate_coco(tmp_path / "none.json")
    with pytest.raises(CocoError, match="cannot be read"):
        validate_coco(tmp_path)
    with pytest.raises(CocoError, match="not a folder"):
        validate_coco(write(tmp_path / "coco.json", sound()), tmp_path / "none")


def test_many_faults_are_all_found_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = sound()
    data["annotations"][4]["iscrowd"] = 3
    data["annotations"][0]["area"] = 1
    data["images"][0]["file_name"] = ""
    assert [f.code for f in check(tmp_path, data)] == ["empty-name", "area-mismatch", "bad-iscrowd"]


def test_a_border_too_long_to_draw_is_measured_instead(tmp_path: Path) -> None:
    data = sound()
    data["images"][0].update(width=60_000, height=60_000)
    zigzag = [c for k in range(1000) for c in (k * 59, 0 if k % 2 else 59_990)]
    ring = [*zigzag, 999 * 59, 60_000, 0, 60_000]
    data["annotations"] = [annotation(1, [ring], 1.8e9, [0, 0, 999 * 59, 60_000])]
    assert [f.code for f in check(tmp_path, data)] == []
    data["annotations"][0]["bbox"][3] = 30_000
    assert [f.code for f in check(tmp_path, data)] == ["bbox-mismatch"]


@pytest.mark.parametrize(
    ("box", "ending"),
    [
        ([8, 5, 7, 10], "the polygon extends beyond the bbox by 3 pixels at its left side"),
        ([5, 5, 10, 6], "the polygon extends beyond the bbox by 4 pixels at its bottom side"),
        ([5, 5, 15, 15], None),  # the box is too large: the polygon stays inside
    ],
)
def test_a_polygon_that_leaves_its_box_is_said_with_side_and_distance(
    tmp_path: Path, box: list[int], ending: str | None
) -> None:
    data = sound()
    data["annotations"][0]["bbox"] = box
    messages = [issue.message for issue in check(tmp_path, data) if issue.code == "bbox-mismatch"]
    assert len(messages) == 1
    assert messages[0].endswith(ending) if ending else "leaves" not in messages[0]
