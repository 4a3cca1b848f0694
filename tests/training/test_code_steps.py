"""The engine's step against a training of CoDe that the official code made.

``CODE_TRAIN_PARITY_DIR`` names another record, of a model that ``CODE_PARITY_DIR`` names; without it both are looked
for beside the repository.
"""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods.code import CoDe
from tcl_core.methods.code.batch import Batch
from tests.core.code_records import BESIDE, FOLDER, CodeRecord, missing_files
from tests.forked import run_ranks
from training.config import OptimizerSettings, ScheduleSettings, Stage, TrainPhase
from training.distributed import check_equal
from training.optimizer import split_by_decay
from training.step import Stepper

NAMED = os.environ.get("CODE_TRAIN_PARITY_DIR")
STEPS = Path(NAMED) if NAMED else BESIDE / "train" / "code_steps"
MODEL = FOLDER if NAMED else BESIDE / "code_small"
CPU = torch.device("cpu")

if missing_files(MODEL) or not (STEPS / "steps.json").is_file():
    pytest.skip(f"no record of a training at {STEPS} with its model at {MODEL}", allow_module_level=True)

NUMBERS: dict[str, Any] = json.loads((STEPS / "steps.json").read_text())
TENSORS = load_file(STEPS / "steps.safetensors")


def phase() -> TrainPhase:
    """The record's training as a phase of a recipe."""
    optimizer, schedule, first = NUMBERS["optimizer"], NUMBERS["schedule"], NUMBERS["ust_steps"]
    total = schedule["total_steps"]
    stages = [Stage(stage="ust", steps=first)] if first else []
    stages += [Stage(stage="full", steps=total - first)] if total > first else []
    return TrainPhase(
        name="record",
        stages=stages,
        batch=len(CodeRecord(MODEL).numbers["captions"]),
        optimizer=OptimizerSettings(
            betas=tuple(optimizer["betas"]), eps=optimizer["eps"], weight_decay=optimizer["weight_decay"]
        ),
        schedule=ScheduleSettings(
            lr=schedule["base_lr"],
            min_lr=schedule["min_lr"],
            warmup=schedule["warmup_steps"],
            start_factor=schedule["start_factor"],
        ),
        clip_norm=NUMBERS["clip_grad_norm"],
        precision="float32",
    )


def learned(code: CoDe) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in code.named_parameters() if not name.startswith("clip.")}


def part_of(batch: Batch, rank: int, processes: int) -> Batch:
    """A process' part of a batch."""
    size = len(batch.images) // processes
    own = slice(rank * size, (rank + 1) * size)
    cut = {
        field.name: value[own]
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **cut)


def take_steps(rank: int = 0, processes: int = 1, accumulate: int = 1) -> dict[str, Any]:
    record = CodeRecord(MODEL)
    code = record.model()
    start = learned(code)
    stepper, batch = Stepper(code, phase(), CPU, accumulate), part_of(record.batch(), rank, processes)
    log = []
    for step in range(len(NUMBERS["log"])):
        done = stepper.step(step, batch)
        with_gradient = sum(p.grad is not None for p in stepper.parameters)
        log.append({"losses": done.losses, "lr": done.lr, "grad_norm": done.grad_norm, "grads": with_gradient})
    check_equal(stepper.parameters, CPU)
    return {"log": log, "final": learned(code), "start": start}


def check(done: dict[str, Any]) -> None:
    """Losses 1e-5, weights 1e-4 or a thousandth of the change."""
    for mine, expected in zip(done["log"], NUMBERS["log"], strict=True):
        step = expected["step"]
        for name, value in expected["losses"].items():
            assert mine["losses"][name] == pytest.approx(value, abs=1e-5, rel=1e-4), (step, name)
        assert mine["losses"]["total"] == pytest.approx(expected["total"], abs=1e-5, rel=1e-4), step
        assert mine["lr"] == pytest.approx(expected["lr"], rel=1e-9), step
        assert mine["grad_norm"] == pytest.approx(expected["grad_norm_before_clip"], rel=1e-3), step
        assert mine["grads"] == expected["parameters_with_gradient"], step
        assert phase().stage_at(step) == expected["stage"]
    assert set(done["final"]) == set(NUMBERS["final_norms"]) == set(NUMBERS["change_norms"])
    kept = {key.removeprefix("final/"): value for key, value in TENSORS.items()}
    assert kept and set(kept) <= set(done["final"])
    for name, value in kept.items():
        assert torch.allclose(done["final"][name], value, rtol=1e-4, atol=1e-4), name
    for name, value in done["final"].items():
        assert float(value.norm()) == pytest.approx(NUMBERS["final_norms"][name], rel=1e-4, abs=1e-5), name
        change = float((value - done["start"][name]).norm())
        assert change == pytest.approx(NUMBERS["change_norms"][name], rel=0.01, abs=1e-5), name


@cache
def single(accumulate: int) -> dict[str, Any]:
    return take_steps(accumulate=accumulate)


@pytest.mark.slow
def test_steps() -> None:
    check(single(1))


def test_parameters_that_decay() -> None:
    assert NUMBERS["optimizer"]["no_decay"].startswith("1-d tensors")
    code = CodeRecord(MODEL).model()
    decayed, alone = split_by_decay(learned(code))
    assert {"learnable_image_bg", "bg_text", "text_mask_w"} <= set(decayed) and "masker.sim2mask.w" in decayed
    assert all(learned(code)[name].ndim == 1 for name in alone)


@pytest.mark.slow
def test_steps_in_parts() -> None:
    """Gradient caching takes the same steps."""
    check(single(phase().batch))


def worker(rank: int, processes: int, out: str) -> None:
    torch.set_num_threads(1)
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=processes)
    try:
        done = take_steps(rank, processes)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        torch.save(done, f"{out}/done.pt")


@pytest.mark.slow
def test_processes_share_a_batch(tmp_path: Path) -> None:
    size = phase().batch
    processes = next((count for count in range(2, size + 1) if size % count == 0), 0)
    if not processes:
        pytest.skip("a batch of one cannot be shared")
    run_ranks(worker, processes, processes, str(tmp_path))
    check(torch.load(tmp_path / "done.pt", weights_only=True))
