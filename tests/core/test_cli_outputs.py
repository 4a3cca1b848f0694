"""Outputs never land on what the user has, and that is judged before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcl_core.cli.main import run
from tests.core.test_prelabel import save_image


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_image(tmp_path / "a.png")
    (tmp_path / "l.yaml").write_text("[cat]")
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "m.json").write_text("no model")
    (tmp_path / "mine.csv").write_text("my,own,table\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("segment a.png --labels l.yaml --out a.png --overwrite", "--out a.png: is an input"),
        ("segment a.png --labels l.yaml --json l.yaml --overwrite", "--json l.yaml: is an input"),
        ("segment a.png --labels l.yaml --json m.json --model m.json --overwrite", "--json m.json: is an input"),
        ("segment a.png --labels l.yaml --json mine.json", "--json mine.json: already exists; add --overwrite"),
        ("segment a.png --labels l.yaml --out x.png --json ./x.png", "--json x.png: is the same file as --out"),
        ("segment a.png --labels l.yaml --out no/x.png", "/no does not exist; create it"),
        ("segment a.png --labels l.yaml --json no/x.json", "/no does not exist; create it"),
        ("prelabel a.png --labels l.yaml --out o.json --failures l.yaml --overwrite", "--failures l.yaml: is an input"),
        ("prelabel a.png --labels l.yaml --out o.json --failures a.png --overwrite", "--failures a.png: is an input"),
        ("prelabel a.png --labels l.yaml --out l.yaml --overwrite", "--out l.yaml: is an input"),
        ("prelabel a.png --labels l.yaml --out a.png --resume", "--out a.png: is an input"),
        ("prelabel a.png --labels l.yaml --out o.json --failures mine.csv", "mine.csv: already exists"),
        ("prelabel a.png --labels l.yaml --out o.json --failures mine.csv --overwrite", "not a list of failures"),
    ],
)
def test_refused_before_any_work(place: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert run(words.split()) == 2
    streams = capsys.readouterr()
    assert message in streams.err and streams.out == ""
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_scenes_replace_nothing_unless_asked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "labels.yaml").write_text("[mine]")
    words = ["playground", "scenes", "--out", ".", "--count", "1", "--size", "32", "32"]
    assert run(words) == 2
    assert "already contains labels.yaml; add --overwrite" in capsys.readouterr().err
    assert (place / "labels.yaml").read_text() == "[mine]" and not (place / "scene-0001.png").exists()
    assert run([*words, "--overwrite"]) == 0


def test_replaced_when_asked(place: Path, tiny_model_path: Path) -> None:
    common = ["--labels", "l.yaml", "--model", str(tiny_model_path), "--device", "cpu", "--no-refine"]
    assert run(["segment", "a.png", *common, "--json", "mine.json", "--overwrite"]) == 0
    assert (place / "mine.json").read_text() != "{}"
    (place / "f.csv").write_text("file_name,reason\n")
    assert run(["prelabel", "a.png", *common, "--out", "o.json", "--failures", "f.csv", "--overwrite"]) == 0
