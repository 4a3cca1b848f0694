from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from napari_tcl.export import AnnotatedImage, export_coco, regions_of, to_positions
from tcl_core.errors import CocoError, SettingsError
from tcl_core.export.coco import validate_coco
from tcl_core.jobs.journal import journal_path
from tcl_core.vocabulary import Vocabulary
from tests.napari.coco_pixels import label_maps_of

VOCABULARY = Vocabulary.from_options(["Cat=cat", "Sky=sky"])


@pytest.fixture
def label_map() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (6, 8)).repeat(5, axis=0).repeat(5, axis=1).astype(np.uint16)


def test_run_lengths_keep_every_pixel(label_map: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    export_coco(out, [AnnotatedImage("a.png", label_map)], VOCABULARY, {"made_by": "test"}, geometry="rle")
    assert validate_coco(out) == []
    assert np.array_equal(label_maps_of(out)["a.png"], label_map)


def test_polygons_are_close(label_map: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    export_coco(out, [AnnotatedImage("a.png", label_map)], VOCABULARY, {}, geometry="polygon", tolerance="exact")
    assert validate_coco(out) == []
    data = json.loads(out.read_text())
    assert all(isinstance(annotation["segmentation"], list) for annotation in data["annotations"])


def test_hand_made_labels_score_one(label_map: np.ndarray) -> None:
    assert {region.score for region in regions_of(AnnotatedImage("a.png", label_map), VOCABULARY)} == {1.0}


def test_scores_are_means_over_regions(label_map: np.ndarray) -> None:
    scores = np.full(label_map.shape, 0.25, np.float32)
    assert {r.score for r in regions_of(AnnotatedImage("a.png", label_map, scores), VOCABULARY)} == {0.25}


def test_an_older_file_is_replaced(label_map: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    for name in ("a.png", "b.png"):
        export_coco(out, [AnnotatedImage(name, label_map)], VOCABULARY, {}, geometry="rle")
    assert list(label_maps_of(out)) == ["b.png"]
    assert os.listdir(tmp_path) == ["labels.json"]


def test_missing_folder(label_map: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="does not exist; create it"):
        export_coco(tmp_path / "no" / "labels.json", [AnnotatedImage("a.png", label_map)], VOCABULARY, {})
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(label_map: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="is a folder"):
        export_coco(tmp_path, [AnnotatedImage("a.png", label_map)], VOCABULARY, {})


def test_ids_become_places_in_the_vocabulary() -> None:
    assert to_positions(np.array([[0, 9], [4, 9]], np.uint16), [9, 4], ["a", "b"]).tolist() == [[0, 1], [2, 1]]


def test_what_cannot_be_written_leaves_the_older_file(label_map: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    good = AnnotatedImage("a.png", label_map)
    export_coco(out, [good], VOCABULARY, {}, geometry="rle")
    before = out.read_bytes()
    with pytest.raises(SettingsError, match="number of labels"):
        export_coco(out, [good, AnnotatedImage("b.png", label_map + 5)], VOCABULARY, {}, geometry="rle")
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_a_run_is_making_is_left_to_it(label_map: np.ndarray, tmp_path: Path) -> None:
    journal = journal_path(tmp_path / "labels.json")
    journal.write_text("{}")
    with pytest.raises(CocoError, match="unfinished run"):
        export_coco(tmp_path / "labels.json", [AnnotatedImage("a.png", label_map)], VOCABULARY, {})
    assert journal.read_text() == "{}"


@pytest.mark.parametrize("stray", [2, 5000])
def test_ids_without_a_name(stray: int) -> None:
    with pytest.raises(CocoError, match=f"label {stray} has no name.*1 cat"):
        to_positions(np.array([[0, 1, stray]], np.uint16), [1], ["cat"])


def test_negative_ids() -> None:
    with pytest.raises(CocoError, match="-3"):
        to_positions(np.array([[0, -3]]), [1], ["cat"])


def test_two_images_of_one_name(label_map: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="twice"):
        export_coco(tmp_path / "a.json", [AnnotatedImage("a.png", label_map)] * 2, VOCABULARY, {})
