"""COCO files in which one part is odd give a sentence or a result, and neither a crash nor an internal error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_core.cli.main import run
from tcl_core.errors import TclError
from tcl_core.evaluation.datasets.own import CocoDataSet
from tcl_core.export.coco.rle import encode_counts
from tests.odd_json import odd_copies

SIZE = [30, 40]
RING = [5, 5, 15, 5, 15, 15, 5, 15]
COLUMN = [605, 10, 585]
ANNOTATIONS: list[dict[str, Any]] = [
    {"bbox": [5, 5, 10, 10], "area": 100.0, "iscrowd": 0, "segmentation": [RING]},
    {"bbox": [20, 5, 1, 10], "area": 10, "iscrowd": 0, "segmentation": {"size": SIZE, "counts": COLUMN}},
    {"bbox": [20, 5, 1, 10], "area": 10, "iscrowd": 1, "segmentation": encode_counts(np.array(COLUMN), (30, 40))},
]
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": number, "image_id": 1, "category_id": 1, "score": 0.5, **one}
        for number, one in enumerate(ANNOTATIONS, start=1)
    ],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "a.png")
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ("validate-coco", "FILE", "--images", "IMAGES"),
        ("convert", "FILE", "--to", "coco", "--geometry", "rle", "--out", "OUT.json"),
        ("convert", "FILE", "--to", "semantic-png", "--out", "OUT"),
        ("convert", "FILE", "--to", "yolo-seg", "--out", "OUT"),
        ("score", "--gt", "FILE", "--dt", "FILE"),
    ],
    ids=lambda words: " ".join(word.strip("-") for word in words if not word.isupper()),
)
def test_no_odd_value_is_an_internal_error(
    words: Sequence[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, codes = tmp_path / "file.json", tmp_path / "out", set()
    known = {"FILE": str(file), "IMAGES": str(images), "OUT": str(out / "made"), "OUT.json": str(out / "made.json")}
    for place, odd, text in [((), "", json.dumps(COCO)), *odd_copies(COCO)]:
        out.mkdir()
        file.write_text(text)
        codes.add(run([known.get(word, word) for word in words]))
        said = capsys.readouterr()
        assert "internal error" not in said.err + said.out, (place, odd, said.err)
        assert place or not codes - {0}, said.err
        shutil.rmtree(out)
    assert codes - {0, 1, 2} == set() and len(codes) > 1


def test_ground_truth_of_an_evaluation(images: Path, tmp_path: Path) -> None:
    file, drawn, refused = tmp_path / "file.json", 0, 0
    for _, _, text in odd_copies(COCO):
        file.write_text(text)
        try:
            data = CocoDataSet(file, images, None)
            data.check(0)
            drawn += data.truth(0).shape == (30, 40)
        except TclError:
            refused += 1
    assert drawn and refused
