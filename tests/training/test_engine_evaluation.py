"""Scores during a training: shared by its processes, logged, and without influence on what is learned."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tcl_core.errors import SettingsError, TclError
from tcl_core.evaluation.datasets import ClassList, DataSet
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Label, Vocabulary
from tests.training.runs import in_processes, tiny_data, tiny_recipe, totals, train_here
from training import engine
from training.engine import Interruption, Options, StoppedError, run_recipe
from training.evaluation import Evaluated, evaluate
from training.model import build

pytestmark = pytest.mark.usefixtures("one_thread")


class Squares(DataSet):
    """Small images with one class in each half."""

    name, split = "squares", "train"
    images = ("0", "1", "2", "3", "4")

    def __init__(self) -> None:
        self.classes = ClassList.of(
            Vocabulary((Label("cat"), Label("sky"), Label("sofa")), background=False, templates="identity")
        )
        self.about = {}

    def image(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)

    def truth(self, index: int) -> np.ndarray:
        truth = np.zeros((40, 48), np.int16)
        truth[:, 20 + index :] = index % 3
        truth[:5] = -1
        return truth

    def check(self, index: int) -> None:
        pass


def _evaluate(folder: Path) -> None:
    recipe = tiny_recipe(folder)
    trained = build(recipe, recipe.phases[0].augmentation)
    found = evaluate(trained, [Evaluated("squares", Squares(), None)], False, torch.device("cpu"))
    (folder / f"{os.environ.get('RANK', 'alone')}.json").write_text(json.dumps(found))


def test_processes_share_an_evaluation(tmp_path: Path) -> None:
    """The same figure as one process, and as classes counted by hand."""
    recipe = tiny_recipe(tmp_path)
    assert in_processes(2, _evaluate, tmp_path) == [0, 0]
    shared = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    _evaluate(tmp_path)
    assert shared == [json.loads((tmp_path / "alone.json").read_text())] * 2
    segmenter = Segmenter(build(recipe, recipe.phases[0].augmentation).model(torch.device("cpu")), refine=False)
    data = Squares()
    true, predicted = [], []
    for index in range(5):
        label_map = segmenter.segment(segmenter.encode(data.image(index)), data.classes.vocabulary).label_map
        true.append(data.truth(index).ravel())
        predicted.append(data.classes.from_label_map(label_map).ravel())
    t, p = np.concatenate(true), np.concatenate(predicted)
    t, p = t[t >= 0], p[t >= 0]
    shares = [
        ((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k in range(3) if ((t == k) | (p == k)).any()
    ]
    assert shared[0] == {"squares": pytest.approx(100 * np.mean(shares), abs=0.01)}


@pytest.mark.slow
def test_evaluations_are_logged_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train_here(tmp_path, "plain")
    monkeypatch.setattr(engine, "open_evaluations", lambda *arguments: [Evaluated("squares", Squares(), 2)])
    recipe = tiny_recipe(tmp_path, evaluation={"every": 4})
    with_scores = train_here(tmp_path, "scored", recipe)
    lines = [json.loads(line) for line in (tmp_path / "scored" / "main.jsonl").read_text().splitlines()]
    scores = [line for line in lines if "evaluation" in line]
    assert [line["step"] for line in scores] == [4, 8, 12]
    assert all(0 <= line["evaluation"]["squares"] <= 100 for line in scores)
    first, second = load_file(expected), load_file(with_scores)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped right before it, by a signal, and in the middle of it, by a kill."""
    monkeypatch.setattr(engine, "open_evaluations", lambda *arguments: [Evaluated("squares", Squares(), 2)])
    recipe = tiny_recipe(tmp_path, evaluation={"every": 4}, save_every=100)
    train_here(tmp_path, "whole", recipe)

    class Killed(BaseException):
        """Nothing catches it."""

    def killed(*arguments: Any) -> Any:
        raise Killed

    stop = Interruption()
    options = Options(tmp_path / "cut", torch.device("cpu"), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", killed)
        for _ in range(2):
            with pytest.raises(Killed):
                run_recipe(recipe, tiny_data(tmp_path), options, stop)
    stop.asked = True
    for _ in range(20):
        with contextlib.suppress(StoppedError):
            run_recipe(recipe, tiny_data(tmp_path), options, stop)
    logs = [(tmp_path / name / "main.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    scores = [[line for line in map(json.loads, lines) if "evaluation" in line] for lines in logs]
    assert scores[0] == scores[1] and [line["step"] for line in scores[0]] == [4, 8, 12]
    assert totals(tmp_path / "cut") == totals(tmp_path / "whole")


def test_missing_benchmarks_are_found_before_the_training(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, evaluation={"benchmarks": ["voc20"]})
    with pytest.raises(SettingsError, match="evaluates on voc20; name the folder.*--eval-data"):
        train_here(tmp_path, "run", recipe)
    with pytest.raises(TclError, match="voc20"):
        train_here(tmp_path, "run", recipe, evaluation_data=tmp_path)
    assert not (tmp_path / "run").exists()
