"""Places that cannot be written to: a sentence each, before any work where that can be known, and nothing is lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tcl_core.cli.main import run
from tcl_core.cli.places import check_file
from tcl_core.errors import ExportError, SettingsError
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs.journal import Journal, is_in_use, journal_path
from tcl_core.vocabulary import Vocabulary
from tests.core.test_prelabel import save_image

LABELS = ["--label", "Cat=cat,dog", "--label", "Sofa=sofa,red couch", "--label", "Tree=tree"]
COUNT = 12


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(COUNT):
        save_image(tmp_path / "pics" / f"{number:02d}.png", number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TCL_ANNOTATE_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def fast(tiny_model_path: Path) -> list[str]:
    return ["--model", str(tiny_model_path), "--device", "cpu", "--no-refine", "--quiet"]


def error_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    assert run(words) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("option", ["--out", "--failures", "--preview", "--root", "--labels"])
def test_a_path_that_is_empty(place: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    words = ["prelabel", "pics", *LABELS, "--out", "o.json", option, ""]
    kind = "folder" if option == "--root" else "file or folder"
    assert f"error: {option}: the path is empty; give a {kind} (" in error_of(words, capsys)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ["prelabel", "pics", *LABELS, "--out", "-"],
        ["prelabel", "pics", *LABELS, "--out", "o.json", "--failures", "-"],
        ["segment", "pics/00.png", *LABELS, "--json", "-"],
        ["playground", "evaluate", "--json", "-"],
    ],
    ids=" ".join,
)
def test_standard_output_as_a_file(place: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(words, capsys)
    assert f"{words[-2]} -: results are not written to standard output" in said and "give a file name" in said
    assert [path.name for path in place.iterdir()] == ["pics"]


@pytest.mark.skipif(sys.platform == "win32", reason="paths of POSIX")
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("pics", "--out pics: is a folder; give a file name"),
        ("/dev/null", "--out /dev/null: is not a regular file; choose another"),
        ("pics/00.png/o.json", "00.png is not a folder; choose another path"),
        ("n" * 300, "cannot be used (File name too long)"),
        ("n" * 246, ".journal.lock' cannot be created next to it (File name too long)"),
    ],
    ids=lambda value: value[:20],
)
def test_places_that_no_file_can_be_made_at(
    place: Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(["prelabel", "pics", *LABELS, "--out", out], capsys)
    assert [path.name for path in place.iterdir()] == ["pics"]


def test_a_folder_where_a_folder_is_written(tmp_path: Path) -> None:
    check_file("--out", tmp_path, folder_is_fine=True)
    with pytest.raises(SettingsError, match="is a folder; give a file name"):
        check_file("--out", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="a file system that nobody can write to")
@pytest.mark.parametrize("option", ["--out", "--failures", "--preview"])
def test_a_folder_that_refuses_even_the_superuser(place: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prelabel", "pics", *LABELS, "--out", "o.json", option, "/proc/self/o.json"]
    assert f"{option}: the folder /proc/self cannot be written to (" in error_of(words, capsys)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "change its permissions"), (errno.EROFS, "choose another"), (errno.ENOSPC, "free some space")],
)
def test_the_remedy_follows_the_reason(
    place: Path, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tcl_core.cli.places.tempfile.TemporaryFile", refuse)
    said = error_of(["prelabel", "pics", *LABELS, "--out", "o.json"], capsys)
    assert f"cannot be written to ({os.strerror(number)}); {remedy}" in said


@pytest.mark.parametrize("more", [[], ["--resume"], ["--overwrite"]], ids=str)
def test_a_second_run_beside_a_living_one(
    place: Path, fast: list[str], more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prelabel", "pics", *LABELS, *fast, "--out", "o.json"]
    with Journal.open("o.json", CocoExporter(), Vocabulary.from_options(["a"]), {}):
        before = journal_path("o.json").read_bytes()
        assert "--out o.json: another run is writing to it; wait for it to finish" in error_of([*words, *more], capsys)
        assert journal_path("o.json").read_bytes() == before and is_in_use("o.json")
    assert not is_in_use("o.json")


def test_what_a_dead_run_left_does_not_count_as_a_living_one(
    place: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = journal_path("o.json").with_name("o.json.journal.lock")
    lock.touch()
    assert not is_in_use("o.json")
    assert run(["prelabel", "pics", *LABELS, *fast, "--out", "o.json"]) == 0


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: the kernel then refuses to write, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_images_are_labeled(place: Path, fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prelabel", "pics", *LABELS, *fast, "--geometry", "rle", "--out"]
    assert run([*words, "whole.json"]) == 0
    capsys.readouterr()
    with files_of_at_most(8000):
        said = error_of([*words, "o.json"], capsys)
    assert "o.json.journal cannot be written: File too large; free some space on that disk and resume the run" in said
    done = [line for line in journal_path("o.json").read_text().splitlines() if line.startswith('{"image"')]
    assert 0 < len(done) <= COUNT
    assert run([*words, "o.json", "--resume"]) == 0
    assert Path("o.json").read_bytes() == Path("whole.json").read_bytes()


@pytest.mark.slow
def test_a_full_disk_while_the_output_is_put_together(
    place: Path, fast: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["prelabel", "pics", *LABELS, *fast, "--out"]
    assert run([*words, "whole.json"]) == 0
    capsys.readouterr()
    export = Journal.export

    def on_a_full_disk(self: Journal, *arguments: Any, **more: Any) -> None:
        with files_of_at_most(2000):
            export(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "export", on_a_full_disk)
        said = error_of([*words, "o.json"], capsys)
    assert (
        "o.json cannot be written: File too large; free some space on that disk and resume the run (--resume)" in said
    )
    assert "because o.json.journal keeps the finished images" in said
    assert {path.name for path in place.iterdir()} == {"pics", "whole.json", "o.json.journal"}
    assert run([*words, "o.json", "--resume"]) == 0
    assert Path("o.json").read_bytes() == Path("whole.json").read_bytes()


def test_a_disk_that_refuses_at_the_end_does_not_hide_what_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ZeroDivisionError):
        with Journal.open(tmp_path / "o.json", CocoExporter(), Vocabulary.from_options(["a"]), {}):
            monkeypatch.setattr("tcl_core.jobs.journal.os.fsync", full)
            raise ZeroDivisionError
    journal = Journal.open(tmp_path / "o.json", CocoExporter(), Vocabulary.from_options(["a"]), {}, resume=True)
    with pytest.raises(ExportError, match="No space left on device; free some space"):
        journal.close()


def test_results_are_reported_before_failures_that_cannot_be_written(
    place: Path, fast: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tcl_core.cli.prelabel.csv.writer", full)
    assert run(["prelabel", "pics", *LABELS, *fast, "--out", "o.json", "--failures", "f.csv"]) == 2
    streams = capsys.readouterr()
    assert f"o.json: {COUNT} of {COUNT} images" in streams.out
    assert "--failures f.csv: cannot be written (No space left on device)" in streams.err
    assert len(json.loads(Path("o.json").read_text())["images"]) == COUNT


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tcl_core.cli", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_failures_are_utf8_whatever_the_names(place: Path, fast: list[str]) -> None:
    names = [os.fsdecode(b"bad\xff\xfe.png"), "gro\u00df.png", 'quote", and\nline.png']
    for name in names:
        (place / "pics" / name).write_text("no image")
    assert run(["prelabel", "pics", *LABELS, *fast, "--out", "o.json", "--failures", "f.csv"]) == 1
    rows = list(csv.reader(Path("f.csv").read_bytes().decode("utf-8").splitlines(keepends=True)))
    assert {row[0] for row in rows[1:]} == {"bad\\udcff\\udcfe.png", *names[1:]}
    listed = json.loads(Path("o.json").read_bytes())["info"]["failed"]
    assert [entry["file_name"] for entry in listed] == [row[0] for row in sorted(rows[1:], key=lambda row: row[0])]
