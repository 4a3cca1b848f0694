"""Recipes, and the command that runs them."""

from __future__ import annotations

import json
import os
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from tcl_core.errors import SettingsError, TclError
from tests.forked import run_python
from tests.ports import free_port
from tests.training.runs import log_of, tiny_data, tiny_recipe, train_here
from tests.training.shards import encoded
from training.cli import command
from training.config import OptimizerSettings, Recipe, ScheduleSettings, TrainPhase, list_recipes, read_recipe
from training.log import JsonLines, make_logger
from training.optimizer import make_optimizer, set_learning_rate
from training.preparation import changed, open_data
from training.schedule import learning_rate


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_that_come_along_are_valid(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.description and isinstance(recipe.phases[0], TrainPhase)
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_the_papers_recipe_number_for_number() -> None:
    (phase,) = read_recipe("tcl-cc3m-cc12m").phases
    assert isinstance(phase, TrainPhase)
    assert (phase.batch, phase.steps, phase.clip_norm) == (1024, 50_000, 5.0)
    assert [phase.stage_at(step) for step in (0, 29_999, 30_000, 49_999)] == ["ust", "ust", "full", "full"]
    rates = [learning_rate(phase.schedule, step, phase.steps) for step in (0, 7500, 15_000, 32_500, 50_000)]
    assert rates == pytest.approx([7.5e-9, 3.750375e-5, 7.5e-5, 4.25e-5, 1e-5])
    optimizer = phase.optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-6, 0.05)
    shown = phase.augmentation
    assert (shown.size, shown.scale, shown.flip, shown.erase) == (224, (0.08, 1.0), 0.5, 0.25)
    assert shown.auto_augment == "rand-m9-mstd0.5-inc1" and shown.mean == (0.485, 0.456, 0.406)


def test_learning_rates_are_pytorchs() -> None:
    schedule = ScheduleSettings(lr=0.3, min_lr=0.02, warmup=7, start_factor=1e-3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=schedule.lr)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, schedule.start_factor, total_iters=7)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 23, eta_min=schedule.min_lr)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [7])
    for step in range(30):
        assert learning_rate(schedule, step, 30) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        both.step()


def test_steps_of_the_optimizer_are_pytorchs() -> None:
    """Clipped, with scalars that decay and a layer that begins later."""

    def layers() -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        module.register_parameter("gate", nn.Parameter(torch.tensor(0.5)))
        return module

    mine, reference = layers(), layers()
    settings = OptimizerSettings(betas=(0.8, 0.9), weight_decay=0.3)
    optimizer = make_optimizer(mine.named_parameters(), settings)
    named = dict(reference.named_parameters())
    groups = [
        {"params": [named["0.weight"], named["1.weight"], named["gate"]], "weight_decay": 0.3},
        {"params": [named["0.bias"], named["1.bias"]], "weight_decay": 0.0},
    ]
    expected = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-6, foreach=False)
    for step in range(6):
        for module, opt in ((mine, optimizer), (reference, expected)):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
            opt.zero_grad()
            module[1].requires_grad_(step >= 3)
            (50 * module(x) * module.gate).square().mean().backward()
            assert nn.utils.clip_grad_norm_(module.parameters(), 0.05) > 0.05
            if opt is optimizer:
                set_learning_rate(opt, 0.1)
            opt.step()
    for a, b in zip(mine.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def written(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "mine",
        "model": {"clip": "playground"},
        "phases": [
            {
                "kind": "train",
                "name": "a",
                "stages": [{"stage": "ust", "steps": 3}],
                "batch": 2,
                "schedule": {"lr": 0.1},
                **changes,
            }
        ],
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "mine.yaml: phases.0.*batch must be at least 2"),
        ({"bach": 3}, r"mine.yaml: phases.0: unknown keys: bach; the keys are kind, .*; did you mean batch\?"),
        ({"schedule": {"lr": 0.1, "warmpu": 3}}, r"phases.0.schedule: unknown keys: warmpu; .*did you mean warmup\?"),
        ({"kind": "trian"}, "phases.0: kind is 'trian', which is none of 'train', 'average'"),
        ({"schedule": {"lr": -1}}, "lr must be above 0"),
        ({"schedule": {"lr": 0.1, "min_lr": 0.2}}, "min_lr that is at most lr"),
        ({"stages": []}, "stages must be a list of at least 1"),
        ({"precision": "float8"}, "precision must be 'float32', 'bfloat16' or 'float16'"),
        ({"start": "before"}, "must name earlier phases in phase 'a', and 'before' is none"),
        ({"name": "../a"}, "name"),
    ],
)
def test_bad_recipes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_recipe(written(tmp_path, **changes))


