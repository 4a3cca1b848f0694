"""Batches of a phase, made when its step comes or, by other processes, ahead of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from training.data.loader import end_workers, naming_dead_workers, start_worker

__all__ = ["StepFeed"]

_PREFETCH = 8


class _Made(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __getitem__(self, step: int) -> Any:
        return self._make(step)


class StepFeed:
    """Makes each batch from the number of its step alone, so that it is the same whichever process makes it.

    Args:
        make: the batch of a step.
        steps: their number in the phase.
        workers: forked processes that make batches ahead of their steps; 0 makes them in this one.
        start: the first step.

    Attributes:
        waited: seconds spent on batches so far.
        replaced: none ever is.
    """

    def __init__(self, make: Callable[[int], Any], steps: int, workers: int, start: int) -> None:
        self.waited, self.replaced = 0.0, 0
        # Forked, because the drawn images are gigabytes that processes can share and should not be sent.
        self._loader = DataLoader(
            _Made(make),
            batch_size=None,
            sampler=range(start, steps),
            num_workers=workers,
            prefetch_factor=_PREFETCH if workers else None,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=start_worker,
            # Its own, so that the process draws the same numbers whether there are workers or not.
            generator=torch.Generator(),
        )
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        """The batch of the next step."""
        began = time.perf_counter()
        with naming_dead_workers("--feeders"):
            if self._batches is None:
                self._batches = iter(self._loader)
            batch = next(self._batches)
        self.waited += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """End the processes that make batches; there are no more."""
        end_workers(self._batches)
        self._batches = iter(())
