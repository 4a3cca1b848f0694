"""The engine's step against trainings that the official code made.

The records are ``tests/data/training``, or the one in the folder that the environment variable ``TRAIN_PARITY_DIR``
names. All sizes and settings are read from the record.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tcl_core.methods.tcl import TCL
from tests.forked import run_ranks
from tests.training.records import FOLDERS, Record, recorded_model
from training.distributed import check_equal
from training.optimizer import split_by_decay
from training.step import Stepper

CPU = torch.device("cpu")


def divisors(folder: Path) -> list[int]:
    """The two smallest numbers of equal parts that a record's batch can be cut into."""
    size = Record.read(folder).batch_size
    return [count for count in range(2, size + 1) if size % count == 0][:2]


PROCESSES = [(folder, count) for folder in FOLDERS for count in divisors(folder)]


def learned(tcl: TCL) -> dict[str, Tensor]:
    """Everything but the frozen CLIP."""
    return {name: p.detach() for name, p in tcl.named_parameters() if not name.startswith("clip.")}


def take_steps(record: Record, rank: int = 0, processes: int = 1, accumulate: int = 1) -> dict[str, Any]:
    """All steps of a record, and what they left."""
    tcl = recorded_model()
    stepper = Stepper(tcl, record.phase(), CPU, accumulate)
    log, grads = [], {}
    for step in range(record.numbers["steps"]):
        stage = record.numbers["log"][step]["stage"]
        assert record.phase().stage_at(step) == stage
        done = stepper.step(step, record.batch(step, rank, processes))
        # Clipped: the record's are not.
        scale = max(1.0, done.grad_norm / (record.numbers["clip_grad_norm"] or float("inf")))
        grads[step] = {name: scale * p.grad for name, p in stepper.named.items() if p.grad is not None}
        log.append({"losses": done.losses, "lr": done.lr, "grad_norm": done.grad_norm})
    check_equal(stepper.parameters, CPU)
    return {"log": log, "grads": grads, "final": learned(tcl)}


@cache
def single(folder: Path, accumulate: int = 1) -> dict[str, Any]:
    return take_steps(Record.read(folder), accumulate=accumulate)


def worker(rank: int, processes: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=processes)
    try:
        done = take_steps(Record.read(Path(folder)), rank, processes)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        torch.save(done, f"{out}/done.pt")


def check(done: dict[str, Any], record: Record) -> None:
    """Losses 1e-5, weights 1e-4, gradients 1e-3 of their norm."""
    for step, (mine, expected) in enumerate(zip(done["log"], record.numbers["log"], strict=True)):
        for name, value in expected["losses"].items():
            assert mine["losses"][name] == pytest.approx(value, abs=1e-5, rel=1e-5), (step, name)
        assert mine["losses"]["total"] == pytest.approx(expected["total"], abs=1e-5, rel=1e-5), step
        assert mine["lr"] == pytest.approx(expected["lr"], rel=1e-9), step
        assert mine["grad_norm"] == pytest.approx(expected["grad_norm_before_clip"], rel=1e-4), step
        assert len(done["grads"][step]) == expected["grads_present"], step
    for name, mine in done["final"].items():
        expected = record.tensors[f"final/{name}"]
        assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-4), name
    recorded = [key for key in record.tensors if key.startswith("grad_step")]
    assert recorded
    for key in recorded:
        step, _, name = key.removeprefix("grad_step").partition("/")
        expected, mine = record.tensors[key], done["grads"][int(step)][name]
        # A gradient that is a sum of cancelling parts is only as exact as the largest of them.
        floor = 1e-5 * record.numbers["log"][int(step)]["grad_norm_before_clip"]
        assert float((mine - expected).norm()) <= 1e-3 * float(expected.norm()) + floor, key


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_steps(folder: Path) -> None:
    record = Record.read(folder)
    done = single(folder)
    assert set(done["final"]) == {key.removeprefix("final/") for key in record.tensors if key.startswith("final/")}
    start = learned(recorded_model())
    trained = set().union(*done["grads"].values())
    assert trained == {name for name, value in done["final"].items() if not torch.equal(value, start[name])}
    check(done, record)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_parameters_that_decay(folder: Path) -> None:
    groups = Record.read(folder).numbers["param_groups"]
    named = learned(recorded_model())
    assert list(map(set, split_by_decay(named))) == [set(groups["decay"]), set(groups["no_decay"])]


@pytest.mark.parametrize(("folder", "parts"), PROCESSES, ids=lambda value: str(getattr(value, "name", value)))
def test_steps_in_parts(folder: Path, parts: int) -> None:
    """Gradient caching takes the same steps."""
    check(single(folder, parts), Record.read(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "processes"), PROCESSES, ids=lambda value: str(getattr(value, "name", value)))
def test_processes_share_a_batch(folder: Path, processes: int, tmp_path: Path) -> None:
    run_ranks(worker, processes, processes, str(folder), str(tmp_path))
    check(torch.load(tmp_path / "done.pt", weights_only=True), Record.read(folder))