def test_recipes_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'tcl-one-gpus'.*tcl-cc3m-cc12m.*Did you mean tcl-one-gpu\?"):
        read_recipe("tcl-one-gpus")
    (tmp_path / "a.yaml").write_text("{[")
    with pytest.raises(SettingsError, match="a.yaml: is not valid YAML"):
        read_recipe(tmp_path / "a.yaml")


def test_settings_are_changed_by_name(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    found = changed(
        recipe, ["phases.0.batch=8", "phases.0.schedule.lr=1.0e-3", "model.config.area_prior=0.2", "seed=4"]
    )
    phase = found.phases[0]
    assert isinstance(phase, TrainPhase) and (phase.batch, phase.schedule.lr, found.seed) == (8, 1e-3, 4)
    assert found.model.config == {"area_prior": 0.2}
    for wrong in ("phases.0.bach=8", "phases.3.batch=8", "batch", "phases.0.batch"):
        with pytest.raises(SettingsError, match="is not KEY=VALUE"):
            changed(recipe, [wrong])
    for wrong, right in (("phases.0.bach", "phases.0.batch"), ("phases.0.schedule.learning", "phases.0.schedule.")):
        with pytest.raises(SettingsError, match=rf"did you mean {right}\w*\?"):
            changed(recipe, [f"{wrong}=8"])
    with pytest.raises(SettingsError, match="--set: phases.0.*batch must be at least 2"):
        changed(recipe, ["phases.0.batch=0"])


def test_numbers_without_a_point(tmp_path: Path) -> None:
    """PyYAML alone reads 1e-4 as text."""
    path = written(tmp_path)
    path.write_text(path.read_text().replace("lr: 0.1", "lr: 1e-4"))
    (phase,) = changed(read_recipe(path), ["phases.0.schedule.min_lr=5E-6"]).phases
    assert isinstance(phase, TrainPhase) and (phase.schedule.lr, phase.schedule.min_lr) == (1e-4, 5e-6)


class Writer:
    """Takes the place of tensorboard's."""

    made: ClassVar[list[Writer]] = []

    def __init__(self, folder: str, purge_step: int | None = None):
        self.folder, self.purge_step, self.scalars = folder, purge_step, []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        pass


def test_tensorboard_gets_scores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    logger = make_logger(tmp_path, "main", 4, ["tensorboard"])
    logger.write(5, {"stage": "ust", "total": 0.5})
    logger.write(6, {"evaluation": {"voc20 train": 40.5}})
    logger.close()
    assert Writer.made[-1].scalars == [("total", 0.5, 5), ("evaluation/voc20 train", 40.5, 6)]
    assert Writer.made[-1].purge_step == 5, "steps after the checkpoint would be drawn twice"


def test_wandb_runs_are_those_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    def init(**settings: Any) -> Any:
        begun.append(settings)
        return types.SimpleNamespace(log=lambda values, step: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for folder in ("a", "a", "b"):
        make_logger(tmp_path / folder, "main", 0, ["wandb"]).close()
    first, again, other = (settings["id"] for settings in begun)
    assert first == again != other and begun[0]["resume"] == "allow"


def test_loggers_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(SettingsError, match=f"needs the package {name}: pip install {name}"):
            make_logger(tmp_path, "main", 0, [name])


def test_lines_that_were_cut_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    JsonLines(path, 2).write(3, {"total": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "total": 0.5},
    ]


# -- the command ------------------------------------------------------------------------------------------------------


def invoke(*words: str | Path) -> Any:
    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


@pytest.mark.slow
def test_a_table_of_your_own(tmp_path: Path) -> None:
    """From a CSV file to a model, by the command."""
    tiny_recipe(tmp_path)
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(number))
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(f"{n}.jpg,a red cat\n" for n in range(6)))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path).model_dump(mode="json")))
    words = (recipe, "--data", tmp_path / "pairs.csv", "--out", tmp_path / "run", "--workers", "0", "--device", "cpu")
    dry = invoke(*words, "--dry-run")
    assert dry.exception is None, dry.exception
    assert "main: 12 steps of 6 pairs (12.0 epochs)" in dry.stdout and " in all, without evaluations" in dry.stdout
    assert "ust: 5 steps" in dry.stdout and not (tmp_path / "run").exists()
    assert "nothing was written" in dry.stdout and "1 process, 1 part, 6 pairs at a time" in dry.stdout
    scored = invoke(*words, "--dry-run", "--set", "phases.0.evaluation={benchmarks: [voc20]}")
    assert "evaluates on voc20; name the folder" in str(scored.exception)
    parts = invoke(*words, "--dry-run", "--accumulate", "4")
    assert "does not split evenly over 1 x 4" in str(parts.exception)
    done = invoke(*words)
    assert done.exception is None and done.return_value == 0, done.exception
    assert f"wrote {tmp_path / 'run' / 'small.safetensors'}" in done.stdout and "6 image-caption pairs" in done.stderr


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """Two processes by the documented line; an error in them is one sentence of the first."""
    tiny_data(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path).model_dump(mode="json")))
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "training"]
    words = [str(recipe), "--data", str(tmp_path / "data"), "--device", "cpu", "--workers", "1"]
    words += ["--index", str(tmp_path / "index"), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONWARNINGS": "ignore"}
    environment["OMP_NUM_THREADS"] = "1"
    done = run_python([*torchrun, *words], env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1 and done.stderr.count("21 image-caption pairs") == 1
    train_here(tmp_path, "one")
    mine, expected = ([line["total"] for line in log_of(tmp_path / name)] for name in ("two", "one"))
    assert mine == pytest.approx(expected, abs=1e-4)

    # What torchrun would start.
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{**environment, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    with ThreadPoolExecutor() as pool:
        run = partial(run_python, ["-m", "training", *words, "--accumulate", "2"])
        first, second = pool.map(lambda rank: run(env=rank), ranks)
    for done in (first, second):
        assert done.returncode == 2
        *_, error = done.stderr.splitlines()
        assert error.startswith("error: ") and "does not split evenly over 2 x 2" in error
        assert done.stderr.count("error") == 1


def test_data_by_its_ending(tmp_path: Path) -> None:
    tiny_data(tmp_path)
    (tmp_path / "pairs.tsv").write_text("image\tcaption\n")
    joined = open_data([tmp_path / "pairs.tsv", tmp_path / "data"], index=tmp_path / "index")
    assert len(joined) == 21 and joined.report.files == 4
    assert len(open_data([tmp_path / "data" / "00001.tar"], index=tmp_path / "index")) == 5
    for place, message in (
        (tmp_path / "index", "has no .tar files"),
        (tmp_path / "a.json", "give it with --images"),
        (tmp_path / "a.parquet", "is not training data"),
    ):
        with pytest.raises(TclError, match=message):
            open_data([place])


def test_recipes_are_listed() -> None:
    shown = invoke("--recipes")
    assert all(name in shown.stdout for name in list_recipes())
