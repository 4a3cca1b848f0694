"""An evaluation that is stopped, shared or begun anew gives the same files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_core.cli.main import run
from tcl_core.errors import DataSetError, ImageError, SettingsError
from tcl_core.evaluation.jobs import EvaluationJob, MaskData, ModelSpec
from tcl_core.evaluation.processes import run_job, torchrun_share
from tcl_core.evaluation.records import JournalIndex
from tcl_core.evaluation.report import build_result, write_result
from tcl_core.evaluation.run import Share
from tcl_core.vocabulary import Vocabulary
from tests.core.evaluation_helpers import write_own_data

FILES = ("result.json", "classes.csv", "images.csv", "confusion.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_data(tmp_path_factory.mktemp("own data"))


@pytest.fixture(scope="module")
def job(data: Path, tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationJob:
    spec = MaskData(data / "masks", data / "images", Vocabulary.from_file(data / "labels.yaml"))
    model = ModelSpec(str(tiny_model_path), device="cpu", background_threshold=0.45)
    return EvaluationJob(spec, model, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def whole(job: EvaluationJob) -> Mapping[str, Any]:
    result = run_job(job)
    assert result is not None
    return result


def moved(job: EvaluationJob, folder: Path) -> EvaluationJob:
    return replace(job, folder=folder)


def same_files(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_the_result_is_that_of_the_kept_predictions(job: EvaluationJob, whole: Mapping[str, Any], data: Path) -> None:
    """Counted once more, from the files, by hand."""
    evaluation = job.open()
    intersect, union = np.zeros(4), np.zeros(4)
    for index, name in enumerate(evaluation.images):
        values = np.asarray(Image.open(data / "masks" / name)).astype(int)
        truth = np.select([values == 9, values == 255], [3, -1], values)
        predicted = evaluation.prediction(index)
        assert set(np.unique(predicted)) <= {0, 1, 2, 3}
        for number in range(4):
            counted = truth >= 0
            intersect[number] += ((truth == number) & (predicted == number)).sum()
            union[number] += (((truth == number) | (predicted == number)) & counted).sum()
    assert [row["name"] for row in whole["classes"]] == ["background", "cat", "sofa", "tree"]
    assert [row["intersect"] for row in whole["classes"]] == intersect.tolist()
    assert whole["scores"]["mean_iou"] == pytest.approx((intersect / union).mean())
    assert 0 < whole["scores"]["mean_iou"] < 1


def test_the_files_hold_every_setting_and_every_image(job: EvaluationJob, whole: Mapping[str, Any]) -> None:
    evaluation = job.open()
    assert json.loads((job.folder / "result.json").read_text(encoding="utf-8")) == whole
    model = whole["model"]
    assert model["weights_sha256"] == evaluation.segmenter.model.weights_sha256
    assert model["preprocess"]["short_side"] == 64 and model["refiner"]["name"] == "pamr"
    assert whole["vocabulary"]["background"] == 0.45
    with (job.folder / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == evaluation.images
    for field in ("steps", "steps_anew", "regions_added"):
        assert sum(int(row[field]) for row in rows) == whole["effort"][field]
    with (job.folder / "confusion.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == whole["confusion"]
    page = (job.folder / "page" / "index.html").read_text(encoding="utf-8")
    shown = {part.split('"')[0] for part in page.split('src="')[1:]}
    assert shown == {path.relative_to(job.folder / "page").as_posix() for path in (job.folder / "page").rglob("*.jpg")}
    assert page.count("<section>") == 4 and "Worst" in page


def test_the_worst_image_comes_first(job: EvaluationJob, whole: Mapping[str, Any]) -> None:
    page = (job.folder / "page" / "index.html").read_text(encoding="utf-8")
    section = next(part for part in page.split("<section>") if "</span>cat:" in part)
    shown = [float(part.split(" %")[0].rsplit(" ", 1)[1]) for part in section.split("<figcaption>")[1:]]
    records = JournalIndex(job.folder, job.open().identity()).records(job.open().images)
    own = []
    for record in records:
        confusion = record.confusion(4)
        if confusion[1].sum() >= 0.001 * record.size[0] * record.size[1]:
            union = confusion[1].sum() + confusion[:, 1].sum() - confusion[1, 1]
            own.append(round(100 * confusion[1, 1] / union, 1))
    low = min(3, (len(own) + 1) // 2)
    assert len(own) > 1 and len(shown) == min(6, len(own))
    assert shown[:low] == sorted(own)[:low]
    assert shown[low:] == sorted(own, reverse=True)[: len(shown) - low]


def test_stopped_and_resumed(job: EvaluationJob, whole: Mapping[str, Any], tmp_path: Path) -> None:
    part = moved(job, tmp_path / "out")
    calls: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        if what == "evaluate" and done == 3:
            raise KeyboardInterrupt
        calls.append(done)

    with pytest.raises(KeyboardInterrupt):
        run_job(part, on_progress=stop)
    assert not (part.folder / "result.json").exists()
    with pytest.raises(SettingsError, match="3 of 6 images are not evaluated yet"):
        build_result(part.open())
    # As a process that is killed while it writes leaves it.
    with (part.folder / "journal-0.jsonl").open("ab") as file:
        file.write(b'{"image":"room/ima')
    seen: list[tuple[str, int, int]] = []
    run_job(part, on_progress=lambda *each: seen.append(each))
    assert ("evaluate", 3, 6) in seen and ("evaluate", 2, 6) not in seen
    assert same_files(part.folder, job.folder)


def test_shared_by_two_processes(job: EvaluationJob, whole: Mapping[str, Any], tmp_path: Path) -> None:
    part = moved(job, tmp_path / "out")
    for number in (1, 0):
        part.open().work(Share(number, 2))
    assert len(list(part.folder.glob("journal-*.jsonl"))) == 2
    write_result(part.open())
    assert same_files(part.folder, job.folder)


def test_a_machine_of_its_own_sends_its_lines(job: EvaluationJob, whole: Mapping[str, Any], tmp_path: Path) -> None:
    here, there = moved(job, tmp_path / "here"), moved(job, tmp_path / "there")
    here.open().work(Share(0, 2))
    there.open().work(Share(1, 2))
    lines = (there.folder / "journal-1.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    own = (here.folder / "journal-0.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    assert write_result(here.open(), [*own, *lines]) == whole


def test_other_settings_are_refused_and_overwritten(job: EvaluationJob, tmp_path: Path) -> None:
    part = moved(replace(job, limit=2), tmp_path / "out")
    run_job(part)
    other = replace(part, model=replace(part.model, refine=False))
    with pytest.raises(SettingsError, match=r"other settings \(.*model.refine.*--overwrite"):
        run_job(other)
    result = run_job(other, overwrite=True)
    assert result is not None and result["model"]["refiner"] is None


def test_changed_annotations_are_not_answered_from_the_journal(job: EvaluationJob, tmp_path: Path) -> None:
    data = write_own_data(tmp_path / "data", 2)
    spec = MaskData(data / "masks", data / "images", Vocabulary.from_file(data / "labels.yaml"))
    part = replace(job, data=spec, folder=tmp_path / "out")
    before = run_job(part)
    mask = data / "masks/room/image-1.png"
    Image.fromarray(np.ones_like(np.asarray(Image.open(mask)))).save(mask)
    with pytest.raises(SettingsError, match=r"data.annotations_sha256\); add --overwrite"):
        run_job(part)
    after = run_job(part, overwrite=True)
    assert before is not None and after is not None and before["scores"] != after["scores"]


def test_two_at_once_are_refused(job: EvaluationJob, tmp_path: Path) -> None:
    part = moved(job, tmp_path / "out")

    def begin_another(what: str, done: int, total: int) -> None:
        part.open().work()

    with pytest.raises(SettingsError, match="another evaluation is writing to this folder"):
        run_job(part, on_progress=begin_another)


# -- what is wrong is said before hours are spent ----------------------------------------------------------------------


def failing(job: EvaluationJob, data: Path, folder: Path) -> tuple[str, list[str]]:
    """The message, and what was done before it."""
    vocabulary = Vocabulary.from_file(data / "labels.yaml")
    part = moved(job, folder / "out")
    part = replace(part, data=MaskData(data / "masks", data / "images", vocabulary))
    seen: list[str] = []
    with pytest.raises((DataSetError, ImageError)) as error:
        run_job(part, on_progress=lambda what, done, total: seen.append(what))
    assert "\n" not in str(error.value)
    return str(error.value), seen


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("size", r"image-5.png: the size of .* is 30x20 here, .* use the images that were annotated"),
        ("color", r"image-5.png is a color image \(RGB\)"),
        ("value", r"image-5.png: contains the value 77, which no label has"),
        ("label", r"image-5.png cannot be read"),
        ("gone", r"image-5.png: this image of masks is missing"),
        ("header", r"image-5.png"),
        ("truncated", r"image-5.png: damaged or truncated"),
    ],
)
def test_faults_are_found_before_the_first_image(job: EvaluationJob, tmp_path: Path, fault: str, message: str) -> None:
    data = write_own_data(tmp_path / "data")
    mask, image = data / "masks/room/image-5.png", data / "images/room/image-5.png"
    if fault == "size":
        Image.new("L", (30, 20)).save(mask)
    elif fault == "color":
        Image.open(mask).convert("RGB").save(mask)
    elif fault == "value":
        values = np.asarray(Image.open(mask)).copy()
        values[0, 0] = 77
        Image.fromarray(values).save(mask)
    elif fault == "label":
        mask.write_bytes(mask.read_bytes()[:60])
    elif fault == "gone":
        image.unlink()
    elif fault == "truncated":
        image.write_bytes(image.read_bytes()[:-40])
    else:
        image.write_bytes(b"no image")
    text, seen = failing(job, data, tmp_path)
    assert re.search(message, text), text
    assert "evaluate" not in seen


def test_an_image_that_breaks_during_the_run_costs_no_other(
    job: EvaluationJob, whole: Mapping[str, Any], tmp_path: Path
) -> None:
    """Damage after all files were checked."""
    data = write_own_data(tmp_path / "data")
    image = data / "images/room/image-4.png"
    content = image.read_bytes()
    part = moved(replace(job, data=MaskData(data / "masks", data / "images", whole_vocabulary(data))), tmp_path / "out")

    def damage(what: str, done: int, total: int) -> None:
        if what == "evaluate" and done == 0:
            image.write_bytes(content[: len(content) // 2])

    with pytest.raises(ImageError, match=r"image-4\.png"):
        run_job(part, on_progress=damage)
    assert len(JournalIndex(part.folder, part.open().identity())) == 4
    image.write_bytes(content)
    run_job(part)
    assert same_files(part.folder, job.folder)


def whole_vocabulary(data: Path) -> Vocabulary:
    return Vocabulary.from_file(data / "labels.yaml")


def test_the_share_of_torchrun() -> None:
    assert torchrun_share({}) is None
    with pytest.raises(SettingsError, match="are not numbers"):
        torchrun_share({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(SettingsError, match="process 2 of 2"):
        torchrun_share({"RANK": "2", "WORLD_SIZE": "2"})


def test_the_command(
    data: Path,
    tiny_model_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    job: EvaluationJob,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Only what the command says counts.
    monkeypatch.setenv("TCL_ANNOTATE_BACKEND", "unknown")
    words = ["evaluate", "--masks", str(data / "masks"), "--images", str(data / "images"), "--limit", "3"]
    words += ["--labels", str(data / "labels.yaml"), "--model", str(tiny_model_path), "--device", "cpu"]
    words += ["--refiner", "none", "--refiner", "pamr", "--out", str(tmp_path / "out"), "--no-page"]
    words += ["--short-side", "80", "--window", "48", "--stride", "24", "--background-threshold", "0.3"]
    words += ["--backend", "torch"]
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert shown.count("mIoU") == 3 and "| masks own | tiny | pamr |" in shown
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert [(entry["model"]["refine"], entry["model"]["backend"]) for entry in summary] == [
        (False, "torch"),
        (True, "torch"),
    ]
    with (tmp_path / "out" / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["refiner"], float(row["mean_iou"])) for row in rows] == [
        (name, entry["scores"]["mean_iou"]) for name, entry in zip(("none", "pamr"), summary, strict=True)
    ]
    for entry in summary:
        assert {key: entry["model"]["preprocess"][key] for key in ("short_side", "window", "stride")} == {
            "short_side": 80,
            "window": 48,
            "stride": 24,
        }
    assert run(words) == 0, "what is finished is printed again"
    assert not list((tmp_path / "out").rglob("predictions"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no data: name data sets"),
        (["voc"], "voc: requires --data DIR"),
        (["voc", "--data", "nowhere"], "voc is missing: there is no VOCdevkit/VOC2012/JPEGImages; get VOC"),
        (["voc", "--data", "nowhere", "--coco", "x.json"], "--coco and voc cannot be combined"),
        (["--coco", "x.json"], "--coco: requires --images DIR"),
        (["--masks", "masks", "--images", "images"], "--masks: masks contain only numbers"),
        (["playground", "--names", "synonyms"], "--names: only applies to benchmarks"),
        (["voc", "--images", "images"], "--images: only applies to your own data"),
        (["playground", "--split", "val"], "--split val: the playground has the splits seen and held-out"),
        (["playground", "--option", "kp_wait=1"], "kp_wait"),
        (["playground", "--all-methods", "--model", "naclip:playground"], "includes a method"),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", *words, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and len(shown.splitlines()) == 1
