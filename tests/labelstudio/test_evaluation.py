"""An export of Label Studio as ground truth of an evaluation."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labelstudio_backend.evaluation import LabelStudioDataSet
from tcl_core.cli.main import run
from tcl_core.errors import DataSetError, ImageError
from tcl_core.evaluation import jobs
from tcl_core.vocabulary import Label, Vocabulary
from tests.labelstudio.test_export import SIZE, brush, mask_of, polygon
from tests.odd_json import odd_copies


def write_export(folder: Path, *tasks: dict[str, Any]) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        blocks = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = blocks.repeat(8, axis=0).repeat(10, axis=1)
        Image.fromarray(image).save(folder / "images" / name)
    path = folder / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def task(number: int, image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "data": {"image": image}, "annotations": list(annotations)}


def annotation(*results: dict[str, Any], at: str = "2026-01-01", **more: Any) -> dict[str, Any]:
    return {"id": 1, "result": list(results), "updated_at": at, **more}


CATS = mask_of((5, 35, 5, 35))
DOGS = mask_of((10, 20, 10, 20))
SQUARE = polygon([(5, 5), (35, 5), (35, 35), (5, 35)])


@pytest.fixture
def export(tmp_path: Path) -> Path:
    old = annotation(brush(~CATS, "dog"), at="2025-01-01")
    new = annotation(brush(DOGS, "dog"), SQUARE, brush(mask_of((0, 3, 0, 3)), "Background"))
    return write_export(
        tmp_path,
        task(1, "/data/upload/4/0a1b2c3d-a.png", old, new),
        task(2, "/data/local-files/?d=somewhere/b.png", annotation()),
        task(3, "/data/upload/4/0a1b2c3d-c.png", annotation(SQUARE, was_cancelled=True)),
    )


def test_the_newest_annotation_with_the_smaller_region_on_top(export: Path, tmp_path: Path) -> None:
    data = LabelStudioDataSet(export, tmp_path / "images", None)
    assert data.images == ("a.png", "b.png") and data.classes.names == ("background", "cat", "dog")
    for index in range(2):
        data.check(index)
    np.testing.assert_array_equal(data.truth(0), np.where(DOGS, 2, CATS.astype(int)))
    np.testing.assert_array_equal(data.truth(1), np.zeros(SIZE, int))
    dogs = Vocabulary((Label("dog"),), background=False)
    only = LabelStudioDataSet(export, tmp_path / "images", dogs)
    np.testing.assert_array_equal(only.truth(0), np.where(DOGS, 0, -1))


def test_what_is_wrong_is_one_sentence(export: Path, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="is there, .* --images|this image of export is missing"):
        LabelStudioDataSet(export, tmp_path, None)
    turned = {**SQUARE, "image_rotation": 90}
    path = write_export(tmp_path, task(1, "/a.png", annotation(turned)))
    with pytest.raises(DataSetError, match="task 1, region x: was drawn on a rotated image"):
        LabelStudioDataSet(path, tmp_path / "images", None)
    other = {**SQUARE, "original_width": 61}
    path = write_export(tmp_path, task(1, "/a.png", annotation(other)))
    with pytest.raises(DataSetError, match=r"the size of a.png is 61x40 here, but that image is 60x40"):
        LabelStudioDataSet(path, tmp_path / "images", None).check(0)
    path.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(DataSetError, match="not a list of tasks with annotations"):
        LabelStudioDataSet(path, tmp_path / "images", None)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataSetError, match="is not a JSON file"):
        LabelStudioDataSet(path, tmp_path / "images", None)


def test_the_command_finds_it_by_its_entry_point(
    export: Path,
    tmp_path: Path,
    tiny_model_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # As pyproject.toml declares it, whether or not this checkout was installed since.
    point = EntryPoint("label-studio", "labelstudio_backend.evaluation:LabelStudioDataSet", jobs.DATA_SETS)
    monkeypatch.setattr(jobs, "installed", lambda group: {point.name: point} if group == jobs.DATA_SETS else {})
    words = ["evaluate", "--label-studio", str(export), "--images", str(tmp_path / "images"), "--device", "cpu"]
    assert run([*words, "--model", str(tiny_model_path), "--out", str(tmp_path / "out")]) == 0
    assert "export own, 2 images, 3 classes" in capsys.readouterr().out


def test_odd_values_are_refused_or_drawn(tmp_path: Path) -> None:
    shapes = [polygon([(0, 0), (20, 0), (0, 20)]), brush(np.ones(SIZE, dtype=bool), "sofa")]
    path, drawn, refused = write_export(tmp_path, task(1, "/data/upload/a.png", annotation(*shapes))), 0, 0
    for _, _, text in odd_copies(json.loads(path.read_text())):
        path.write_text(text)
        try:
            data = LabelStudioDataSet(path, tmp_path / "images", None)
            data.check(0)
            drawn += data.truth(0).shape == SIZE
        except (DataSetError, ImageError):
            refused += 1
    assert drawn and refused
