"""Models side by side: every card is what its model makes of the image, and agreement is counted in pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tcl_core
from tcl_core.cli.main import run
from tcl_core.preview.drawing import regions_to_svg

LABELS = ["--label", "Seat=sofa,couch", "--label", "cat"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(5)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        blocks = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray(blocks).save(folder / name)
    return folder


def compare(photos: Path, page: Path, models: list[Any], *more: str) -> int:
    named = [word for model in models for word in ("--model", str(model))]
    return run(["compare", str(photos), *LABELS, *named, "--preview", str(page), "--quiet", *more])


def cards(page: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (page / "cards.jsonl").read_text().splitlines()[1:]]


def test_cards_are_what_the_models_find(
    photos: Path,
    tiny_model_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [str(tiny_model_path), f"maskclip:{tiny_model_path}"]
    with monkeypatch.context() as only_the_command:
        only_the_command.setenv("TCL_ANNOTATE_BACKEND", "unknown")
        assert compare(photos, tmp_path / "page", models, "--backend", "torch") == 0
    vocabulary = {"Seat": ["sofa", "couch"], "cat": "cat"}
    found = {
        (name, model): tcl_core.segment(photos / name, vocabulary, model=model, backend="torch")
        for model in models
        for name in ("a.png", "b.png")
    }
    made = {(card["name"], card["column"]): card for card in cards(tmp_path / "page")}
    assert made.keys() == found.keys()
    for key, result in found.items():
        assert made[key]["svg"] == regions_to_svg(result.regions())
    same = [found[name, models[0]].label_map == found[name, models[1]].label_map for name in ("a.png", "b.png")]
    assert 0 < np.mean(same) < 1
    assert f"on {np.mean(same):.1%} of the pixels" in capsys.readouterr().out
    assert made["b.png", models[1]]["note"].endswith(f"on {same[1].mean():.0%} of the pixels")
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert text.count("<figure") == 4


def test_images_that_cannot_be_read_are_left_out(
    photos: Path, tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    models = [tiny_model_path, f"maskclip:{tiny_model_path}"]
    assert compare(photos, tmp_path / "page", models) == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(cards(tmp_path / "page")) == 4
    assert compare(photos / "broken.png", tmp_path / "other", models) == 2
    assert "none of the images could be read" in capsys.readouterr().err


def test_mistakes_are_found_before_any_work(
    photos: Path, tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, both = tmp_path / "page", [tiny_model_path, f"maskclip:{tiny_model_path}"]
    for models, message in (
        ([tiny_model_path], "at least two models"),
        ([tiny_model_path, tiny_model_path], "is given twice"),
        ([tiny_model_path, "nothing"], "there is no model"),
    ):
        assert compare(photos, page, models) == 2
        assert message in capsys.readouterr().err
    assert compare(photos, page, both, "--overwrite") == 0
    assert compare(photos, page, both) == 2
    assert "already contains a preview" in capsys.readouterr().err
    assert compare(photos, page, both, "--overwrite") == 0
