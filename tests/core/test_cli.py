"""The command line: exit codes, one-line errors, help with examples, and the commands end to end."""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from tcl_core.cli.main import COMMANDS, cli, run
from tcl_core.jobs.journal import journal_path
from tests.core.test_prelabel import save_image

LABELS = ["--label", "Cat=cat,dog", "--label", "Sofa=sofa,red couch", "--label", "Tree=tree"]


def all_commands() -> list[tuple[str, ...]]:
    context = click.Context(cli)
    paths: list[tuple[str, ...]] = [()]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        paths.append((name,))
        if isinstance(command, click.Group):
            paths += [(name, inner) for inner in command.list_commands(context)]
    return paths


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(5):
        save_image(tmp_path / "pics" / f"{number}.png", number)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TCL_ANNOTATE_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def fast(tiny_model_path: Path) -> list[str]:
    return ["--model", str(tiny_model_path), "--device", "cpu", "--no-refine"]


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_help_everywhere_with_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example" in shown
    assert " ".join(("tcl-annotate", *path)) in shown.split("Example")[1]


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    context = click.Context(cli)
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None and command.name == name
        assert command.get_short_help_str(200) == line


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["prelabel", "--help"], ["--version"], ["validate-coco", "f.json"]])
def test_quick_commands_do_not_load_the_network(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"info": {}, "images": [], "annotations": [], "categories": []}')
    code = (
        "import sys; from tcl_core.cli.main import run; code = run(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_prelabel_end_to_end(place: Path, fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prelabel", "pics", *LABELS, *fast, "--out", "new folder/out.json", "--preview", "pre view"]
    assert run(arguments) == 0
    streams = capsys.readouterr()
    assert "5 of 5 images" in streams.out and "index.html" in streams.out
    assert "5 images, 3 labels, model tiny on cpu" in streams.err
    data = json.loads((place / "new folder" / "out.json").read_text())
    assert [image["file_name"] for image in data["images"]] == [f"{n}.png" for n in range(5)]
    assert {category["name"] for category in data["categories"]} == {"Cat", "Sofa", "Tree"}
    assert (place / "pre view" / "index.html").is_file()
    assert run(["validate-coco", "new folder/out.json", "--images", "pics"]) == 0
    assert run([*arguments, "--resume"]) == 0
    assert json.loads((place / "new folder" / "out.json").read_text()) == data


def test_labels_from_a_file_and_options_that_come_before_it(place: Path, fast: list[str]) -> None:
    (place / "labels.yaml").write_text("labels: [cat, {name: Sofa, prompts: [couch]}]\nbackground: 0.9\n")
    base = ["prelabel", "pics", "--labels", "labels.yaml", *fast, "--quiet"]
    outcomes = {}
    for name, more in {"file": [], "low": ["--background-threshold", "0.1"], "none": ["--no-background"]}.items():
        assert run([*base, "--out", f"{name}.json", "--geometry", "rle", *more]) == 0
        data = json.loads((place / f"{name}.json").read_text())
        outcomes[name] = sum(annotation["area"] for annotation in data["annotations"])
        assert data["info"]["vocabulary"]["background"] == {"file": 0.9, "low": 0.1, "none": False}[name]
    assert outcomes["file"] < outcomes["low"] <= outcomes["none"] == 5 * 40 * 48


