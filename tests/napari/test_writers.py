from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_tcl.metadata import METADATA_KEY
from napari_tcl.writers import write_label_layers, write_labels, write_shapes
from tcl_core.errors import CocoError
from tcl_core.export.coco import validate_coco
from tests.core.coco_helpers import drawn
from tests.napari.coco_pixels import label_maps_of

SQUARE = np.array([[0.5, 1.5], [0.5, 5.5], [3.5, 5.5], [3.5, 1.5]])
"""Rows 1 to 3, columns 2 to 5."""


@pytest.fixture
def label_map() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (6, 8)).repeat(3, axis=0).repeat(3, axis=1)


def names_in(path: Path) -> list[str]:
    return [category["name"] for category in json.loads(path.read_text())["categories"]]


def test_foreign_labels(label_map: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    assert write_labels(str(out), label_map * 5, {"name": "cells/1"}) == [str(out)]
    assert validate_coco(out) == []
    assert names_in(out) == ["label 5", "label 10"]
    assert np.array_equal(label_maps_of(out)["cells-1.png"], label_map)


def test_names_from_features(label_map: np.ndarray, tmp_path: Path) -> None:
    features = {"index": [0, 2, 1], "name": ["", "Cat", "Dog"]}
    write_labels(str(tmp_path / "a.json"), label_map, {"name": "a", "features": features})
    assert names_in(tmp_path / "a.json") == ["Dog", "Cat"]


def test_own_labels_keep_all_names(label_map: np.ndarray, tmp_path: Path) -> None:
    own = {"names": {4: "Cat", 1: "Dog", 2: "Sky"}, "file_names": {(): "photo.jpg"}}
    write_labels(str(tmp_path / "a.json"), label_map, {"metadata": {METADATA_KEY: own}})
    assert names_in(tmp_path / "a.json") == ["Cat", "Dog", "Sky"]
    assert np.array_equal(label_maps_of(tmp_path / "a.json")["photo.jpg"], np.where(label_map > 0, label_map + 1, 0))


def test_stack_of_labels(label_map: np.ndarray, tmp_path: Path) -> None:
    stack = np.stack([label_map, label_map[::-1]])
    write_labels(str(tmp_path / "a.json"), stack, {"name": "a"})
    maps = label_maps_of(tmp_path / "a.json")
    assert list(maps) == ["a-0000.png", "a-0001.png"]
    assert np.array_equal(np.stack(list(maps.values())), stack)


def own_layer(label_map: np.ndarray, names: dict[int, str], **own: Any) -> tuple[Any, dict[str, Any], str]:
    metadata = {METADATA_KEY: {"names": names, "file_names": {(): "photo.jpg"}, "image": "photo", **own}}
    return label_map, {"name": "layer", "metadata": metadata}, "labels"


def test_layers_of_one_image_are_one_image(label_map: np.ndarray, tmp_path: Path) -> None:
    out = str(tmp_path / "a.json")
    draft, accepted = label_map.copy(), np.where(label_map == 2, 1, 0)
    accepted[:6] = 9
    layers = [own_layer(draft, {1: "Cat", 2: "Dog"}), own_layer(accepted, {1: "Dog", 9: "Sky"})]
    other = (label_map * 3, {"name": "other"}, "labels")
    assert write_label_layers(out, [*layers, other]) == [out]
    assert validate_coco(tmp_path / "a.json") == []
    assert names_in(tmp_path / "a.json") == ["Cat", "Dog", "Sky", "label 3", "label 6"]
    maps = label_maps_of(tmp_path / "a.json")
    expected = draft.copy()
    expected[:6] = 3
    assert np.array_equal(maps["photo.jpg"], expected)
    assert np.array_equal(maps["other.png"], np.where(label_map > 0, label_map + 3, 0))


def test_layers_that_cannot_be_written_together(label_map: np.ndarray, tmp_path: Path) -> None:
    out, names = str(tmp_path / "a.json"), {1: "Cat", 2: "Dog"}
    empty = own_layer(np.zeros_like(label_map), names)
    for layers, message in (
        ([empty], "the layer 'layer' has no labels; segment or paint"),
        ([empty, empty], "the layers 'layer' and 'layer' have no labels"),
        ([own_layer(label_map, names), own_layer(label_map, names, image="b")], "two images are called photo.jpg"),
        ([own_layer(label_map, names), own_layer(label_map[:5], names)], "the sizes 24 x 18 and 24 x 5"),
    ):
        with pytest.raises(CocoError, match=message):
            write_label_layers(out, layers)
        assert not list(tmp_path.iterdir())
    write_label_layers(out, [empty, own_layer(label_map, names)])
    assert np.array_equal(label_maps_of(tmp_path / "a.json")["photo.jpg"], label_map)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 4), np.uint8), "has no labels"),
        (np.zeros((4, 4)), "not integers"),
        (np.ones(4, np.uint8), "not integers"),
        (np.full((4, 4), -1), "-1"),
    ],
)
def test_labels_that_cannot_be_written(data: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(CocoError, match=message):
        write_labels(str(tmp_path / "a.json"), data, {"name": "a"})
    assert not list(tmp_path.iterdir())


def test_missing_folder(label_map: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="does not exist; create it"):
        write_labels(str(tmp_path / "no" / "a.json"), label_map, {"name": "a"})


def test_shapes(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    attributes = {
        "name": "a",
        "shape_type": ["polygon", "rectangle"],
        "features": {"label": ["Cat", "Dog"]},
        "metadata": {METADATA_KEY: {"size": (12, 20), "file_name": "photo.jpg", "names": ["Dog"]}},
    }
    assert write_shapes(str(out), [SQUARE, SQUARE + 5], attributes) == [str(out)]
    assert validate_coco(out) == []
    data = json.loads(out.read_text())
    assert data["images"] == [{"id": 1, "file_name": "photo.jpg", "width": 20, "height": 12}]
    assert [(a["category_id"], a["bbox"], a["area"]) for a in data["annotations"]] == [
        (2, [2, 1, 4, 3], 12),
        (1, [7, 6, 4, 3], 12),
    ]


def test_ellipse_and_unknown_size(tmp_path: Path) -> None:
    circle = np.array([[9.5, 9.5], [9.5, 29.5], [29.5, 29.5], [29.5, 9.5]])
    write_shapes(str(tmp_path / "a.json"), [circle], {"name": "a", "shape_type": ["ellipse"]})
    data = json.loads((tmp_path / "a.json").read_text())
    assert (data["images"][0]["width"], data["images"][0]["height"]) == (30, 30)
    assert data["annotations"][0]["area"] == pytest.approx(np.pi * 100, rel=0.05)
    assert names_in(tmp_path / "a.json") == ["shape"]


def test_holes_of_our_polygons_come_back(tmp_path: Path) -> None:
    pytest.importorskip("napari", reason="the polygons are napari's")
    from napari_tcl.export import AnnotatedImage, regions_of
    from napari_tcl.layers import polygon_vertices
    from tcl_core.vocabulary import Vocabulary

    ring = np.zeros((20, 30), np.uint16)
    ring[3:17, 4:26] = 1
    ring[8:12, 10:20] = 0
    (region,) = regions_of(AnnotatedImage("a.png", ring), Vocabulary.from_options(["Ring"]), "exact")
    own = {"size": ring.shape, "file_name": "a.png", "names": ["Ring"]}
    attributes: dict[str, Any] = {"features": {"label": ["Ring"]}, "metadata": {METADATA_KEY: own}}
    write_shapes(str(tmp_path / "a.json"), [polygon_vertices(region)], attributes)
    (annotation,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert np.array_equal(drawn(annotation["segmentation"], ring.shape), ring)


def test_shapes_of_a_stack(tmp_path: Path) -> None:
    shapes = [np.hstack([np.full((4, 1), index), SQUARE]) for index in (2, 0)]
    write_shapes(str(tmp_path / "a.json"), shapes, {"name": "a", "shape_type": "rectangle"})
    data = json.loads((tmp_path / "a.json").read_text())
    assert [image["file_name"] for image in data["images"]] == ["a-0000.png", "a-0002.png"]


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        (SQUARE[:2], "line", "shape 1 is a line"),
        (SQUARE[:2], "polygon", "no area"),
        (np.hstack([np.arange(4)[:, None], SQUARE]), "polygon", "several slices"),
        (SQUARE - 50, "polygon", "covers no pixels"),
    ],
)
def test_shapes_that_cannot_be_written(shape: np.ndarray, kind: str, message: str, tmp_path: Path) -> None:
    attributes = {"name": "a", "shape_type": [kind], "metadata": {METADATA_KEY: {"size": (9, 9)}}}
    with pytest.raises(CocoError, match=message):
        write_shapes(str(tmp_path / "a.json"), [shape], attributes)
    assert not list(tmp_path.iterdir())


def test_no_shapes(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="has no shapes"):
        write_shapes(str(tmp_path / "a.json"), [], {"name": "a"})
