"""Processes that train one model together.

There is no ``DistributedDataParallel``: it only hooks one forward pass of parameters that were trainable when it was
made, while a step here may freeze, unfreeze, recompute and accumulate. All gradients are averaged at once after the
backward pass instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl.distributed import process_rank, world_size

__all__ = [
    "average_gradients",
    "average_scalars",
    "check_equal",
    "fail_together",
    "process_group",
    "process_rank",
    "wait_for_first",
    "world_size",
]

T = TypeVar("T")


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that ``torchrun`` started; without it nothing happens.

    Args:
        device: of this process; GPUs talk over nccl, CPUs over gloo.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, by one all-reduce.

    Args:
        parameters: the same in every process; those without a gradient have none in every process.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() == 1 or not grads:
        return
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def average_scalars(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Means over the processes of numbers by name.

    Args:
        values: the same names in every process.
        device: of this process, because nccl only moves what lies on a GPU.
    """
    if world_size() == 1:
        return dict(values)
    joined = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(joined)
    return dict(zip(values, (joined / world_size()).tolist(), strict=True))


def fail_together(failure: BaseException | None, device: torch.device) -> None:
    """Raise in every process if any of them has failed, so that none waits for one that is gone.

    Args:
        failure: what went wrong in this process, if anything.
        device: of this process.

    Raises:
        BaseException: ``failure``.
        SettingsError: another process failed.
    """
    failed = average_scalars({"failed": float(failure is not None)}, device)["failed"]
    if failure is not None:
        raise failure
    if failed:
        raise SettingsError("Another process of this training failed; its message says why.")


def check_equal(tensors: Sequence[Tensor], device: torch.device) -> None:
    """Notice processes whose parameters have drifted apart.

    Args:
        tensors: the same ones in every process.
        device: of this process.

    Raises:
        SettingsError: they are not equal.
    """
    if world_size() == 1:
        return
    # A sum of the bits, so that a difference of one of them shows.
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        total += tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)
    sums = torch.zeros(world_size(), dtype=torch.int64, device=device)
    sums[process_rank()] = total
    dist.all_reduce(sums)
    different = [rank for rank, value in enumerate(sums.tolist()) if value != int(sums[0])]
    if different:
        raise SettingsError(
            f"The parameters of process {different[0]} differ from those of process 0; run all processes on the same "
            "kind of device with the same version of PyTorch, and resume from the last checkpoint."
        )


def wait_for_first(make: Callable[[], T]) -> T:
    """Make something in the first process, and then in the others, which find what it left on the disk.

    Args:
        make: what to do in every process; it may take hours.
    """
    if world_size() == 1:
        return make()
    # By default the others would lose their patience after ten minutes (nccl) or thirty (gloo).
    patient: Any = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    if process_rank() == 0:
        # Also after an error, or the others would wait for ever.
        try:
            return make()
        finally:
            dist.barrier(group=patient)
    dist.barrier(group=patient)
    return make()
