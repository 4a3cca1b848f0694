"""The script that checks a GPU, on a CPU with a tiny model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from training import gpu_check
from training.gpu_check import SMALL, build, draw_batch, main


def test_it_measures_and_compares(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    assert main(["--out", str(out), "--device", "cpu", "--small", "--skip-compile"]) == 0
    report = json.loads(out.read_text())
    assert report["passed"] and report["eager"]["images_per_second"] > 0
    assert (
        report["against_cpu"]["largest_difference"]["bfloat16"] > report["against_cpu"]["largest_difference"]["float32"]
    )
    # The same steps, whole and in parts.
    assert report["eager"]["last_total"] == pytest.approx(report["eager_in_parts"]["last_total"], rel=1e-4)
    assert report["eager"]["last_total"] == pytest.approx(report["eager_keeping_all"]["last_total"], rel=1e-4)
    assert report["eager"]["last_total"] != report["eager"]["first_total"]


def test_another_arithmetic_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def shifted(*arguments):
        batch = draw_batch(*arguments)
        calls.append(batch)
        if len(calls) == 2:
            batch.images.mul_(1.05)
        return batch

    monkeypatch.setattr(gpu_check, "draw_batch", shifted)
    found = gpu_check.compare_with_cpu(SMALL, torch.device("cpu"))
    assert not found["passed"] and found["largest_difference"]["float32"] > 1e-3


def test_a_part_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments, **settings):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(gpu_check, "timed_steps", fail)
    out = tmp_path / "report.json"
    assert main(["--out", str(out), "--device", "cpu", "--small"]) == 1
    report = json.loads(out.read_text())
    assert report["against_cpu"]["passed"] and not report["passed"]
    assert report["compiled"]["error"] == "RuntimeError: out of memory"


def test_errors_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "r.json"), "--device", "gpu"]) == 2
    assert "device 'gpu' is unknown" in capsys.readouterr().err


def test_the_same_weights_at_every_call() -> None:
    first, again = build(SMALL).state_dict(), build(SMALL).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.slow
def test_compiled_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through all of `torch.compile` but the generation of C++, which takes two minutes and is not ours."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = gpu_check.timed_steps(SMALL, torch.device("cpu"), compiled=False)
    compiled = gpu_check.timed_steps(SMALL, torch.device("cpu"), compiled=True)
    for name in ("first_total", "last_total"):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-4)
