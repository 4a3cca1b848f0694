"""Whole runs: to their end, interrupted, resumed, and what ends them early."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tcl_core.errors import SettingsError
from tcl_core.models import load_model
from tcl_core.towers.clip_blocks import recomputed
from tests.training.runs import in_process, in_processes, log_of, tiny_data, tiny_recipe, totals, train_here
from tests.training.shards import encoded, plain_shards, sample, write_shard
from training import engine, phase
from training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from training.config import Recipe
from training.data import loader
from training.engine import Interruption, Options, StoppedError, run_recipe
from training.step import NotFiniteError

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same(first: Path, second: Path) -> None:
    a, b = load_file(first), load_file(second)
    assert set(a) == set(b)
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.slow
def test_a_run_learns_logs_and_gives_a_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, stages=[{"stage": "ust", "steps": 10}, {"stage": "full", "steps": 30}])
    file = train_here(tmp_path, "run", recipe)
    log = log_of(tmp_path / "run")
    assert [line["step"] for line in log] == list(range(1, 41))
    assert [line["stage"] for line in log] == ["ust"] * 10 + ["full"] * 30
    assert sum(line["total"] for line in log[-5:]) < 0.8 * sum(line["total"] for line in log[:5])
    assert all(0 <= line["waiting"] <= 1 and line["images_per_second"] > 0 for line in log)
    model = load_model(file)
    assert model.name == "small" and model.metadata.extra["recipe"]["phases"][0]["batch"] == 6
    start = load_file(tmp_path / "tiny.safetensors")
    changed = [name for name, value in load_file(file).items() if not torch.equal(value, start[name])]
    assert changed and not any(name.startswith("clip.") for name in changed)


@pytest.mark.slow
def test_again_gives_the_same(tmp_path: Path) -> None:
    assert_same(train_here(tmp_path, "a"), train_here(tmp_path, "b", workers=1))
    before = log_of(tmp_path / "a")
    train_here(tmp_path, "a")
    assert log_of(tmp_path / "a") == before, "a finished run was taken up again"


@pytest.mark.slow
@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random(tmp_path: Path, times: int) -> None:
    """By SIGKILL at any moment; the log says how far the process had come."""
    recipe = tiny_recipe(tmp_path, stages=[{"stage": "ust", "steps": 20}, {"stage": "full", "steps": 30}])
    expected = train_here(tmp_path, "whole", recipe)
    rng, kills = random.Random(0), 0
    log = tmp_path / "cut" / "main.jsonl"
    for _ in range(3 * times):
        worker = in_process(train_here, tmp_path, "cut", recipe)
        if kills == times:
            worker.join(120)
            break
        # Mostly further on than before, sometimes before anything was saved.
        goal = len(log_lines(log)) + rng.randrange(0, 5)
        while len(log_lines(log)) < goal and worker.is_alive():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if not worker.is_alive():
            (tmp_path / "cut" / "main.ckpt").unlink()
            worker.join()
            continue
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        kills += 1
    assert kills == times and worker.exitcode == 0
    assert_same(tmp_path / "cut" / "small.safetensors", expected)
    assert totals(tmp_path / "cut") == totals(tmp_path / "whole")


def log_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train_here(tmp_path, "whole")
    interruption = Interruption()
    step = engine.Stepper.step

    def signalled(self: Any, number_of_step: int, *arguments: Any) -> Any:
        if number_of_step == 7:
            os.kill(os.getpid(), number)
        return step(self, number_of_step, *arguments)

    monkeypatch.setattr(engine.Stepper, "step", signalled)
    options = Options(tmp_path / "cut", torch.device("cpu"), quiet=True)
    with (
        interruption.listening(),
        pytest.raises(StoppedError, match=r"after step 9 of 12 \(main\) and saved; run the same command"),
    ):
        run_recipe(tiny_recipe(tmp_path), tiny_data(tmp_path), options, interruption)
    monkeypatch.undo()
    state = load_checkpoint(tmp_path / "cut" / "main.ckpt")
    assert state is not None and state["step"] == 9
    assert_same(train_here(tmp_path, "cut"), expected)
    assert totals(tmp_path / "cut") == totals(tmp_path / "whole")


@pytest.mark.slow
def test_means_of_the_log_survive_an_interruption(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, log_every=5)
    train_here(tmp_path, "whole", recipe)
    stop = Interruption()
    stop.asked = True
    options = Options(tmp_path / "cut", torch.device("cpu"), quiet=True)
    for _ in range(3):
        with pytest.raises(StoppedError):
            run_recipe(recipe, tiny_data(tmp_path), options, stop)
    train_here(tmp_path, "cut", recipe)
    assert totals(tmp_path / "cut") == totals(tmp_path / "whole") and len(totals(tmp_path / "cut")) == 3


def test_losses_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, schedule={"lr": 1e30}, save_every=100)
    with pytest.raises(NotFiniteError, match=r"step \d+ (is|are) not finite.*lower learning rate"):
        train_here(tmp_path, "run", recipe)
    state = load_checkpoint(tmp_path / "run" / "main.ckpt")
    assert state is not None and state["step"] >= 1, "the steps before it are lost"
    assert len(log_of(tmp_path / "run")) == state["step"]
    better = tiny_recipe(tmp_path, schedule={"lr": 1e-3}, save_every=100)
    with pytest.raises(CheckpointError, match=r"phase.schedule.lr 1e\+30, now 0.001.*--accept-changes"):
        train_here(tmp_path, "run", better)


@pytest.mark.slow
def test_the_checkpoint_before_nan_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights right before it may be those of a training that was lost long ago."""
    expected = train_here(tmp_path, "whole")
    step = engine.Stepper.step

    def diverging(self: Any, number: int, *arguments: Any) -> Any:
        if number == 4:
            raise NotFiniteError("The losses of step 4 are not finite")
        return step(self, number, *arguments)

    monkeypatch.setattr(engine.Stepper, "step", diverging)
    older, newer = tmp_path / "run" / "main.before.ckpt", tmp_path / "run" / "main.ckpt"
    with pytest.raises(NotFiniteError, match=f"beyond saving, rename {re.escape(str(older))}, which is of step 3"):
        train_here(tmp_path, "run")
    for _ in range(2):
        states = [load_checkpoint(path) for path in (older, newer)]
        assert [state["step"] for state in states if state is not None] == [3, 4]
        # Again from the same step: the older one must stay.
        with pytest.raises(NotFiniteError, match="not finite$"):
            train_here(tmp_path, "run")
    monkeypatch.undo()
    older.replace(newer)
    assert_same(train_here(tmp_path, "run"), expected)


