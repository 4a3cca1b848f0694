"""Who works on the stages before and after the network: this process itself, or others beside it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from tcl_core.jobs.pipeline import done
from tcl_core.jobs.stages import DecidedImage, ImageToRead, ReadImage, Stages, TracedImage

__all__ = ["InlineWorkers", "Workers"]


class Workers(Protocol):
    """Reads images and traces regions, now or later."""

    @property
    def count(self) -> int:
        """How many work beside this process."""
        ...

    @property
    def ahead(self) -> int:
        """How many images are read before they are asked for, itself included; at least 1."""
        ...

    @property
    def behind(self) -> int:
        """How many label maps may wait for their regions."""
        ...

    @property
    def pixels_behind(self) -> int:
        """How many pixels they may have together; one that is larger may wait alone."""
        ...

    def read(self, task: ImageToRead) -> Future[ReadImage]:
        """See `tcl_core.jobs.stages.read_image`."""
        ...

    def trace(self, decided: DecidedImage) -> Future[TracedImage]:
        """See `tcl_core.jobs.stages.trace_image`."""
        ...

    def close(self) -> None:
        """End the work, done or not."""
        ...


class InlineWorkers:
    """This process itself: every call works at once, and what it returns is done.

    Args:
        stages: what to do.
    """

    count, ahead, behind, pixels_behind = 0, 1, 0, 0

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def read(self, task: ImageToRead) -> Future[ReadImage]:
        """Read an image now."""
        return done(self._stages.read(task))

    def trace(self, decided: DecidedImage) -> Future[TracedImage]:
        """Trace regions now."""
        return done(self._stages.trace(decided))

    def close(self) -> None:
        """Nothing is left to end."""
