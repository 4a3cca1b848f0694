"""Curves of a log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from training.curves import draw, main, read_log

LINES = [
    {"step": 10, "stage": "ust", "total": 3.0, "seconds": 1.0},
    {"step": 20, "stage": "ust", "total": 1.0, "seconds": 2.0},
    {"step": 20, "evaluation": {"seen <a>": 40.0}},
    {"step": 30, "stage": "full", "total": 2.0, "seconds": 3.0},
]


def log(folder: Path) -> Path:
    path = folder / "main.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def test_numbers_over_steps(tmp_path: Path) -> None:
    series, stages = read_log(log(tmp_path))
    assert series == {"total": [(10, 3.0), (20, 1.0), (30, 2.0)], "seen <a>": [(20, 40.0)]} and stages == [30]


def test_the_highest_value_is_at_the_top(tmp_path: Path) -> None:
    drawing = draw(*read_log(log(tmp_path)))
    ElementTree.fromstring(drawing)
    points = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', drawing)[1].split()]
    (x1, top), (x2, bottom), (x3, middle) = points
    assert top < middle < bottom and middle == pytest.approx((top + bottom) / 2)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(log(tmp_path)), "--out", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    for content, message in (("", "contains no steps"), ("{}", "not a training log"), ("[1]", "not a training log")):
        (tmp_path / "b.jsonl").write_text(content)
        assert main([str(tmp_path / "b.jsonl"), "--out", str(tmp_path / "b.svg")]) == 2
        assert message in capsys.readouterr().err
    assert main([str(tmp_path / "gone"), "--out", str(tmp_path / "b.svg")]) == 2
