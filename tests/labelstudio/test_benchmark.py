"""What the benchmark says of its figures; the figures themselves belong to no test."""

from __future__ import annotations

from typing import Any

import pytest

from labelstudio_backend import benchmark
from labelstudio_backend.benchmark import Measurement
from tcl_core.cli.main import run

FIGURES = [Measurement("health", 0.2, 0.25, "s"), Measurement("  largest of them", 0.3, None, "")]


def measured(monkeypatch: pytest.MonkeyPatch, figures: list[Measurement]) -> list[Any]:
    calls: list[Any] = []

    def measure(*arguments: Any) -> list[Measurement]:
        calls.append(arguments)
        return figures

    monkeypatch.setattr(benchmark, "measure_server", measure)
    return calls


def test_figures_stand_beside_their_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = measured(monkeypatch, FIGURES)
    assert run(["label-studio", "benchmark", "--label", "cat", "--label", "sofa", "--size", "64", "48"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "health               0.200s  below 0.25s",
        "  largest of them    0.300",
    ]
    _, labels, size, _ = calls[0]
    assert labels == ("cat", "sofa")
    assert size == (48, 64)


def test_a_missed_bar_is_named_and_makes_the_exit_code_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(monkeypatch, [*FIGURES, Measurement("median", 0.1, 0.1, "")])
    assert run(["label-studio", "benchmark"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("missed") for line in lines] == [False, False, True]


def test_one_label_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["label-studio", "benchmark", "--label", "cat"]) != 0
    assert "--label: give at least two" in capsys.readouterr().err
