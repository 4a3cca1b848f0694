"""A training loop that shows how long it will take, can be interrupted at any moment, and resumes exactly.

Everything random in a step is drawn from generators seeded by the step's number, so that a resumed run sees the
same batches as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from training.checkpoints import load_checkpoint, save_checkpoint
from training.log import JsonLines

__all__ = ["Schedule", "half_precision", "learning_rate", "step_generators", "train"]


@dataclass(frozen=True)
class Schedule:
    """Optimizer settings of one stage.

    Attributes:
        steps: number of steps.
        lr: highest learning rate.
        min_lr: learning rate at the end.
        warmup: steps of linear warm-up.
        weight_decay: AdamW's decoupled decay, for matrices and kernels only.
        betas: AdamW's moments.
        eps: AdamW's epsilon.
        clip_norm: largest norm of the gradient.
        scalar_scale: factor on the learning rate of scalars (gates, temperatures), which start far from where they end.
    """

    steps: int
    lr: float
    min_lr: float
    warmup: int
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float = 1.0
    scalar_scale: float = 1.0


def learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then a cosine to ``min_lr``.

    Example:
        >>> s = Schedule(steps=100, lr=1.0, min_lr=0.1, warmup=10)
        >>> learning_rate(s, 0), round(learning_rate(s, 9), 3), round(learning_rate(s, 100), 3)
        (0.1, 1.0, 0.1)
    """
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / schedule.warmup
    progress = min(1.0, (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup))
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def step_generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The two sources of randomness of one step, for numpy and for torch."""
    rng = np.random.default_rng([seed, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**31)))


@contextmanager
def half_precision() -> Iterator[None]:
    """Compute in bfloat16 on a CPU, attention too.

    PyTorch's fused attention is the slower one here, for tens as for hundreds of tokens, and its plain one computes in
    float32 unless it is told that bfloat16 will do.
    """
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def train(
    name: str,
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    schedule: Schedule,
    losses: Callable[[int], dict[str, Tensor]],
    folder: Path,
    recipe: str,
    *,
    log_every: int = 50,
    save_every: int = 200,
) -> None:
    """Minimize ``losses(step)["total"]``.

    Args:
        name: of the stage; names the checkpoint ``<name>.ckpt`` and the log ``<name>.jsonl`` in ``folder``.
        module: what is saved and restored.
        parameters: what is optimized; those without a gradient in a step stay as they are.
        schedule: optimizer settings.
        losses: computes the scalars of a step; ``total`` is minimized, all are logged.
        folder: where checkpoint and log are kept.
        recipe: everything that decides the weights, as text; a checkpoint of another recipe is not resumed.
        log_every: steps whose mean makes one line of the log.
        save_every: steps between checkpoints.

    Raises:
        RuntimeError: the total is not finite.
        SystemExit: the folder holds a checkpoint of another recipe.
        CheckpointError: a checkpoint cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log_path = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": schedule.weight_decay, "scale": 1.0},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0, "scale": 1.0},
            {"params": [p for p in parameters if p.ndim == 0], "weight_decay": 0.0, "scale": schedule.scalar_scale},
        ],
        lr=schedule.lr,
        betas=schedule.betas,
        eps=schedule.eps,
        fused=True,
    )
    start, spent = 0, 0.0
    state = load_checkpoint(checkpoint)
    if state is not None:
        if state["recipe"] != recipe:
            raise SystemExit(
                f"error: {checkpoint} was made with another recipe; remove the folder {folder} to start anew"
            )
        module.load_state_dict(state["module"])
        start = state["step"]
        if start >= schedule.steps:
            return
        optimizer.load_state_dict(state["optimizer"])
        spent = state["seconds"]
    log = JsonLines(log_path, start)
    began = time.perf_counter()

    def save(step: int) -> None:
        content = {"format": 1, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        save_checkpoint(checkpoint, content | {"recipe": recipe, "seconds": spent + time.perf_counter() - began})

    window: list[dict[str, float]] = []
    bar = tqdm(range(start, schedule.steps), initial=start, total=schedule.steps, desc=name, mininterval=5)
    step = start
    try:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(schedule, step) * group["scale"]
            terms = losses(step)
            if not torch.isfinite(terms["total"]):
                raise RuntimeError(
                    f"the loss of step {step} is not finite: { {k: float(v) for k, v in terms.items()} }"
                )
            optimizer.zero_grad(set_to_none=True)
            terms["total"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
            optimizer.step()
            window.append({key: float(value.detach()) for key, value in terms.items()})
            if (step + 1) % log_every == 0 or step + 1 == schedule.steps:
                line = {key: round(float(np.mean([entry[key] for entry in window])), 5) for key in window[0]}
                bar.set_postfix(total=line["total"])
                seconds = round(spent + time.perf_counter() - began, 1)
                log.write(step + 1, {"lr": round(learning_rate(schedule, step), 7), **line, "seconds": seconds})
                window.clear()
            if (step + 1) % save_every == 0:
                save(step + 1)
    except KeyboardInterrupt:
        print(f"\ninterrupted; run the same command again to resume from the last checkpoint in {folder}")
        raise
    save(schedule.steps)
