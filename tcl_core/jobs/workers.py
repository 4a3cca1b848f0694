"""Who works on the stages before and after the network: this process itself, or others beside it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

from tcl_core.jobs.pipeline import done
from tcl_core.jobs.stages import DecidedImage, ImageToRead, ReadImage, TracedImage

__all__ = ["AnyStages", "AnyWorkers", "InlineWorkers", "Workers"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _Decided(_Named, Protocol):
    @property
    def pixels(self) -> int: ...

    def packed(self) -> Any: ...


TaskT = TypeVar("TaskT", bound=_Named, contravariant=True)
ReadT = TypeVar("ReadT")
DecidedT = TypeVar("DecidedT", bound=_Decided, contravariant=True)
TracedT = TypeVar("TracedT")
_ReadT = TypeVar("_ReadT", covariant=True)
_TracedT = TypeVar("_TracedT", covariant=True)


class AnyStages(Protocol[TaskT, _ReadT, DecidedT, _TracedT]):
    """What is done to an image before and after the network, such as `tcl_core.jobs.stages.Stages`.

    It is sent to worker processes, and so are its arguments and results. The results are dataclasses with a
    `tcl_core.jobs.stages.Failure` or ``None`` as ``failure``.
    """

    @property
    def custom(self) -> str:
        """The part of it that somebody else may have written, for messages."""
        ...

    def header_pixels(self, task: TaskT) -> int:
        """Pixels of an image, as its header says; 0 where nothing is known before it is read."""
        ...

    def read(self, task: TaskT) -> _ReadT:
        """Read an image; what is wrong with it stands in the result."""
        ...

    def trace(self, decided: DecidedT) -> _TracedT:
        """Trace an image's regions; what is wrong with it stands in the result."""
        ...


class AnyWorkers(Protocol[TaskT, ReadT, DecidedT, TracedT]):
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

    def read(self, task: TaskT) -> Future[ReadT]:
        """See `AnyStages.read`."""
        ...

    def trace(self, decided: DecidedT) -> Future[TracedT]:
        """See `AnyStages.trace`."""
        ...

    def close(self) -> None:
        """End the work, done or not."""
        ...


Workers = AnyWorkers[ImageToRead, ReadImage, DecidedImage, TracedImage]
"""The workers of a job on files."""


class InlineWorkers(Generic[TaskT, ReadT, DecidedT, TracedT]):
    """This process itself: every call works at once, and what it returns is done.

    Args:
        stages: what to do.
    """

    count, ahead, behind, pixels_behind = 0, 1, 0, 0

    def __init__(self, stages: AnyStages[TaskT, ReadT, DecidedT, TracedT]) -> None:
        self._stages = stages

    def read(self, task: TaskT) -> Future[ReadT]:
        """Read an image now."""
        return done(self._stages.read(task))

    def trace(self, decided: DecidedT) -> Future[TracedT]:
        """Trace regions now."""
        return done(self._stages.trace(decided))

    def close(self) -> None:
        """Nothing is left to end."""
