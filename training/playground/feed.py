"""Batches of a phase, made when its step comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["StepFeed"]


class StepFeed:
    """Makes each batch from the number of its step alone.

    Args:
        make: the batch of a step.
        start: the first step.

    Attributes:
        waited: seconds spent on batches so far.
        replaced: none ever is.
    """

    def __init__(self, make: Callable[[int], Any], start: int) -> None:
        self.waited, self.replaced = 0.0, 0
        self._make, self._step = make, start

    def __next__(self) -> Any:
        """The batch of the next step."""
        began = time.perf_counter()
        batch = self._make(self._step)
        self._step += 1
        self.waited += time.perf_counter() - began
        return batch
