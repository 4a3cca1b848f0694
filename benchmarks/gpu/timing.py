"""Time and memory of work on a device that computes in the background."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from tcl_core.devices import autocast

__all__ = ["MODES", "Peak", "interleaved", "mode", "peak_memory", "seconds"]

MODES: dict[str, torch.dtype] = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
"""Number formats of the matrix products; TF32 is float32 with factors of ten bits, as PyTorch calls "high"."""


@contextmanager
def mode(name: str, device: torch.device) -> Iterator[None]:
    """Work in one of `MODES`."""
    if name != "tf32":
        with autocast(device, MODES[name]):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        # Convolutions are in TF32 by default.
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one piece of work, until the device is done."""
    _wait(device)
    begun = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begun


def interleaved(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, warm: int = 2
) -> dict[str, float]:
    """Median seconds of several pieces of work that take turns.

    Args:
        works: by name.
        device: where they compute.
        repeats: rounds that count.
        warm: rounds before, which pay for memory and the choice of kernels.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm + repeats):
        for name, work in works.items():
            taken = seconds(work, device)
            if number >= warm:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


class Peak:
    """The most memory that was held during some work.

    Attributes:
        details: its MiB by name; empty where nobody counts them.
    """

    def __init__(self) -> None:
        self.details: dict[str, float] = {}


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the most memory that PyTorch's tensors take on a GPU, and what they took before."""
    peak = Peak()
    if device.type != "cuda":
        yield peak
        return
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield peak
    _wait(device)
    peak.details["MiB before"] = before / 2**20
    peak.details["peak MiB"] = torch.cuda.max_memory_allocated(device) / 2**20