def test_a_phase_that_cannot_run_is_found_before_the_first(tmp_path: Path) -> None:
    one = tiny_recipe(tmp_path).model_dump(mode="json")
    first = one["phases"][0]
    for change in (
        {"stages": [{"stage": "all", "steps": 3}]},
        {"augmentation": {**first["augmentation"], "auto_augment": "shuffle-m9"}},
        {"batch": 100},
    ):
        recipe = Recipe.model_validate({**one, "phases": [first, {**first, "name": "other", **change}]})
        with pytest.raises(SettingsError):
            train_here(tmp_path, "run", recipe)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_data_that_fails_in_the_middle_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train_here(tmp_path, "whole")
    monkeypatch.setattr(engine.PairDataset, "__getitems__", _failing(engine.PairDataset.__getitems__, 7))
    for workers in (0, 1):
        with pytest.raises(SettingsError, match=r"^the disk is gone$") as caught:
            train_here(tmp_path, "cut", tiny_recipe(tmp_path, save_every=100), workers=workers)
        assert multiprocessing.active_children() == [], f"left while the traceback is kept: {caught}"
        state = load_checkpoint(tmp_path / "cut" / "main.ckpt")
        assert state is not None and state["step"] == 7
    monkeypatch.undo()
    assert_same(train_here(tmp_path, "cut", tiny_recipe(tmp_path, save_every=100)), expected)


def _failing(read: Any, step: int) -> Any:
    def getitems(self: Any, keys: list[tuple[int, int]]) -> Any:
        return loader._Failure("the disk is gone") if keys[0][0] == step else read(self, keys)

    return getitems


