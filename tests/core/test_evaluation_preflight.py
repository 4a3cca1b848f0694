"""Several evaluations in one command: what would stop the last one is found before the first one starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_core.cli.main import run
from tcl_core.evaluation.datasets import class_list
from tests.core.test_evaluation_datasets import DATA, VOC
from tests.tiny_model import WORDS, write_tiny_model

SETS = ("voc", "voc20", "cityscapes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the class names of three data sets."""
    words = {word for name in SETS for _, prompt in class_list(name).vocabulary.prompts for word in prompt.split()}
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", words=sorted({*WORDS, *words}))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "data"))


def command(data: Path, out: Path, *words: str) -> list[str]:
    common = ["--data", str(data), "--out", str(out), "--device", "cpu", "--quiet", "--no-page", "--no-effort"]
    return ["evaluate", *words, *common]


def finished(out: Path) -> int:
    """Images that some journal contains."""
    return sum(len(path.read_bytes().splitlines()) - 1 for path in out.rglob("journal-*.jsonl"))


def test_all_that_is_missing_is_listed_at_once(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("cityscapes", "ade", "VOCdevkit/VOC2010/ImageSets"):
        shutil.rmtree(copy / folder)
    assert run(command(copy, tmp_path / "out", "all")) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 4
    for line, text in zip(
        lines,
        (
            "split of context is missing; get VOCtrainval",
            "split of context59 is missing; get VOCtrainval",
            "cityscapes is missing: there is no cityscapes/leftImg8bit/val; get leftImg8bit",
            "ade20k is missing: there is no ade/ADEChallengeData2016/images/validation; get ADEChallengeData2016.zip",
        ),
        strict=True,
    ):
        assert text in line


@pytest.mark.parametrize(
    ("fault", "words", "message"),
    [
        ("label", ["voc20", "cityscapes"], "contains the value 33, which is not a class of cityscapes"),
        ("image", ["voc20", "cityscapes"], "_leftImg8bit.png: damaged or truncated image"),
        ("model", ["voc20", "--model", "no-such-model"], "no-such-model"),
        ("threshold", ["voc", "voc20", "--background-threshold", "0.3"], "these classes have no background"),
        ("words", ["voc20", "ade20k"], "does not know the word 'floor'"),
        ("settings", ["voc20", "cityscapes"], "contains results with other settings (model.preprocess.short_side)"),
    ],
)
def test_faults_of_a_later_evaluation_are_found_first(
    fault: str,
    words: list[str],
    message: str,
    model: Path,
    copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, before = tmp_path / "out", 0
    if fault == "label":
        path = sorted(copy.rglob("*_gtFine_labelTrainIds.png"))[-1]
        values = np.asarray(Image.open(path)).copy()
        values[-1, -1] = 33
        Image.fromarray(values).save(path)
    elif fault == "image":
        path = sorted(copy.rglob("*_leftImg8bit.png"))[-1]
        path.write_bytes(path.read_bytes()[:-100])
    elif fault == "settings":
        assert run(command(copy, out, "cityscapes", "--model", str(model), "--short-side", "80", "--limit", "1")) == 0
        before = 1
        words = [*words, "--limit", "1"]
    assert run(command(copy, out, *words, "--model", str(model))) == 2
    shown = capsys.readouterr().err.strip()
    assert message in shown and len(shown.splitlines()) == 1
    assert finished(out) == before


@pytest.mark.slow
def test_several_at_once_are_the_same_as_one_by_one(model: Path, copy: Path, tmp_path: Path) -> None:
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert run(command(copy, together, *SETS, "--model", str(model))) == 0
    for name in SETS:
        assert run(command(copy, alone, name, "--model", str(model))) == 0
        path = f"{name}-val/tiny.safetensors-pamr/result.json"
        assert (together / path).read_bytes() == (alone / path).read_bytes()
    summary = json.loads((together / "summary.json").read_text(encoding="utf-8"))
    assert [entry["data"]["name"] for entry in summary] == list(SETS)


def test_models_of_the_same_file_name_have_folders_of_their_own(model: Path, copy: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "tiny.safetensors", seed=1, words=class_words())
    assert run(command(copy, tmp_path / "out", "voc20", "--model", str(model), "--model", str(other))) == 0
    results = [json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "out").rglob("result.json")]
    assert len({result["model"]["weights_sha256"] for result in results}) == 2


def class_words() -> list[str]:
    return sorted({*WORDS, *(word for _, prompt in class_list("voc20").vocabulary.prompts for word in prompt.split())})


def test_a_damaged_image_stops_the_data_set_before_it_starts(
    model: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A JPEG whose header is intact, as a download that broke off leaves it."""
    image = copy / VOC / "JPEGImages" / "2008_000215.jpg"
    image.write_bytes(image.read_bytes()[:-60])
    assert run(command(copy, tmp_path / "out", "voc", "--model", str(model))) == 2
    assert "2008_000215.jpg: damaged or truncated image" in capsys.readouterr().err
    assert finished(tmp_path / "out") == 0
