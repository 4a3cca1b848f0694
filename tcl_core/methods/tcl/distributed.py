"""Gathering over processes, with gradients; without a process group everything is one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["gather", "process_rank", "world_size"]


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All-gather whose backward sums the gradients that all processes have for this process' part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.length = x.shape[0]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.narrow(0, process_rank() * ctx.length, ctx.length)


def gather(x: Tensor) -> Tensor:
    """Concatenate a tensor over all processes along its first axis, in the order of their ranks.

    The gradient of the sum of all processes' losses flows back, so that averaging the parameters' gradients over
    processes (as ``DistributedDataParallel`` does) gives the gradient of the mean loss.

    Args:
        x: ``[B, ...]``, of the same shape in every process.

    Returns:
        ``[B * processes, ...]``; ``x`` itself without a process group.
    """
    return _Gather.apply(x) if world_size() > 1 else x
