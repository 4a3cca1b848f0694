"""Benchmarks as they are unpacked, own data, and what is said where something is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.io import savemat

from tcl_core.cli import evaluate as command
from tcl_core.errors import DataSetError
from tcl_core.evaluation.datasets import BENCHMARKS, class_list, open_benchmark
from tcl_core.evaluation.datasets.own import CocoDataSet, MaskDataSet
from tcl_core.evaluation.datasets.playground import PlaygroundDataSet
from tcl_core.evaluation.playground import held_out_scene
from tcl_core.vocabulary import Label, Vocabulary
from tests.core.evaluation_helpers import write_own_data

# Not the folder of EVAL_PARITY_DIR, whose images have other names.
FOLDER = Path(__file__).parents[1] / "data" / "eval_mini"
DATA = FOLDER / "data"
CONVERTED = {
    "coco_object": "_instanceTrainIds.png",
    "coco_stuff": "_labelTrainIds.png",
    "cityscapes": "_gtFine_labelTrainIds.png",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data"))


# -- class lists -------------------------------------------------------------------------------------------------------


def test_the_command_knows_the_benchmarks() -> None:
    assert command._BENCHMARKS == BENCHMARKS


def test_published_sizes_of_the_class_lists() -> None:
    sizes = {name: len(class_list(name).names) for name in BENCHMARKS}
    assert sizes == {
        "voc": 21,
        "voc20": 20,
        "context": 60,
        "context59": 59,
        "coco_object": 81,
        "coco_stuff": 171,
        "cityscapes": 19,
        "ade20k": 150,
    }
    assert {name for name in BENCHMARKS if class_list(name).has_background} == {"voc", "context", "coco_object"}


def test_names_are_kept_to_the_letter() -> None:
    classes = class_list("ade20k")
    assert classes.names[7] == "bed " and classes.vocabulary.labels[7].prompts == ("bed ",)
    assert class_list("voc").names[11] == "diningtable"
    assert class_list("voc").vocabulary.background_names == ()


def test_synonyms_and_what_competes_as_background() -> None:
    voc = class_list("voc", "synonyms")
    assert voc.names == class_list("voc").names
    assert voc.vocabulary.labels[-1].prompts[:2] == ("television monitor", "tv monitor")
    assert voc.vocabulary.background_names is not None and len(voc.vocabulary.background_names) == 26
    for name in BENCHMARKS:
        assert len(class_list(name, "synonyms").vocabulary.labels) == len(class_list(name).vocabulary.labels)


def test_names_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    rows = ["wall,sky", *(["thing"] * 19), "screen, monitor"]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    classes = class_list("voc", path)
    assert classes.vocabulary.background_names == ("wall", "sky")
    assert classes.vocabulary.labels[-1].prompts == ("screen", "monitor") and classes.names[-1] == "tvmonitor"
    for content, message in (
        ("a\nb\n", "has 2 rows, but voc has 21 classes, from 'background' to 'tvmonitor'"),
        ("\n".join([*rows[:5], " , ", *rows[6:]]), "row 6, of 'bottle', is empty"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataSetError, match=message):
            class_list("voc", path)
    with pytest.raises(DataSetError, match="cannot be read"):
        class_list("voc", tmp_path / "none.txt")


# -- benchmarks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BENCHMARKS)
def test_only_listed_images_are_taken(name: str) -> None:
    data = open_benchmark(name, DATA)
    expected = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))["results"]
    key = next(key for key in expected if key.startswith(f"{name}/"))
    assert [Path(each).name for each in data.images] == [Path(each).name for each in expected[key]["pictures"]]


@pytest.mark.parametrize("name", sorted(CONVERTED))
def test_raw_labels_give_the_converted_ones(name: str, copy: Path) -> None:
    converted = open_benchmark(name, DATA)
    for path in copy.rglob("*TrainIds.png"):
        path.unlink()
    raw = open_benchmark(name, copy)
    assert not raw.about["labels"].endswith(CONVERTED[name])
    for index in range(len(raw)):
        raw.check(index)
        np.testing.assert_array_equal(raw.truth(index), converted.truth(index))


def test_context_from_the_matlab_files(copy: Path) -> None:
    converted = [open_benchmark("context", DATA), open_benchmark("context59", DATA)]
    root = copy / "VOCdevkit" / "VOC2010"
    ids = json.loads(
        (Path(command.__file__).parents[1] / "evaluation/datasets/tables/ids_pascal_context.json").read_text()
    )["table"]
    number_of = np.array([int(number) for number, _ in sorted(ids.items(), key=lambda pair: pair[1])], np.uint16)
    (root / "trainval").mkdir()
    for path in (root / "SegmentationClassContext").glob("*.png"):
        label_map = number_of[np.asarray(Image.open(path))]
        # One of the 400 labels that no class has is background.
        label_map[label_map == 0] = 1
        savemat(root / "trainval" / f"{path.stem}.mat", {"LabelMap": label_map})
    shutil.rmtree(root / "SegmentationClassContext")
    for before in converted:
        data = open_benchmark(before.name, copy)
        for index in range(len(data)):
            data.check(index)
            np.testing.assert_array_equal(data.truth(index), before.truth(index))
    savemat(root / "trainval" / f"{Path(data.images[0]).stem}.mat", {"LabelMap": np.full((3, 3), 460, np.uint16)})
    with pytest.raises(DataSetError, match="contains the value 460, which is not a class of context59"):
        data.truth(0)


@pytest.mark.parametrize("name", ["voc20", "context59"])
def test_training_splits(name: str, copy: Path) -> None:
    folder = {"voc20": "VOC2012/ImageSets/Segmentation", "context59": "VOC2010/ImageSets/SegmentationContext"}[name]
    stems = [Path(each).stem for each in open_benchmark(name, copy).images]
    (copy / "VOCdevkit" / folder / "train.txt").write_text("\n".join(stems[::-2]) + "\n", encoding="utf-8")
    train = open_benchmark(name, copy, "train")
    assert train.split == "train" and [Path(each).stem for each in train.images] == stems[::-2]
    with pytest.raises(DataSetError, match=f"--split test: {name} has the splits val and train"):
        open_benchmark(name, copy, "test")


def test_a_folder_of_its_own() -> None:
    assert open_benchmark("voc", DATA / "VOCdevkit").images == open_benchmark("voc", DATA).images
    assert open_benchmark("voc", DATA / "VOCdevkit" / "VOC2012").images == open_benchmark("voc", DATA).images


VOC = "VOCdevkit/VOC2012"


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("voc", f"{VOC}/JPEGImages", r"voc is missing: there is no VOCdevkit/VOC2012/JPEGImages; get VOCtrainval"),
        (
            "voc",
            f"{VOC}/ImageSets/Segmentation/val.txt",
            r"val.txt: the image list of the val split of voc is missing; get VOC",
        ),
        ("voc", f"{VOC}/SegmentationClass", r"the labels of voc are missing; get"),
        ("voc", f"{VOC}/SegmentationClass/2008_000215.png", r"2008_000215.png: this label file of voc is missing; get"),
        ("voc", f"{VOC}/JPEGImages/2007_000042.jpg", r"2007_000042.jpg: this image of voc is missing; get VOC"),
        ("cityscapes", "cityscapes/gtFine", r"labels of cityscapes are missing; get leftImg8bit.*registration"),
        ("ade20k", "ade/ADEChallengeData2016/annotations", r"labels of ade20k are missing; get ADEChallengeData2016"),
    ],
)
def test_what_is_missing_is_named(name: str, gone: str, message: str, copy: Path) -> None:
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataSetError, match=message) as error:
        open_benchmark(name, copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe2\x000", r"val.txt: cannot be read \(not UTF-8 text\); restore the original file"),
        (b"2007_000033 1\n2007_000042 -1\n", r"val.txt: '2007_000033 1' is not the name of an image"),
        (b"\n", r"val.txt: the image list is empty; get VOC"),
        (b"2007_000033\n2007_000033\n", r"val.txt: lists an image twice"),
    ],
)
def test_lists_that_cannot_be_used(content: bytes, message: str, copy: Path) -> None:
    (copy / VOC / "ImageSets/Segmentation/val.txt").write_bytes(content)
    with pytest.raises(DataSetError, match=message):
        open_benchmark("voc", copy)


def test_labels_of_another_set_are_refused(copy: Path) -> None:
    label = copy / VOC / "SegmentationClass" / "2007_000033.png"
    values = np.asarray(Image.open(label)).copy()
    values[0, 0] = 21
    Image.fromarray(values).save(label)
    with pytest.raises(DataSetError, match=r"2007_000033.png: contains the value 21, which is not a class of voc"):
        open_benchmark("voc", copy).check(0)
    stuff = copy / "coco_stuff164k/annotations/val2017"
    for path in stuff.glob("*TrainIds.png"):
        path.unlink()
    raw = sorted(stuff.glob("*.png"))[0]
    values = np.asarray(Image.open(raw)).copy()
    values[0, 0] = 11
    Image.fromarray(values).save(raw)
    for name in ("coco_stuff", "coco_object"):
        with pytest.raises(DataSetError, match=f"contains the value 11, which is not a class of {name}"):
            open_benchmark(name, copy).check(0)


def test_color_labels_and_other_sizes_are_refused(copy: Path) -> None:
    label = copy / VOC / "SegmentationClass" / "2007_000033.png"
    Image.open(label).convert("RGB").save(label)
    with pytest.raises(
        DataSetError, match=r"is a color image \(RGB\), but label files have one channel .* visualization"
    ):
        open_benchmark("voc", copy).check(0)
    Image.new("L", (10, 7)).save(label)
    with pytest.raises(DataSetError, match=r"is 10x7 pixels, but its image 2007_000033.jpg is 87x89"):
        open_benchmark("voc", copy).check(0)
    label.write_bytes(b"text")
    with pytest.raises(DataSetError, match="not an image; restore the original file"):
        open_benchmark("voc", copy).check(0)


# -- own data ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_own_data(tmp_path / "own", 3)


def write_coco(folder: Path) -> Path:
    """A square of cats with a smaller sofa on it, a crowd, and a category that nobody asked for."""
    size = {"width": 40, "height": 30}
    (folder / "photos").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "photos" / "a.jpg")

    def box(number: int, category: int, x: int, y: int, side: int, crowd: int = 0) -> dict[str, object]:
        ring = [x, y, x + side, y, x + side, y + side, x, y + side]
        area, bbox = side * side, [x, y, side, side]
        return {
            "id": number,
            "image_id": 7,
            "category_id": category,
            "segmentation": [ring],
            "area": area,
            "bbox": bbox,
            "iscrowd": crowd,
        }

    content = {
        "images": [{"id": 7, "file_name": "a.jpg", **size}],
        "categories": [{"id": 3, "name": "sofa"}, {"id": 5, "name": "cat"}, {"id": 8, "name": "lamp"}],
        "annotations": [box(1, 3, 8, 8, 4), box(2, 5, 5, 5, 15), box(3, 5, 18, 3, 12, 1), box(4, 8, 0, 25, 5)],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("background", [True, False])
def test_coco_as_label_maps(tmp_path: Path, background: bool) -> None:
    path = write_coco(tmp_path)
    vocabulary = Vocabulary((Label("cat"), Label("sofa")), background=background)
    data = CocoDataSet(path, tmp_path / "photos", vocabulary)
    data.check(0)
    truth = data.truth(0)
    coco = COCO(str(path))
    masks = {number: coco.annToMask(each).astype(bool) for number, each in coco.anns.items()}
    first = int(background)
    expected = np.full((30, 40), 0 if background else -1)
    expected[masks[3]] = -1
    expected[masks[2]] = first
    expected[masks[1]] = first + 1
    np.testing.assert_array_equal(truth, expected)
    assert data.images == ("a.jpg",) and data.image(0).shape == (30, 40, 3)


def test_coco_faults_are_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    with pytest.raises(DataSetError, match="has no category for the label 'dog'"):
        CocoDataSet(path, tmp_path / "photos", Vocabulary((Label("dog"),)))
    with pytest.raises(DataSetError, match=r"a.jpg: this image of annotations is missing; is --images"):
        CocoDataSet(path, tmp_path, None)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][1]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        DataSetError, match=r"a.jpg: annotation 2 is with a ring of fewer than three points; for details"
    ):
        CocoDataSet(path, tmp_path / "photos", None).check(0)
    content["annotations"][1]["segmentation"] = [[1, 2, 3, 4, 5, 9]]
    content["images"][0]["width"] = 41
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataSetError, match=r"the size of a.jpg is 41x30 here, but that image is 40x30"):
        CocoDataSet(path, tmp_path / "photos", None).check(0)
    content["images"][0]["width"] = 40
    content["annotations"][0]["category_id"] = 12
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataSetError, match=r"a.jpg: annotation 1 has the unknown category 12; for details"):
        CocoDataSet(path, tmp_path / "photos", None).check(0)
    path.write_text(json.dumps({**content, "annotations": []}), encoding="utf-8")
    with pytest.raises(DataSetError, match="has no annotation with any of the labels"):
        CocoDataSet(path, tmp_path / "photos", None)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(DataSetError, match="does not contain a JSON object"):
        CocoDataSet(path, tmp_path / "photos", None)


def test_masks_with_values_and_255(own: Path) -> None:
    vocabulary = Vocabulary.from_file(own / "labels.yaml")
    data = MaskDataSet(own / "masks", own / "images", vocabulary)
    for index, name in enumerate(data.images):
        data.check(index)
        values = np.asarray(Image.open(own / "masks" / name))
        expected = np.vectorize({0: 0, 1: 1, 2: 2, 9: 3, 255: -1}.get)(values)
        np.testing.assert_array_equal(data.truth(index), expected)
    plain = MaskDataSet(own / "masks", own / "images", Vocabulary(vocabulary.labels, background=False))
    np.testing.assert_array_equal(plain.truth(0), np.where(data.truth(0) > 0, data.truth(0) - 1, -1))


def test_black_and_white_masks(own: Path) -> None:
    """As in mmsegmentation's issue 1609: 255 is the label, and everything of it would be ignored."""
    paths = sorted((own / "masks").rglob("*.png"))
    for path in paths:
        values = np.asarray(Image.open(path))
        Image.fromarray(np.where(values > 0, 255, 0).astype(np.uint8)).save(path)
    with pytest.raises(DataSetError, match=r"masks: the first 3 masks contain only 0 and 255.*'value: 255'"):
        MaskDataSet(own / "masks", own / "images", Vocabulary((Label("cat"),)))
    data = MaskDataSet(own / "masks", own / "images", Vocabulary((Label("cat", value=255),)))
    for index, path in enumerate(paths):
        data.check(index)
        np.testing.assert_array_equal(data.truth(index), np.asarray(Image.open(path)) == 255)
    Image.new("L", Image.open(paths[0]).size, 7).save(paths[0])
    with pytest.raises(DataSetError, match="contains the value 7, which no label has"):
        MaskDataSet(own / "masks", own / "images", Vocabulary((Label("cat"),))).check(0)


def test_images_may_end_differently_from_masks(own: Path) -> None:
    for path in (own / "images").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".JPG"), "JPEG")
        path.unlink()
    data = MaskDataSet(own / "masks", own / "images", Vocabulary.from_file(own / "labels.yaml"))
    assert data.image(0).shape[:2] == data.truth(0).shape
    with pytest.raises(DataSetError, match=re.escape("contains no PNG file")):
        MaskDataSet(own / "images", own / "images", Vocabulary.from_file(own / "labels.yaml"))


def test_playground_scenes_are_those_of_its_table() -> None:
    data = PlaygroundDataSet("held-out")
    scene = held_out_scene("held-out", 3, "test")
    np.testing.assert_array_equal(data.image(3), scene.image)
    np.testing.assert_array_equal(data.truth(3), scene.label_map - 1)
    other = PlaygroundDataSet("held-out", "validation")
    np.testing.assert_array_equal(other.image(3), held_out_scene("held-out", 3, "validation").image)
    assert not np.array_equal(other.image(3), data.image(3))
    assert len(data) == 500 and len(data.classes.names) == 54
