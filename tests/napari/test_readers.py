from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_tcl.export import AnnotatedImage, export_coco
from napari_tcl.metadata import FILE_NAMES, METADATA_KEY
from napari_tcl.readers import get_reader, read_coco
from tcl_core.errors import CocoError
from tcl_core.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_options(["Cat", "Dog"])


def label_map(seed: int, size: tuple[int, int] = (12, 18)) -> np.ndarray[Any, Any]:
    return np.kron(np.random.default_rng(seed).integers(0, 3, (size[0] // 3, size[1] // 3)), np.ones((3, 3), np.int64))


def written(path: Path, images: dict[str, np.ndarray[Any, Any]], geometry: Any = "rle") -> str:
    annotated = (AnnotatedImage(name, found) for name, found in images.items())
    export_coco(path, annotated, VOCABULARY, {}, geometry=geometry, tolerance="exact")
    return str(path)


@pytest.mark.parametrize("geometry", ["rle", "polygon", "keyhole"])
def test_what_was_exported_comes_back(geometry: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"photo.jpg": label_map(1)}, geometry)
    assert get_reader(path) is read_coco
    ((data, attributes, kind),) = read_coco(path)
    assert kind == "labels" and attributes["name"] == "photo labels"
    assert np.array_equal(data, label_map(1))
    own = attributes["metadata"][METADATA_KEY]
    assert own["names"] == {1: "Cat", 2: "Dog"} and own[FILE_NAMES] == {(): "photo.jpg"}
    assert attributes["features"]["label"] == ["", "Cat", "Dog"]


def test_slices_become_a_stack_again(tmp_path: Path) -> None:
    slices = {f"movie-{number:04d}.png": label_map(number) for number in (3, 0)}
    slices |= {"grid-0001-0000.png": label_map(5, (6, 9)), "lone.png": label_map(6)}
    found = {attributes["name"]: data for data, attributes, _ in read_coco(written(tmp_path / "a.json", slices))}
    assert {name: data.shape for name, data in found.items()} == {
        "movie labels": (4, 12, 18),
        "grid labels": (2, 1, 6, 9),
        "lone labels": (12, 18),
    }
    assert np.array_equal(found["movie labels"][3], label_map(3)) and not found["movie labels"][1:3].any()


def test_slices_of_other_sizes_are_images_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {"a-0000.png": label_map(0), "a-0001.png": label_map(1, (6, 6))})
    assert [data.shape for data, _, _ in read_coco(path)] == [(1, 12, 18), (6, 6)]


def test_numbers_that_are_no_slices(tmp_path: Path) -> None:
    names = ["photo-20231105.jpg", "photo-2023.jpg", "left/a-0000.png", "right/a-0001.png", "b-0000.png", "b-0001.jpg"]
    path = written(tmp_path / "a.json", {name: label_map(number) for number, name in enumerate(names)})
    found = [(attributes["metadata"][METADATA_KEY][FILE_NAMES], data) for data, attributes, _ in read_coco(path)]
    assert [files for files, _ in found] == [
        {(): "photo-20231105.jpg"},
        {(): "photo-2023.jpg"},
        {(0,): "left/a-0000.png"},
        {(1,): "right/a-0001.png"},
        {(0,): "b-0000.png"},
        {(): "b-0001.jpg"},
    ]
    assert all(
        np.array_equal(data.max(axis=0) if data.ndim > 2 else data, label_map(k)) for k, (_, data) in enumerate(found)
    )


def test_a_long_stack_needs_many_slices(tmp_path: Path) -> None:
    slices = {f"movie-{number:04d}.png": np.ones((3, 3), np.int64) for number in range(1900, 2000)}
    ((data, attributes, _),) = read_coco(written(tmp_path / "a.json", slices))
    assert data.shape == (2000, 3, 3) and attributes["metadata"][METADATA_KEY]["image"] == "movie"


def test_the_smaller_annotation_is_on_top(tmp_path: Path) -> None:
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    small = [[4, 4, 6, 4, 6, 6, 4, 6]]
    annotations = [
        {"id": number, "image_id": 1, "category_id": category, "segmentation": rings, "bbox": [0, 0, 1, 1], "area": 1}
        for number, (category, rings) in enumerate([(9, small), (4, square)], start=1)
    ]
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 12}],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "Big"}, {"id": 9, "name": "Small"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    ((found, attributes, _),) = read_coco(str(tmp_path / "a.json"))
    assert (int((found == 1).sum()), int((found == 2).sum())) == (60, 4)
    assert attributes["metadata"][METADATA_KEY]["names"] == {1: "Big", 2: "Small"}


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"features": "geojson"}', "\xff"])
def test_other_files_are_left_to_others(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    assert get_reader(str(tmp_path / "a.json")) is None
    assert get_reader(str(tmp_path / "missing.json")) is None
    assert get_reader([str(tmp_path / "a.json")]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 10**6, "height": 10**6}, "too many"),
        ({"file_name": "a-0999.png", "width": 10**4, "height": 10**4}, "too many"),
        ({"width": 0}, "size of 0x12"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.png", "width": 12, "height": 12} | change
    data = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "Cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(CocoError, match=message):
        read_coco(str(tmp_path / "a.json"))


def test_too_many_images_for_one_window(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", {f"image {number}.png": label_map(number) for number in range(21)})
    with pytest.raises(CocoError, match="has 21 images, but only 20"):
        read_coco(path)
