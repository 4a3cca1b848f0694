"""Embedded prompts outlive the process, and whatever happens to the folder costs time alone."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.prompts import TCLPrompts
from tcl_core.models import Model
from tcl_core.models.paths import TEXT_CACHE_VARIABLE, texts_folder
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.text_store import TextStore

TEMPLATES = "simple"


@pytest.fixture
def model(tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The tiny model with a folder, as if its vocabulary were open."""
    monkeypatch.setattr(TCL, "known_words", lambda self: None)
    return replace(tiny_model, text_folder=tmp_path / "texts", precision=torch.float32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts that go through the text tower."""
    found: list[str] = []
    compute = TCL.embed_prompts

    def recorded(self: TCL, prompts: list[str], templates: tuple[str, ...]) -> TCLPrompts:
        found.extend(prompts)
        return compute(self, prompts, templates)

    monkeypatch.setattr(TCL, "embed_prompts", recorded)
    return found


def test_a_second_process_computes_only_what_is_new(model: Model, asked: list[str]) -> None:
    first = Segmenter(model).embed_prompts(["cat", "sky"], TEMPLATES)
    again = Segmenter(model).embed_prompts(["sky", "dog", "cat"], TEMPLATES)
    assert asked == ["cat", "sky", "dog"]
    assert torch.equal(again.tensors()["text"][[2, 0]], first.tensors()["text"])


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "0" * 64}, {"name": "other"}, {"precision": torch.bfloat16}], ids=str
)
def test_another_model_or_precision_shares_nothing(model: Model, asked: list[str], change: dict[str, object]) -> None:
    Segmenter(model).embed_prompts(["cat"], TEMPLATES)
    Segmenter(replace(model, **change)).embed_prompts(["cat"], TEMPLATES)  # type: ignore[arg-type]
    Segmenter(model).embed_prompts(["cat"], "identity")
    assert asked == ["cat"] * 3


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"x" * 100, b"\xff" * (2 << 20)])
def test_a_damaged_file_is_computed_anew_and_mended(model: Model, asked: list[str], content: bytes) -> None:
    expected = Segmenter(model).embed_prompts(["cat"], TEMPLATES)
    (file,) = (model.text_folder or Path()).rglob("*.safetensors")
    file.write_bytes(content)
    found = Segmenter(model).embed_prompts(["cat"], TEMPLATES)
    Segmenter(model).embed_prompts(["cat"], TEMPLATES)
    assert asked == ["cat", "cat"]
    assert torch.equal(found.tensors()["text"], expected.tensors()["text"])


def test_numbers_that_are_not_finite_are_not_believed(tmp_path: Path) -> None:
    store = TextStore(tmp_path, {}, TCLPrompts)
    store.put("cat", TCLPrompts(torch.full((1, 4), float("nan"))))
    store.put("dogs", TCLPrompts(torch.zeros(2, 4)))
    assert store.get("cat") is None and store.get("dogs") is None


def test_prompts_cannot_be_read_off_the_folder(model: Model) -> None:
    Segmenter(model).embed_prompts(["red sofa"], TEMPLATES)
    files = [path for path in (model.text_folder or Path()).rglob("*") if path.is_file()]
    assert files and not any(b"sofa" in path.read_bytes() or "sofa" in path.name for path in files)


def test_the_folder_is_bounded_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    store = TextStore(tmp_path, {}, TCLPrompts, most=20)
    other = TextStore(tmp_path, {"model": "other"}, TCLPrompts, most=20)
    store.put("0", TCLPrompts(torch.ones(1, 4)))
    (place,) = tmp_path.iterdir()
    for name in ("left.part", "at work.part"):
        (place / name).write_bytes(b"half")
    os.utime(place / "left.part", (0, 0))
    for number in range(30):
        (other if number % 2 else store).put(str(number), TCLPrompts(torch.ones(1, 4)))
        assert store.get("0") is not None
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert 10 <= len(left) <= 25
    assert [path.name for path in left if path.suffix == ".part"] == ["at work.part"]


def test_many_threads_write_the_same_prompts(tmp_path: Path) -> None:
    row = TCLPrompts(torch.ones(1, 4))

    def work(number: int) -> bool:
        store = TextStore(tmp_path, {}, TCLPrompts, most=15)
        store.put(str(number % 20), row)
        found = store.get(str(number % 20))
        return found is None or torch.equal(found.text, row.text)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_a_folder_that_cannot_be_written_to_is_told_once(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    segmenter = Segmenter(replace(model, text_folder=tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be cached .*TCL_ANNOTATE_TEXT_CACHE=off"):
        segmenter.embed_prompts(["cat"], TEMPLATES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.embed_prompts(["dog"], TEMPLATES)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TEXT_CACHE_VARIABLE, "off")
    assert texts_folder() is None
    monkeypatch.setenv(TEXT_CACHE_VARIABLE, "on")
    assert (texts_folder() or Path()).name == "texts"
    monkeypatch.setenv(TEXT_CACHE_VARIABLE, "never")
    with pytest.raises(SettingsError, match="TCL_ANNOTATE_TEXT_CACHE is 'never'; set it to on or off"):
        texts_folder()
