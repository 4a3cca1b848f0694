"""Batches of a process, in an order that neither processes nor workers nor restarts change."""

from __future__ import annotations

import copy
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tcl_core.errors import ImageError, SettingsError, TclError, reason_of
from tcl_core.images import load_image
from tcl_core.methods.trainable import Trainable
from training.data.augment import Transform
from training.data.order import Order
from training.data.source import Source

__all__ = ["Batches", "PairDataset", "end_workers", "naming_dead_workers", "start_worker"]

_log = logging.getLogger(__name__)
_MOST_ATTEMPTS = 100
_PREFETCH = 4


@dataclass(frozen=True)
class _Failure:
    """Takes the place of a batch: an exception would come out of a worker with its traceback as message."""

    message: str


class PairDataset(Dataset[dict[str, Any]]):
    """Prepared samples by step and place in the batch.

    Args:
        source: where pairs come from.
        order: which pair is where.
        transform: what is done to its image.
        method: prepares samples.
        seed: of augmentation.
    """

    def __init__(self, source: Source, order: Order, transform: Transform, method: Trainable, seed: int):
        self._source, self._order, self._transform, self._method, self._seed = source, order, transform, method, seed

    def with_method(self, method: Trainable) -> PairDataset:
        """The same samples, prepared by another method."""
        return PairDataset(self._source, self._order, self._transform, method, self._seed)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, Any]] | _Failure:
        """The samples of a batch, or what is wrong with one of them."""
        try:
            return [self[key] for key in keys]
        except TclError as error:
            return _Failure(str(error))
        except OSError as error:
            place = error.filename or "a file of the data"
            return _Failure(f"{place}: cannot be read: {reason_of(error)}; make it readable and run the command again.")

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The sample of a step at a place of the whole batch.

        An image that cannot be decoded, or a caption that the method does not accept, is replaced by the pair at the
        same place of the next batch, and so on, so that all processes go on with whole batches.

        Raises:
            SettingsError: too many in a row cannot be used.
        """
        step, place = key
        for attempt in range(_MOST_ATTEMPTS):
            pair = self._source.read(self._order.pair(step, place, attempt))
            if not self._method.accepts(pair.caption):
                reason_why = self._method.why_refused(pair.caption)
                reason = ImageError(f"{pair.name}: the caption {pair.caption!r} cannot be used: {reason_why}.")
                continue
            try:
                image = load_image(pair.image, name=pair.name, on_warning=_log.debug)
                break
            except ImageError as error:
                _log.debug("replaced: %s", error)
                reason = error
        else:
            raise SettingsError(
                f"{_MOST_ATTEMPTS} pairs in a row cannot be used, the last one because: {reason} Check the data "
                "and the recipe's settings."
            )
        rng = np.random.default_rng([self._seed, step, place])
        sample = {"image": self._transform(image, int(rng.integers(2**62))), "caption": pair.caption}
        return self._method.prepare(sample, rng) | {"_replaced": attempt}


def _without_tensors(method: Trainable) -> Trainable:
    """A copy whose tensors have shapes alone: preparing samples needs none, and those of a GPU cannot be sent."""
    if not isinstance(method, nn.Module):
        return method
    tensors = [*method.parameters(), *method.buffers()]
    return copy.deepcopy(method, {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors})


class _Places:
    """The places of a process' part of each batch, step by step."""

    def __init__(self, batch: int, rank: int, processes: int, start: int, steps: int):
        self._size = batch // processes
        self._first, self._steps = rank * self._size, range(start, steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            yield [(step, place) for place in range(self._first, self._first + self._size)]

    def __len__(self) -> int:
        return len(self._steps)


class Batches:
    """Iterates over the batches of a process from a step on.

    Args:
        dataset: of the pairs.
        method: puts samples together.
        batch: pairs of a step, over all processes.
        rank: of this process.
        processes: their number, a divisor of ``batch``.
        start: first step.
        steps: step that is not taken any more.
        workers: processes that decode; 0 decodes in this one.

    Attributes:
        waited: seconds that were spent waiting for batches so far.
        replaced: pairs of this process that could not be used so far.
    """

    def __init__(
        self,
        dataset: PairDataset,
        method: Trainable,
        batch: int,
        rank: int,
        processes: int,
        start: int,
        steps: int,
        workers: int = 0,
    ):
        self.waited, self.replaced = 0.0, 0
        # Forked workers share the method and the index; elsewhere they are sent copies.
        forks = sys.platform == "linux"
        if workers and not forks:
            method = _without_tensors(method)
            dataset = dataset.with_method(method)
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Places(batch, rank, processes, start, steps),
            num_workers=workers,
            collate_fn=_Collate(method),
            prefetch_factor=_PREFETCH if workers else None,
            multiprocessing_context=("fork" if forks else "spawn") if workers else None,
            worker_init_fn=start_worker,
        )
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """The batches, in the order of their steps."""
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            SettingsError: it cannot be read.
        """
        began = time.perf_counter()
        try:
            with naming_dead_workers("--workers"):
                if self._batches is None:
                    self._batches = iter(self._loader)
                batch, replaced = next(self._batches)
        finally:
            self.waited += time.perf_counter() - began
        if isinstance(batch, _Failure):
            raise SettingsError(batch.message)
        self.replaced += replaced
        return batch

    def close(self) -> None:
        """End the processes that decode; there are no more batches."""
        end_workers(self._batches)
        self._batches = iter(())


def end_workers(batches: Iterator[Any] | None) -> None:
    """End the processes of a loader.

    They would otherwise run until nothing refers to its iterator any more, which a traceback may do for long.

    Args:
        batches: the loader's iterator; one without processes is left alone.
    """
    end = getattr(batches, "_shutdown_workers", None)
    if end is not None:
        end()


@contextmanager
def naming_dead_workers(option: str) -> Iterator[None]:
    """Say in a sentence that a process of a loader ended; ``option`` sets their number.

    Raises:
        SettingsError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SettingsError(
            "A process that makes batches ended unexpectedly, most often because memory, or shared memory (/dev/shm), "
            f"ran out; use fewer {option}."
        ) from error


class _Collate:
    def __init__(self, method: Trainable):
        self._method = method

    def __call__(self, samples: list[dict[str, Any]] | _Failure) -> tuple[Any, int]:
        if isinstance(samples, _Failure):
            return samples, 0
        replaced = sum(sample.pop("_replaced") for sample in samples)
        return self._method.collate(samples), replaced


def start_worker(number: int) -> None:
    """Prepare a process that makes batches."""
    # The main process decides when to stop; torchrun and job schedulers signal all processes at once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Many workers with many threads each get in each other's way.
    torch.set_num_threads(1)
