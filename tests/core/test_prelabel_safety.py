"""What a user has is never lost: results of earlier runs, previews, and files that outputs could land on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tcl_core.errors import SettingsError
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.job import PrelabelSettings
from tcl_core.jobs.journal import journal_path
from tcl_core.models import Model, load_model
from tcl_core.preview.page import PreviewWriter
from tests.core.prelabel_helpers import run_prelabel
from tests.core.test_prelabel import VOCABULARY, TroubledSegmenter, read, save_image


@pytest.fixture(scope="module")
def model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(model: Model) -> TroubledSegmenter:
    return TroubledSegmenter(model, refine=False, batch_size=4)


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    for number in range(6):
        save_image(tmp_path / "pics" / f"{number}.png", number)
    return find_images([str(tmp_path / "pics")])


def test_resuming_with_fewer_images_loses_nothing(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out = tmp_path / "out.json"
    fewer = replace(images, file_names=images.file_names[:4])
    run_prelabel(fewer, segmenter, VOCABULARY, out)
    before, calls = out.read_bytes(), segmenter.calls
    with pytest.raises(SettingsError, match=r"2 of the 4 images .*2\.png.* give the same inputs"):
        run_prelabel(replace(images, file_names=("0.png", "1.png", "5.png")), segmenter, VOCABULARY, out, resume=True)
    assert out.read_bytes() == before and segmenter.calls == calls and not journal_path(out).exists()
    assert run_prelabel(images, segmenter, VOCABULARY, out, resume=True).done == 6
    assert segmenter.calls == calls + 2


def test_a_preview_of_another_job_is_not_taken_over(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    preview = tmp_path / "preview"
    run_prelabel(images, segmenter, VOCABULARY, tmp_path / "a.json", preview=preview)
    cards = (preview / "cards.jsonl").read_bytes()
    other = PrelabelSettings(min_area=500)
    run_prelabel(images, segmenter, VOCABULARY, tmp_path / "b.json", other)
    with pytest.raises(
        SettingsError, match="preview: contains the preview of a job with other labels or settings; choose"
    ):
        run_prelabel(images, segmenter, VOCABULARY, tmp_path / "b.json", other, preview=preview, resume=True)
    assert (preview / "cards.jsonl").read_bytes() == cards and not journal_path(tmp_path / "b.json").exists()
    run_prelabel(images, segmenter, VOCABULARY, tmp_path / "a.json", preview=preview, resume=True)


def test_a_damaged_card_is_named_with_the_remedy(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter
) -> None:
    out, preview = tmp_path / "out.json", tmp_path / "preview"
    run_prelabel(images, segmenter, VOCABULARY, out, preview=preview)
    lines = (preview / "cards.jsonl").read_bytes().splitlines(keepends=True)
    for damaged in (b"{rubbish\n", b"[]\n", b'{"name": "x"}\n', b"\xff\n"):
        (preview / "cards.jsonl").write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        with pytest.raises(SettingsError, match=r"cards\.jsonl: line 3 is damaged; delete the folder"):
            run_prelabel(images, segmenter, VOCABULARY, out, preview=preview, resume=True)


def test_a_fault_of_the_preview_does_not_cost_the_results(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise SettingsError("the disc is full")

    monkeypatch.setattr(PreviewWriter, "finish", full)
    with pytest.raises(SettingsError, match="the disc is full"):
        run_prelabel(images, segmenter, VOCABULARY, tmp_path / "out.json", preview=tmp_path / "preview")
    assert len(read(tmp_path / "out.json")["images"]) == 6


def test_a_fault_of_the_program_ends_the_job_and_is_no_broken_image(
    tmp_path: Path, images: ImageList, segmenter: TroubledSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("fault")

    out = tmp_path / "out.json"
    with monkeypatch.context() as patch:
        patch.setattr("tcl_core.jobs.stages.label_map_to_regions", broken)
        with pytest.raises(ZeroDivisionError):
            run_prelabel(images, segmenter, VOCABULARY, out)
        two = replace(images, file_names=images.file_names[:2])
        summary = run_prelabel(two, segmenter, VOCABULARY, tmp_path / "two.json")
        assert summary.internal == len(summary.failed) == 2
    assert segmenter.calls == 5 and journal_path(out).exists()
    summary = run_prelabel(images, segmenter, VOCABULARY, out, resume=True)
    assert summary.done == 6 and summary.internal == 0