def test_a_bad_image_is_named_and_the_exit_code_says_so(
    place: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "pics" / "bad, very.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    assert run(["prelabel", "pics", *LABELS, *fast, "--out", "o.json", "--failures", "f.csv"]) == 1
    streams = capsys.readouterr()
    assert "5 of 6 images" in streams.out and "skipped: 1 image" in streams.err
    assert "bad, very.png" in streams.err
    with open(place / "f.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file_name", "reason"] and rows[1][0] == "bad, very.png" and len(rows) == 2
    assert run(["prelabel", "pics", *LABELS, *fast, "--out", "o.json", "--resume", "--quiet"]) == 1
    assert "bad, very.png: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prelabel"], "Missing argument 'INPUT...'"),
        (["prelabel", "pics", "--label", "a"], "Missing option '--out'"),
        (["prelabel", "pics", "--out", "o.json"], "no labels: pass --labels FILE"),
        (["prelabel", "pics", "--out", "o.json", "--label", "a=,"], '--label "a=,": prompts[0]: the prompt is empty'),
        (["prelabel", "pics", "--out", "o.json", "--labels", "no.yaml"], "no.yaml: label file not found"),
        (
            ["prelabel", "pics", "--out", "o.json", "--labels", "l.yaml", "--label", "b"],
            "--labels and --label cannot be combined",
        ),
        (["prelabel", "pics", "--out", "o.json", "--labels", "bad.yaml"], "bad.yaml: labels[0].prompt: unknown key"),
        (["prelabel", "nowhere", "--out", "o.json", "--label", "a"], "nowhere: no such file or folder"),
        (["prelabel", "void", "--out", "o.json", "--label", "a"], "void: no images found"),
        (["prelabel", "pics", "--out", "pics", "--label", "a"], "--out pics: is a folder"),
        (["prelabel", "pics", "--out", "l.yaml/o.json", "--label", "a"], "l.yaml is not a folder"),
        (["prelabel", "pics", "--out", "l.yaml", "--label", "a"], "l.yaml: already exists; add --resume"),
        (
            ["prelabel", "pics", "--out", "o.json", "--label", "a", "--failures", "x/f.csv"],
            "/x does not exist; create it",
        ),
        (["prelabel", "pics", "--out", "o.json", "--label", "a", "--failures", "o.json"], "is the same file as --out"),
        (["prelabel", "pics", "--out", "o.json", "--label", "a", "--resume", "--overwrite"], "cannot be combined"),
        (["prelabel", "pics", "--out", "o.json", "--label", "a", "--model", "nope"], "no model and no file called"),
        (["prelabel", "pics", "--out", "o.json", "--label", "a", "--templates", "nope"], "no template set 'nope'"),
        (
            ["prelabel", "pics", "--out", "o.json", "--label", "a", "--tolerance", "high"],
            "tolerance: 'high' is not known",
        ),
        (["prelabel", "pics", "--out", "o.json", "--label", "a", "--background-threshold", "2"], "2.0 is out of range"),
        (
            ["prelabel", "pics", "--out", "o.json", "--label", "a", "--no-background", "--background-threshold", ".2"],
            "--no-background and --background-threshold cannot be combined",
        ),
        (["prelabel", "pics", "--out", "o.json", "--label", "a", "--root", "void"], "is outside --root"),
        (["segment", "void/none.png", "--label", "a"], "void/none.png: no such file"),
        (["segment", "pics/0.png", "--label", "a", "--out", "o.txt"], "use the extension .png"),
        (["validate-coco", "none.json"], "none.json cannot be read"),
        (["models", "fetch", "nope"], "there is no model 'nope' to fetch"),
        (["models", "import", "none.pth"], "none.pth"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "void").mkdir()
    (place / "l.yaml").write_text("[a]")
    (place / "bad.yaml").write_text("labels: [{name: a, prompt: b}]")
    before = sorted(path.name for path in place.iterdir())
    assert run(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ") and streams.err.count("\n") == 1
    assert message in streams.err
    assert sorted(path.name for path in place.iterdir()) == before


def test_unknown_words_are_an_error_before_anything_is_written(
    place: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["prelabel", "pics", "--label", "Hippo", *fast, "--out", "o.json", "--quiet"]) == 2
    assert "does not know the word 'Hippo'" in capsys.readouterr().err.replace("hippo", "Hippo")
    assert sorted(path.name for path in place.iterdir()) == ["pics"]


def test_an_internal_error_is_one_line_unless_debugging(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("tcl_core.export.coco.validate.validate.check_coco", broken)
    assert run(["validate-coco", "x.json"]) == 70
    assert capsys.readouterr().err == (
        "internal error: ZeroDivisionError: two lines (set TCL_ANNOTATE_DEBUG=1 for the traceback)\n"
    )
    monkeypatch.setenv("TCL_ANNOTATE_DEBUG", "1")
    assert run(["validate-coco", "x.json"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_segment_prints_a_table_and_writes_what_is_asked_for(
    place: Path, fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["segment", "pics/1.png", *LABELS, *fast, "--no-background", "--out", "o.png", "--json", "o.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pics/1.png: 48 x 40 pixels, model tiny"
    assert lines[1].split() == ["label", "regions", "share", "score"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:5]}
    assert set(rows) == {"Cat", "Sofa", "Tree"}
    assert sum(float(row[1].rstrip("%")) for row in rows.values()) == pytest.approx(100, abs=0.2)
    data = json.loads((place / "o.json").read_text())
    for label_id, name in enumerate(("Cat", "Sofa", "Tree"), start=1):
        own = [annotation for annotation in data["annotations"] if annotation["category_id"] == label_id]
        assert rows[name][0] == str(len(own))
    with Image.open(place / "o.png") as overlay:
        assert overlay.width == 160
        pixels = np.asarray(overlay)[:40, :48].astype(int)
    assert (pixels != np.asarray(Image.open(place / "pics" / "1.png"))).any(axis=2).mean() > 0.9


def test_validate_coco_prints_issues_with_locations(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = {"id": 1, "file_name": "a.png", "width": 0, "height": 4}
    (place / "bad.json").write_text(json.dumps({"images": [image], "annotations": [], "categories": []}))
    assert run(["validate-coco", "bad.json"]) == 1
    streams = capsys.readouterr()
    assert streams.out.startswith("error: images[0] (id 1): ") and "[image-size]" in streams.out
    assert streams.err == "bad.json: 1 error\n"


def test_models_list_names_the_embedded_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list"]) == 0
    assert capsys.readouterr().out.startswith("playground")


@pytest.mark.slow
def test_benchmarks_print_figures(
    place: Path, tiny_model_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCL_ANNOTATE_BACKEND", "torch")
    assert run(["benchmark", "polygons", "--maps", "2", "--quiet", "--image", "p.png", "--part", "quality"]) in (0, 1)
    assert "IoU" in capsys.readouterr().out and (place / "p.png").is_file()
    small = ["--images", "2", "--size", "48", "40", "--repeats", "1", "--device", "cpu"]
    assert run(["benchmark", "segment", "--model", str(tiny_model_path), *small, "--json", "speed.json"]) == 0
    shown = capsys.readouterr().out
    assert "2 images of 48 x 40" in shown and "times as fast" in shown
    record = json.loads((place / "speed.json").read_text(encoding="utf-8"))
    assert all(f"{row['what']} " in shown for row in (*record["rows"], *record["stages"])) and len(record["rows"]) == 6
    assert record["machine"]["processor"] and record["versions"]["torch"] and record["commit"]
    same = ["--backend", "torch", "--backend", "auto"]
    assert run(["benchmark", "segment", "--model", str(tiny_model_path), *small, *same]) == 2
    assert "two of them are the same" in capsys.readouterr().err
    assert run(["benchmark", "segment", "--model", str(tiny_model_path), *small, "--json", "nowhere/speed.json"]) == 2
    assert "--json: the folder" in (err := capsys.readouterr().err) and "nowhere does not exist" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_valid_file_and_says_how_to_go_on(place: Path, fast: list[str], number: int) -> None:
    for seed in range(5, 120):
        save_image(place / "pics" / f"{seed}.png", seed)
    command = [sys.executable, "-m", "tcl_core.cli", "prelabel", "pics", *LABELS, *fast, "--out", "o.json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    journal = journal_path(place / "o.json")
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "to continue, run: tcl-annotate prelabel pics" in said and said.rstrip().endswith("--resume")
    assert "Traceback" not in said
    assert run(["validate-coco", "o.json", "--images", "pics"]) == 0
    partial = json.loads((place / "o.json").read_text())
    assert 20 <= len(partial["images"]) < 120
    assert run([*command[3:], "--resume", "--quiet"]) == 0
    assert len(json.loads((place / "o.json").read_text())["images"]) == 120


@pytest.mark.parametrize(("format_name", "files"), [("yolo-seg", "labels/*.txt"), ("semantic-png", "masks/*.png")])
def test_formats_that_are_folders(
    place: Path, fast: list[str], format_name: str, files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # They are looked up by entry points, which an older installation of this package lacks.
    importlib.import_module("tcl_core.export.yolo_seg")
    importlib.import_module("tcl_core.export.semantic_png")
    words = ["prelabel", "pics", *LABELS, *fast, "--format", format_name, "--quiet"]
    assert run([*words, "--out", "made"]) == 0
    assert len(list((place / "made").glob(files))) == 5
    assert run([*words, "--out", "made"]) == 2
    assert "made: already exists; add --resume" in capsys.readouterr().err
    assert run([*words, "--out", "made", "--overwrite"]) == 0
    for arguments, message in (
        (["--out", "pics", "--overwrite"], f"pics contains files that {format_name} did not write"),
        (["--out", "made", "--resume"], f"a finished {format_name} output cannot be resumed"),
        (["--out", "other", "--merge"], f"--merge: only applies to COCO, not to {format_name}"),
        (["--out", "other", "--min-area", "few"], "'few' is not valid; give auto, or a number of pixels"),
    ):
        assert run([*words, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    save_image(place / "pics" / "0.jpg", 0)
    assert run([*words, "--out", "other"]) == 2
    assert "0.jpg and 0.png would both be" in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["made", "pics"]


def test_segment_merges_specks_unless_all_are_asked_for(place: Path, fast: list[str]) -> None:
    areas = {}
    for min_area in ("60", "0"):
        words = ["segment", "pics/0.png", *LABELS, *fast, "--min-area", min_area, "--json", f"{min_area}.json"]
        assert run(words) == 0
        areas[min_area] = [one["area"] for one in json.loads((place / f"{min_area}.json").read_text())["annotations"]]
    assert min(areas["0"]) < 60 <= min(areas["60"])
