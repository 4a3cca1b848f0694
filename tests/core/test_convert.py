"""Formats beside COCO, and turning one into another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from scipy import ndimage

from tcl_core.cli.main import run
from tcl_core.errors import ExportError, VocabularyError
from tcl_core.export.base import Exporter, ImageRegions
from tcl_core.export.coco import CocoExporter, validate_coco
from tcl_core.export.convert import convert
from tcl_core.export.semantic_png import SemanticPngExporter
from tcl_core.export.sources import open_source
from tcl_core.export.yolo_seg import YoloSegExporter
from tcl_core.regions import label_map_to_regions
from tcl_core.specks import absorb_small
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary
from tests.core.coco_helpers import iou

SIZE = (40, 50)
VOCABULARY = Vocabulary.from_options(["car", "Straße", "tree", "sky"])
NAMES = ["b.png", "sub folder/a.jpg", "empty.png"]


def scene(name: str) -> np.ndarray:
    if name == "empty.png":
        return np.zeros(SIZE, dtype=np.int32)
    label_map = smooth(sum(name.encode()), SIZE, 3).astype(np.int32)
    label_map[10:30, 8:28] = 4
    label_map[15:23, 12:21] = 0
    return absorb_small(label_map, 30)


def smooth(seed: int, size: tuple[int, int], labels: int = 4) -> np.ndarray:
    """The label that is highest of smooth random fields, from 1."""
    fields = np.random.default_rng(seed).standard_normal((labels, *size))
    label_map = np.argmax([ndimage.gaussian_filter(field, 5) for field in fields], axis=0).astype(np.int32) + 1
    # The outline of a speck that its polygon no longer describes is exact, and so overlaps its simplified neighbors.
    return absorb_small(label_map, 40).astype(np.uint8)


def regions(label_map: np.ndarray, tolerance: str | None = "default") -> list:
    scores = np.where(label_map > 0, 0.75, 0).astype(np.float32)
    return label_map_to_regions(Segmentation(label_map, scores, VOCABULARY), tolerance=tolerance)


def write(exporter: Exporter, out: Path) -> Path:
    exporter.open(out, VOCABULARY, {"settings": {}})
    for name in NAMES:
        exporter.add(ImageRegions(name, *SIZE, regions(scene(name))))
    exporter.close(complete=True, failed=[("broken.png", "cannot be read")])
    return out


def write_masks(folder: Path, maps: dict[str, np.ndarray]) -> Path:
    for name, values in maps.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return folder


def contents(folder: Path, but: str = "info.json") -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != but
    }


def annotations(path: Path) -> list:
    return json.loads(path.read_text(encoding="utf-8"))["annotations"]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump(list(VOCABULARY.names), allow_unicode=True), encoding="utf-8")
    return path


def test_semantic_masks_hold_the_labels_and_say_which(tmp_path: Path) -> None:
    out = write(SemanticPngExporter(), tmp_path / "out")
    for name in NAMES:
        with Image.open(out / "masks" / Path(name).with_suffix(".png")) as mask:
            assert mask.mode == "P"
            assert np.array_equal(np.asarray(mask), scene(name))
            palette = np.reshape(mask.getpalette(), (-1, 3))
    classes = json.loads((out / "classes.json").read_text(encoding="utf-8"))
    assert [(one["value"], one["name"]) for one in classes] == list(enumerate(VOCABULARY.names, start=1))
    assert palette[1:5].tolist() == [one["color"] for one in classes] == [list(color) for color in VOCABULARY.colors]
    about = json.loads((out / "info.json").read_text())
    assert about["failed"] == [{"file_name": "broken.png", "reason": "cannot be read"}]
    assert list(about["images"].values()) == NAMES


@pytest.mark.parametrize(("count", "mode"), [(254, "P"), (255, "I;16")])
def test_beyond_254_labels_masks_have_16_bits(tmp_path: Path, count: int, mode: str) -> None:
    vocabulary = Vocabulary(tuple(Label(f"label {number}") for number in range(1, count + 1)))
    label_map = np.arange(count + 1, dtype=np.int32).repeat(3)[None].repeat(2, axis=0)
    maps = Segmentation(label_map, np.ones(label_map.shape, np.float32), vocabulary)
    exporter = SemanticPngExporter()
    exporter.open(tmp_path / "out", vocabulary, {})
    exporter.add(ImageRegions("a.png", *label_map.shape, label_map_to_regions(maps, tolerance=None)))
    exporter.close(complete=True, failed=[])
    with Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert mask.mode == mode
        assert np.array_equal(np.asarray(mask), label_map)
    again = open_source(tmp_path / "out", vocabulary)
    assert np.array_equal(next(again.images()).label_map, label_map)


def test_yolo_lines_draw_the_same_pixels_as_the_coco_file(tmp_path: Path) -> None:
    out = write(YoloSegExporter(), tmp_path / "out")
    coco = COCO(str(write(CocoExporter(), tmp_path / "out.json")))
    data = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert data["names"] == dict(enumerate(VOCABULARY.names))
    with_holes = 0
    for number, name in enumerate(NAMES, start=1):
        lines = (out / "labels" / Path(name).with_suffix(".txt")).read_text().splitlines()
        own = coco.loadAnns(coco.getAnnIds([number]))
        assert len(lines) == len(own)
        for line, annotation in zip(lines, own, strict=True):
            label, *shares = line.split()
            assert int(label) == annotation["category_id"] - 1
            values = np.array(shares, dtype=float)
            assert values.min() >= 0 and values.max() <= 1
            ring = np.round(values.reshape(-1, 2) * SIZE[::-1], 2).ravel().tolist()
            drawn = coco_mask.decode(coco_mask.frPyObjects([ring], *SIZE))[..., 0]
            assert np.array_equal(drawn, coco.annToMask(annotation))
            with_holes += ndimage.label(np.pad(drawn, 1) == 0)[1] > 1
    assert with_holes >= 2


@pytest.mark.parametrize("make", [CocoExporter, lambda: CocoExporter("keyhole"), lambda: CocoExporter("rle")])
def test_a_coco_file_converted_to_coco_is_itself(tmp_path: Path, labels: Path, make: Callable[[], Exporter]) -> None:
    first = write(make(), tmp_path / "first.json")
    assert run(["convert", str(first), "--to", "coco", "--labels", str(labels), "--out", str(tmp_path / "2.json")]) == 0
    one, other = json.loads(first.read_text()), json.loads((tmp_path / "2.json").read_text())
    assert {**one, "info": None} == {**other, "info": None}


def test_exporting_to_yolo_is_exporting_to_coco_and_converting(tmp_path: Path, labels: Path) -> None:
    direct = write(YoloSegExporter(), tmp_path / "direct")
    coco = write(CocoExporter(), tmp_path / "all.json")
    assert run(["convert", str(coco), "--to", "yolo-seg", "--labels", str(labels), "--out", str(tmp_path / "x")]) == 0
    assert contents(direct) == contents(tmp_path / "x")


def test_exporting_to_masks_is_exporting_to_coco_and_converting(tmp_path: Path, labels: Path) -> None:
    direct = write(SemanticPngExporter(), tmp_path / "direct")
    coco = write(CocoExporter("rle"), tmp_path / "all.json")
    words = ["--to", "semantic-png", "--labels", str(labels), "--out"]
    assert run(["convert", str(coco), *words, str(tmp_path / "x")]) == 0
    assert contents(direct) == contents(tmp_path / "x")
    # And masks to masks, whose names of images come from the folder.
    assert run(["convert", str(direct), *words, str(tmp_path / "y")]) == 0
    assert contents(direct) == contents(tmp_path / "y")
    images = [json.loads((tmp_path / place / "info.json").read_text())["images"] for place in ("direct", "y")]
    assert images[0] == images[1]


def test_every_pixel_of_masks_comes_back_by_way_of_rle(tmp_path: Path, labels: Path) -> None:
    maps = {"a.png": scene("b.png").astype(np.uint8), "deep/b.png": scene("c.png").astype(np.uint16)}
    masks = write_masks(tmp_path / "masks", maps)
    coco, back = tmp_path / "coco.json", tmp_path / "back"
    words = ["--labels", str(labels), "--out"]
    assert run(["convert", str(masks), "--to", "coco", "--geometry", "rle", *words, str(coco)]) == 0
    assert validate_coco(coco) == []
    assert all("score" not in annotation for annotation in annotations(coco))
    assert run(["convert", str(coco), "--to", "semantic-png", *words, str(back)]) == 0
    for name, values in maps.items():
        assert np.array_equal(np.asarray(Image.open(back / "masks" / name)), values)


def test_ground_truth_keeps_its_specks_unless_asked(tmp_path: Path, labels: Path) -> None:
    values = np.ones((50, 50), dtype=np.uint8)
    values[20, 20] = 2
    masks = write_masks(tmp_path / "masks", {"a.png": values})
    words = ["convert", str(masks), "--to", "coco", "--labels", str(labels), "--out"]
    assert run([*words, str(tmp_path / "all.json")]) == 0
    assert [one["area"] for one in annotations(tmp_path / "all.json")] == [2499, 1]
    assert run([*words, str(tmp_path / "few.json"), "--min-area", "5"]) == 0
    assert [one["area"] for one in annotations(tmp_path / "few.json")] == [2500]


def test_numbers_in_masks_are_places_or_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array([[0, 1, 2, 7, 255, 9]], dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=0)
    masks = write_masks(tmp_path / "masks", {"a.png": values})
    vocabulary = Vocabulary((Label("road", value=7), Label("car", value=2)))
    image = next((source := open_source(masks, vocabulary)).images())
    assert image.label_map is not None
    assert np.array_equal(image.label_map, np.select([values == 7, values == 2], [1, 2], 0))
    assert dict(source.left_out) == {
        "with pixels of value 1, which no label has": 1,
        "with pixels of value 9, which no label has": 1,
    }
    labels = tmp_path / "labels.yaml"
    labels.write_text("labels:\n- {name: road, value: 7}\n- {name: car, value: 2}\n")
    out = tmp_path / "out"
    assert run(["convert", str(masks), "--to", "semantic-png", "--labels", str(labels), "--out", str(out)]) == 1
    assert "1 masks with pixels of value 9" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(out / "masks" / "a.png")), np.where(image.label_map, values, 0))


@pytest.mark.parametrize("value", [0, 65535, True, 1.5, "7"])
def test_a_value_that_no_mask_could_hold_is_refused(value: object) -> None:
    with pytest.raises(VocabularyError, match=r"labels\[0\]\.value: .* whole number from 1 to 65534"):
        Vocabulary.from_dict({"labels": [{"name": "road", "value": value}]})


def test_labels_of_one_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'road' and 'car' would both have the value 2"):
        SemanticPngExporter().open(tmp_path / "out", Vocabulary((Label("road", value=2), Label("car"))), {})


def test_polygons_of_masks_follow_them(tmp_path: Path, labels: Path) -> None:
    """The default tolerance, on what covers the image without gaps; the mean counts each label of each image once."""
    maps = {f"{seed}.png": smooth(seed, (120, 160)) for seed in range(4)}
    masks = write_masks(tmp_path / "masks", maps)
    out = tmp_path / "out.json"
    assert run(["convert", str(masks), "--to", "coco", "--labels", str(labels), "--out", str(out)]) == 0
    coco = COCO(str(out))
    overlaps = []
    for image in coco.loadImgs(coco.getImgIds()):
        covered = np.zeros((120, 160), dtype=int)
        for label_id in range(1, 5):
            drawn = np.zeros((120, 160), dtype=bool)
            for annotation in coco.loadAnns(coco.getAnnIds([image["id"]], [label_id])):
                covered += coco.annToMask(annotation)
                drawn |= coco.annToMask(annotation) > 0
            truth = maps[image["file_name"]] == label_id
            if truth.any():
                overlaps.append(iou(drawn, truth))
        assert (covered == 1).all()
    assert np.mean(overlaps) >= 0.98


def test_rle_becomes_polygons_that_share_their_borders(tmp_path: Path, labels: Path) -> None:
    coco = write(CocoExporter("rle"), tmp_path / "rle.json")
    out = tmp_path / "polygons.json"
    words = ["convert", str(coco), "--to", "coco", "--geometry", "polygon", "--labels", str(labels)]
    assert run([*words, "--out", str(out)]) == 0
    made, exact = COCO(str(out)), COCO(str(coco))
    covered = {number: np.zeros(SIZE, dtype=int) for number in made.getImgIds()}
    for number in made.getAnnIds():
        annotation = made.anns[number]
        assert isinstance(annotation["segmentation"], list)
        covered[annotation["image_id"]] += made.annToMask(annotation)
        assert annotation["area"] == exact.anns[number]["area"]
        assert iou(made.annToMask(annotation) > 0, exact.annToMask(exact.anns[number]) > 0) > 0.6
    assert all((image <= 1).all() for image in covered.values())


def test_overlapping_rle_is_traced_one_by_one(tmp_path: Path) -> None:
    masks = np.zeros((2, 30, 30), dtype=np.uint8)
    masks[0, 2:20, 2:20] = masks[1, 10:28, 10:28] = 1
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 30}],
        "categories": [{"id": 5, "name": "thing"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 5, "iscrowd": 0, "area": 324, "bbox": [0, 0, 1, 1],
             "segmentation": {"size": [30, 30], "counts": one["counts"].decode()}}
            for number, one in enumerate(encoded, start=1)
        ],
    }  # fmt: skip
    path, out = tmp_path / "in.json", tmp_path / "out.json"
    path.write_text(json.dumps(data))
    assert run(["convert", str(path), "--to", "coco", "--geometry", "polygon", "--out", str(out)]) == 0
    coco = COCO(str(out))
    assert [np.array_equal(coco.annToMask(coco.anns[number]), masks[number - 1]) for number in (1, 2)] == [True, True]


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = [1, 1, 9, 1, 9, 9]
    bad = [None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, float("nan")]], {"size": [9, 9], "counts": "~"}]
    data = {
        "images": [{"id": 3, "file_name": "a.png", "height": 12, "width": 12}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 6, "segmentation": [ring]},
            *({"id": 2, "image_id": 3, "category_id": 5, "segmentation": one} for one in bad),
            {"id": 9, "image_id": 3, "category_id": 5, "segmentation": [ring], "keypoints": [1, 2, 3]},
        ],
    }
    path, labels, out = tmp_path / "in.json", tmp_path / "labels.yaml", tmp_path / "out.json"
    path.write_text(json.dumps(data))
    labels.write_text("- cat\n")
    assert run(["convert", str(path), "--to", "coco", "--labels", str(labels), "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "1 annotations with category 'dog', which is not among the labels" in said
    assert "2 annotations without a segmentation" in said and "RLE that cannot be read" in said
    [kept] = annotations(out)
    assert kept["keypoints"] == [1, 2, 3] and kept["category_id"] == 1


def test_what_means_less_in_the_other_format_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    square = [[1, 1, 9, 1, 9, 9, 1, 9]]
    entries = [(1, square, 0), (2, [[5, 5, 11, 5, 11, 11, 5, 11]], 1), (1, [[3, 3, 3, 3, 3, 3]], 0)]
    data = {
        "images": [{"id": 3, "file_name": "a.png", "height": 12, "width": 12}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": place, "image_id": 3, "category_id": category, "segmentation": rings, "iscrowd": crowd}
            for place, (category, rings, crowd) in enumerate(entries, start=1)
        ],
    }
    path = tmp_path / "in.json"
    path.write_text(json.dumps(data))
    found = open_source(path, None)
    yolo = convert(found, YoloSegExporter(), tmp_path / "yolo")
    assert list(yolo.changed.values()) == [1] and "crowds" in next(iter(yolo.changed))
    run(["convert", str(path), "--to", "semantic-png", "--out", str(tmp_path / "masks")])
    said = capsys.readouterr().err
    # The squares share columns and rows 5 to 8.
    assert "pixels with several labels, which keep only the last one: 16" in said
    mask = np.asarray(Image.open(tmp_path / "masks" / "masks" / "a.png"))
    assert (mask == 2).sum() == 36 and (mask == 1).sum() == 64 - 16


REFUSED = {
    "no-labels": (["masks", "--to", "coco", "--out", "x.json"], "use --labels FILE to define"),
    "nothing": (["gone", "--to", "coco", "--out", "x.json"], "no such file or folder"),
    "no-masks": (["empty", "--to", "coco", "--labels", "labels.yaml", "--out", "x.json"], "no PNG file"),
    "format": (["masks", "--to", "voc", "--out", "x"], "there is no exporter 'voc'"),
    "color": (["colors", "--to", "coco", "--labels", "labels.yaml", "--out", "x.json"], "a.png is a color image"),
    "broken": (["broken", "--to", "coco", "--labels", "labels.yaml", "--out", "x.json"], "a.png cannot be read"),
    "no-json": (["labels.yaml", "--to", "coco", "--out", "x.json"], "labels.yaml is not a JSON file"),
    "list": (["list.json", "--to", "coco", "--out", "x.json"], "does not contain a JSON object"),
    "captions": (["captions.json", "--to", "coco", "--out", "x.json"], "'categories' is missing"),
    "taken": (["masks", "--to", "coco", "--labels", "labels.yaml", "--out", "list.json"], "add --overwrite"),
    "input": (
        ["masks", "--to", "yolo-seg", "--labels", "labels.yaml", "--overwrite", "--out", "masks"],
        "did not write",
    ),
    "others": (
        ["masks", "--to", "yolo-seg", "--labels", "labels.yaml", "--overwrite", "--out", "full"],
        "did not write",
    ),
    "file": (["masks", "--to", "yolo-seg", "--labels", "labels.yaml", "--out", "list.json"], "is a file"),
    "geometry": (["masks", "--to", "yolo-seg", "--geometry", "rle", "--out", "x"], "only applies to COCO"),
    "tolerance": (["list.json", "--to", "coco", "--tolerance", "-1", "--out", "x.json"], "tolerance"),
    "one name": (
        ["twins.json", "--to", "yolo-seg", "--out", "x"],
        "a.png and a.jpg would both be written to labels/a.txt",
    ),
    "outside": (["outside.json", "--to", "yolo-seg", "--out", "x"], "not a relative path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path, labels: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_masks(tmp_path / "masks", {"a.png": np.ones((4, 4), dtype=np.uint8)})
    write_masks(tmp_path / "colors", {"a.png": np.ones((4, 4, 3), dtype=np.uint8)})
    for folder in ("empty", "broken", "full"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes((tmp_path / "masks" / "a.png").read_bytes()[:40])
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": [{"id": 1, "caption": "a cat"}]}')
    for file, names in (("twins", ["a.png", "a.jpg"]), ("outside", ["../a.png"])):
        images = [{"id": n, "file_name": name, "height": 4, "width": 4} for n, name in enumerate(names)]
        found = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / f"{file}.json").write_text(json.dumps(found))
    before = contents(tmp_path, but="")
    words, message = REFUSED[case]
    assert run(["convert", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert contents(tmp_path, but="") == before


@pytest.mark.parametrize("exporter", [YoloSegExporter, SemanticPngExporter])
def test_an_output_takes_its_place_when_it_is_whole(tmp_path: Path, exporter: type[Exporter]) -> None:
    out = write(exporter(), tmp_path / "out")
    before = contents(out, but="")
    again = exporter()
    again.open(out, VOCABULARY, {})
    again.add(ImageRegions("new.png", *SIZE, regions(scene("b.png"))))
    assert contents(out, but="") == before
    with pytest.raises(ExportError, match="new.png and new.jpg would both be"):
        again.add(ImageRegions("new.jpg", *SIZE, []))
    again.abort()
    assert contents(out, but="") == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    again.open(out, VOCABULARY, {})
    again.add(ImageRegions("new.png", *SIZE, regions(scene("b.png"))))
    again.close(complete=True, failed=[])
    again.abort()
    assert not any("b." in name for name in contents(out)) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_source_that_breaks_in_the_middle_leaves_the_former_output(tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "masks", {name: np.ones((4, 4), dtype=np.uint8) for name in ("a.png", "b.png")})
    out = tmp_path / "out.json"
    convert(open_source(masks, VOCABULARY), CocoExporter(), out)
    before = contents(tmp_path, but="")
    (masks / "b.png").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"b\.png cannot be read"):
        convert(open_source(masks, VOCABULARY), CocoExporter(), out)
    assert out.read_bytes() == before["out.json"] and sorted(p.name for p in tmp_path.iterdir()) == [
        "masks",
        "out.json",
    ]
