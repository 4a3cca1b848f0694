"""Batches of a process, in an order that neither processes nor workers nor restarts change."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tcl_core.errors import ImageError, SettingsError
from tcl_core.images import load_image
from tcl_core.methods.trainable import Trainable
from training.data.augment import Transform
from training.data.order import Order
from training.data.source import Source

__all__ = ["Batches", "PairDataset"]

_log = logging.getLogger(__name__)
_MOST_ATTEMPTS = 100
_PREFETCH = 4


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
                reason = ImageError(f"{pair.name}: the method cannot learn from the caption {pair.caption!r}.")
                continue
            try:
                image = load_image(pair.image, name=pair.name, on_warning=_log.debug)
                break
            except ImageError as error:
                _log.debug("replaced: %s", error)
                reason = error
        else:
            raise SettingsError(
                f"{_MOST_ATTEMPTS} pairs in a row cannot be used, the last one because: {reason} Check the data."
            )
        rng = np.random.default_rng([self._seed, step, place])
        sample = {"image": self._transform(image, int(rng.integers(2**62))), "caption": pair.caption}
        return self._method.prepare(sample, rng) | {"_replaced": attempt}


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
        context = "fork" if sys.platform == "linux" and workers else None
        self._loader = DataLoader(
            dataset,
            batch_sampler=_Places(batch, rank, processes, start, steps),
            num_workers=workers,
            collate_fn=_Collate(method),
            prefetch_factor=_PREFETCH if workers else None,
            multiprocessing_context=context,
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Iterator[Any]:
        """The batches, in the order of their steps."""
        loader = iter(self._loader)
        while True:
            began = time.perf_counter()
            try:
                batch, replaced = next(loader)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - began
            self.replaced += replaced
            yield batch


class _Collate:
    def __init__(self, method: Trainable):
        self._method = method

    def __call__(self, samples: list[dict[str, Any]]) -> tuple[Any, int]:
        replaced = sum(sample.pop("_replaced") for sample in samples)
        return self._method.collate(samples), replaced


def _start_worker(number: int) -> None:
    # The main process decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Many workers with many threads each get in each other's way.
    torch.set_num_threads(1)