def test_settings_that_fit_no_checkpoint(tmp_path: Path) -> None:
    """--accept-changes cannot make moments of parameters that were not trained."""
    train_here(tmp_path, "run", tiny_recipe(tmp_path, stages=[{"stage": "ust", "steps": 4}]))
    with pytest.raises(CheckpointError, match="main.ckpt: belongs to a model with other trained parameters"):
        train_here(tmp_path, "run", tiny_recipe(tmp_path), accept_changes=True)


@pytest.mark.slow
def test_float16_is_resumed_with_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, precision="float16")
    made = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda device, enabled: made(device, 2.0**22, growth_interval=4, enabled=enabled)
    )
    expected = train_here(tmp_path, "whole", recipe)
    stop = Interruption()
    stop.asked = True
    options = Options(tmp_path / "cut", torch.device("cpu"), quiet=True)
    for _ in range(12):
        with contextlib.suppress(StoppedError):
            run_recipe(recipe, tiny_data(tmp_path), options, stop)
    assert_same(tmp_path / "cut" / "small.safetensors", expected)
    log = log_of(tmp_path / "cut")
    assert log == [{**line, **times_of(mine)} for line, mine in zip(log_of(tmp_path / "whole"), log, strict=True)]
    assert log[0]["skipped"] == 1 and log[-1]["skipped"] == 0
    # Not a number in JSON.
    assert log[0]["grad_norm"] is None


def times_of(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("seconds", "waiting", "images_per_second")}


