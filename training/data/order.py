"""Which pairs make up which batch: a function of seed, epoch and step alone."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import SettingsError

__all__ = ["ORDER_VERSION", "Order"]

ORDER_VERSION = 1
"""Changes whenever the same seed gives another order."""


class Order:
    """A new permutation of all pairs in every epoch.

    Groups (shards) are shuffled, a few of them at a time are joined to a block, and the pairs inside each block are
    shuffled, so that reading stays local while a block holds far more pairs than a batch. What remains of an epoch when
    no whole batch can be made is left out of it; another rest each time.

    Args:
        groups: number of pairs in each group.
        batch: pairs of a step, over all processes.
        seed: of all permutations.
        block: groups that are joined.

    Raises:
        SettingsError: there are fewer pairs than a batch holds.

    Example:
        >>> order = Order([4, 3, 5], batch=6, seed=0, block=2)
        >>> sorted(order.pairs(0) + order.pairs(1)) == list(range(12))
        True
        >>> order.pairs(0) == Order([4, 3, 5], batch=6, seed=0, block=2).pairs(0)
        True
    """

    def __init__(self, groups: Sequence[int], batch: int, seed: int, block: int = 8):
        self._groups = np.asarray(groups, dtype=np.int64)
        self._starts = np.cumsum(self._groups) - self._groups
        self.pairs_total, self.batch, self._seed, self._block = int(self._groups.sum()), batch, seed, block
        if self.pairs_total < batch:
            found = "is 1 usable pair" if self.pairs_total == 1 else f"are {self.pairs_total} usable pairs"
            smaller = f", or choose a batch of at most {self.pairs_total}" * (self.pairs_total > 1)
            raise SettingsError(
                f"There {found} of image and caption, fewer than the batch of {batch}; add data{smaller}."
            )
        # Per instance, so that it is freed with it.
        self._epoch_blocks = lru_cache(maxsize=4)(self._make_epoch_blocks)
        self._shuffled = lru_cache(maxsize=4)(self._shuffle)

    def __reduce__(self) -> tuple[type[Order], tuple[list[int], int, int, int]]:
        """For processes that are sent a copy: what is remembered stays behind."""
        return Order, (self._groups.tolist(), self.batch, self._seed, self._block)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch."""
        return self.pairs_total // self.batch

    def pairs(self, step: int, attempt: int = 0) -> list[int]:
        """Numbers of the pairs of a step, over all processes."""
        return [self.pair(step, place, attempt) for place in range(self.batch)]

    def pair(self, step: int, place: int, attempt: int = 0) -> int:
        """Number of the pair at a place of a step.

        Args:
            step: from 0.
            place: in the batch, from 0.
            attempt: 0, or how many pairs before turned out to be unreadable: the pairs at the same place of the next
                batches take their place, because those are in no other place of this batch. Where these repeat
                themselves, the places after them follow, until all pairs were tried.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        rounds = attempt // (self.pairs_total // math.gcd(self.batch, self.pairs_total))
        position = ((step_of_epoch + attempt) * self.batch + place + rounds) % self.pairs_total
        ends, _ = self._epoch_blocks(epoch)
        number = bisect.bisect_right(ends, position)
        return int(self._shuffled(epoch, number)[position - (ends[number - 1] if number else 0)])

    def _make_epoch_blocks(self, epoch: int) -> tuple[list[int], list[NDArray[np.int64]]]:
        """Ends of the blocks of an epoch in its order, and the groups of each."""
        shuffled = np.random.default_rng([self._seed, epoch, 0]).permutation(len(self._groups))
        blocks = [shuffled[start : start + self._block] for start in range(0, len(shuffled), self._block)]
        return list(accumulate(int(self._groups[block].sum()) for block in blocks)), blocks

    def _shuffle(self, epoch: int, number: int) -> NDArray[np.int64]:
        block = self._epoch_blocks(epoch)[1][number]
        everything = np.concatenate(
            [np.arange(self._starts[group], self._starts[group] + self._groups[group]) for group in block]
        )
        return np.random.default_rng([self._seed, epoch, 1, number]).permutation(everything)
