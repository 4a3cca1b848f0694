"""Two processes with half a batch each against one process with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tcl_core.methods.tcl import TCLConfig
from tcl_core.methods.tcl.distributed import gather, process_rank
from tests.core.tcl_models import captions, small_tcl
from tests.forked import run_ranks

PROCESSES, PER_PROCESS = 2, 2
# A prior between the mean masks of the two halves, where the mean of |part - prior| is not |mean - prior|.
CONFIG = TCLConfig(area_prior=0.29)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = PROCESSES * PER_PROCESS
    # Not symmetric, and no two processes' add up to the same.
    negatives = torch.arange(count**2).reshape(count, count) / count**2
    images = torch.randn(count, 3, 32, 40, generator=generator)
    return images, captions(count), torch.rand(count, 16, 20, generator=generator).clamp(0.01, 0.99), negatives


def step(wrap: bool, part: slice, weighted: bool) -> dict[str, Tensor]:
    tcl = small_tcl(CONFIG)
    tcl.trainable("full")
    module = DistributedDataParallel(tcl) if wrap else tcl
    images, tokens, noise, negatives = (tensor[part] for tensor in batch())
    losses = module(images, tokens, noise=noise, negatives=negatives if weighted else None)
    losses["total"].backward()
    grads = {f"grad/{name}": p.grad for name, p in tcl.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()} | grads


def work(rank: int, folder: str, weighted: bool) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    try:
        start = rank * PER_PROCESS
        torch.save(step(True, slice(start, start + PER_PROCESS), weighted), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_one_process_gathers_nothing() -> None:
    x = torch.rand(2, 3)
    assert gather(x) is x
    assert process_rank() == 0


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path, weighted: bool) -> None:
    run_ranks(work, PROCESSES, str(tmp_path), weighted)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    whole = step(False, slice(None), weighted)
    assert set(whole) == set(parts[0])
    for name, expected in whole.items():
        # Losses are means over a process' part; gradients were averaged already.
        actual = torch.stack([part[name] for part in parts]).mean(dim=0)
        scale = max(float(expected.norm()), 1e-3)
        assert float((actual - expected).norm()) <= 1e-4 * scale, name
        if name.startswith("grad/"):
            assert torch.equal(parts[0][name], parts[1][name]), name