def test_ctrl_c_that_torchrun_hands_on_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(phase.time, "monotonic", lambda: now[0])
    with Interruption().listening() as interruption:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked
        now[0] += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_at_once(tmp_path: Path, number: int) -> None:
    """As a scheduler or a terminal sends it, also to the processes that decode images."""
    recipe = tiny_recipe(tmp_path, stages=[{"stage": "ust", "steps": 2000}], save_every=10_000)
    tiny_data(tmp_path)
    (tmp_path / "mine.yaml").write_text(recipe.model_dump_json())
    words = [str(tmp_path / "mine.yaml"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    words += ["--index", str(tmp_path / "index"), "--device", "cpu", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "training", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not log_lines(tmp_path / "run" / "main.jsonl") and run.poll() is None:
        time.sleep(0.05)
    os.killpg(run.pid, number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in errors, errors
    said = re.search(r"Stopped after step (\d+) of 2000", errors)
    state = load_checkpoint(tmp_path / "run" / "main.ckpt")
    assert said and state is not None and state["step"] == int(said[1]) > 0


def _fill_disk(folder: Path, recipe: Recipe, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        train_here(folder, "run", recipe)
    except SettingsError as error:
        (folder / "message.txt").write_text(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [20_000, 300])
def test_a_full_disk_loses_nothing(tmp_path: Path, limit: int) -> None:
    """Of checkpoints first, then of the log as well."""
    expected = train_here(tmp_path, "whole")
    stop = Interruption()
    stop.asked = True
    options = Options(tmp_path / "run", torch.device("cpu"), quiet=True)
    with pytest.raises(StoppedError):
        run_recipe(tiny_recipe(tmp_path), tiny_data(tmp_path), options, stop)
    before = (tmp_path / "run" / "main.ckpt").read_bytes()
    in_process(_fill_disk, tmp_path, tiny_recipe(tmp_path), limit).join(120)
    message = (tmp_path / "message.txt").read_text()
    assert "cannot be written" in message and "free some space" in message and message.count(". ") == 0
    assert (tmp_path / "run" / "main.ckpt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.part"))
    assert_same(train_here(tmp_path, "run"), expected)


def damaged_shards(folder: Path) -> dict[str, int]:
    """A folder with every kind of fault; returns how many samples are left out for which reason."""
    data = folder / "data"
    data.mkdir()
    plain_shards(data)
    faults = [
        sample(30)[:2],
        sample(31)[1:],
        sample(32, caption=b""),
        sample(33, caption=b"\xff\xfe"),
        sample(34, image=b"<html></html>"),
        sample(35, image=encoded(35, (1, 1))),
        sample(36, image=encoded(36, (900, 20))),
        sample(37, name="a.dotted.name"),
        sample(38),
        sample(38),
        sample(39, image=encoded(39, mode="CMYK")),
        sample(40, image=encoded(40, mode="L")),
        # Two that only decoding finds out.
        sample(41, image=encoded(41)[:-100]),
        sample(42, image=encoded(42)[:-100]),
    ]
    write_shard(data / "00003.tar", [member for members in faults for member in members])
    cut = write_shard(data / "00004.tar", [member for n in range(50, 54) for member in sample(n)])
    with tarfile.open(cut) as archive:
        # The third sample keeps its image alone.
        end = archive.getmembers()[7].offset
    cut.write_bytes(cut.read_bytes()[:end])
    (data / "00005.tar").write_bytes(b"")
    (data / "00006.tar").write_bytes(b"<html>" * 200)
    write_shard(data / "00007.tar", [])
    return {
        "without a caption": 2,
        "without an image": 1,
        "with an empty caption": 1,
        "with a caption that is not UTF-8": 1,
        "with a file that is not an image": 1,
        "with too short a side": 1,
        "with an extreme aspect ratio": 1,
        "with a duplicate name": 1,
    }


@pytest.mark.slow
def test_damaged_shards_do_not_stop_a_training(tmp_path: Path) -> None:
    """In one process and in two, which see the same batches."""
    expected = damaged_shards(tmp_path)
    source = tiny_data(tmp_path)
    assert source.report.dropped == expected
    assert list(source.groups) == [7, 5, 9, 6, 2, 0, 0, 0]
    assert sorted(Path(name).name for name in source.report.damaged) == [f"0000{n}.tar" for n in (4, 5, 6, 7)]
    recipe = tiny_recipe(tmp_path)
    train_here(tmp_path, "one", recipe)
    assert in_processes(2, train_here, tmp_path, "two", recipe) == [0, 0]
    counts = [[line["replaced"] for line in log_of(tmp_path / name)] for name in ("one", "two")]
    assert len(totals(tmp_path / "one")) == 12 and counts[0][-1] > 0
    assert counts[0] == counts[1], "those of all processes are counted"
    assert totals(tmp_path / "two") == pytest.approx(totals(tmp_path / "one"), abs=1e-4)


def test_damaged_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"format": 1, "step": 3})
    assert load_checkpoint(path) == {"format": 1, "step": 3} and load_checkpoint(tmp_path / "b.ckpt") is None
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="a.ckpt: is damaged or incomplete; delete it"):
        load_checkpoint(path)
    torch.save({"step": 3}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        load_checkpoint(path)


def test_other_data_is_not_taken_for_the_same(tmp_path: Path) -> None:
    train_here(tmp_path, "run")
    (tmp_path / "data" / "00002.tar").unlink()
    with pytest.raises(CheckpointError, match="different settings or data"):
        train_here(tmp_path, "run")


def test_batches_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="batch of 6 pairs in phase main does not split evenly over 1 x 4"):
        train_here(tmp_path, "run", accumulate=4)


@pytest.mark.slow
def test_parts_take_the_same_steps(tmp_path: Path) -> None:
    train_here(tmp_path, "whole")
    train_here(tmp_path, "parts", accumulate=3)
    assert totals(tmp_path / "parts") == pytest.approx(totals(tmp_path / "whole"), abs=1e-5)


@pytest.mark.slow
def test_kept_activations_change_nothing_but_what_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = []

    def counted(run: Any, block: Any, tokens: Any) -> Any:
        again.append(block)
        return recomputed(run, block, tokens)

    monkeypatch.setattr("tcl_core.towers.open_clip_vit.recomputed", counted)
    whole = train_here(tmp_path, "whole")
    assert again
    again.clear()
    kept = train_here(tmp_path, "kept", keep_activations=True)
    assert not again
    assert kept.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_averages_of_phases(tmp_path: Path) -> None:
    one = tiny_recipe(tmp_path).model_dump(mode="json")
    first = one["phases"][0]
    second = {**first, "name": "other", "start": None, "schedule": {"lr": 0.02}}
    both = {"kind": "average", "name": "mean", "shares": {"main": 0.25, "other": 0.75}}
    recipe = Recipe.model_validate({**one, "phases": [first, second, both]})
    file = train_here(tmp_path, "run", recipe)
    ends = [load_checkpoint(tmp_path / "run" / f"{name}.ckpt") for name in ("main", "other")]
    mean = load_file(file)
    for name, value in ends[0]["learned"].items():
        torch.testing.assert_close(mean[name], 0.25 * value + 0.75 * ends[1]["learned"][name])


# -- processes --------------------------------------------------------------------------------------------------------


def _stop_at_seven(folder: Path, out: str) -> None:
    recipe = tiny_recipe(folder)
    step = engine.Stepper.step
    interruption = Interruption()

    def asked(self: Any, number: int, batch: Any, flag: float) -> Any:
        # Only one process is told; all stop after the same step.
        interruption.asked = number == 6 and int(os.environ["RANK"]) == 1
        return step(self, number, batch, float(interruption.asked))

    engine.Stepper.step = asked  # type: ignore[method-assign]
    options = Options(folder / out, torch.device("cpu"), quiet=True)
    try:
        run_recipe(recipe, tiny_data(folder), options, interruption)
    except StoppedError:
        return
    raise AssertionError("it was not stopped")


@pytest.mark.slow
def test_processes_resume_with_another_number(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    train_here(tmp_path, "one", recipe)
    assert in_processes(2, train_here, tmp_path, "two", recipe) == [0, 0]
    assert totals(tmp_path / "two") == pytest.approx(totals(tmp_path / "one"), abs=1e-4)
    # The same number: the same bits.
    assert in_processes(2, _stop_at_seven, tmp_path, "again") == [0, 0]
    state = load_checkpoint(tmp_path / "again" / "main.ckpt")
    assert state is not None and state["step"] == 7
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "main.ckpt").write_bytes((tmp_path / "again" / "main.ckpt").read_bytes())
    assert in_processes(2, train_here, tmp_path, "again", recipe) == [0, 0]
    assert_same(tmp_path / "again" / "small.safetensors", tmp_path / "two" / "small.safetensors")
    # Another number: the same losses.
    assert in_processes(3, train_here, tmp_path, "other", recipe) == [0, 0, 0]
    assert totals(tmp_path / "other") == pytest.approx(totals(tmp_path / "two")[7:], abs=1e-4)


def _drift(folder: Path) -> None:
    from training.distributed import check_equal

    parameter = torch.ones(3)
    check_equal([parameter], torch.device("cpu"))
    if os.environ["RANK"] == "1":
        parameter[1] = torch.nextafter(parameter[1], torch.tensor(2.0))
    try:
        check_equal([parameter], torch.device("cpu"))
    except SettingsError as error:
        (folder / f"{os.environ['RANK']}.txt").write_text(str(error))


def test_processes_that_drift_apart_are_noticed(tmp_path: Path) -> None:
    assert in_processes(2, _drift, tmp_path) == [0, 0]
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert all("process 1 differ from those of process 0" in message for message in messages)


def _failing_in_one(folder: Path) -> None:
    recipe = tiny_recipe(folder, save_every=100)
    if os.environ["RANK"] == "1":
        engine.PairDataset.__getitems__ = _failing(engine.PairDataset.__getitems__, 7)  # type: ignore[method-assign]
    try:
        train_here(folder, "cut", recipe)
    except SettingsError as error:
        (folder / f"{os.environ['RANK']}.txt").write_text(str(error))


@pytest.mark.slow
def test_data_that_fails_in_one_process_ends_all(tmp_path: Path) -> None:
    # Once, before both would make them.
    tiny_recipe(tmp_path)
    tiny_data(tmp_path)
    assert in_processes(2, _failing_in_one, tmp_path) == [0, 0]
    messages = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert messages[1] == "the disk is gone" and "Another process" in messages[0]
    state = load_checkpoint(tmp_path / "cut" / "main.ckpt")
    assert state is not None and state["step"] == 7
