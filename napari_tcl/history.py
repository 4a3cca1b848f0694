"""What undo and redo need to know: label maps as they were, packed, and the steps they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_tcl.slices import Index

__all__ = ["History", "MapChange", "Runs", "SliceChange", "Step", "Stroke", "StrokePart"]

_STEPS = 20
_BYTES = 256 << 20


@dataclass(frozen=True)
class Runs:
    """An array as runs of equal values in reading order: label maps shrink to about a hundredth, in no time."""

    values: NDArray[np.generic]
    lengths: NDArray[np.uint32]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray[np.generic]) -> Runs:
        """Pack an array."""
        flat = array.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        bounds: NDArray[np.intp] = np.concatenate([[0], changes, [flat.size]])
        return cls(flat[bounds[:-1]], (bounds[1:] - bounds[:-1]).astype(np.uint32), array.shape)

    def expand(self) -> NDArray[np.generic]:
        """Unpack it."""
        return np.asarray(np.repeat(self.values, self.lengths).reshape(self.shape))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return int(self.values.nbytes + self.lengths.nbytes)


@dataclass
class MapChange:
    """A map of a slice before and after a step; ``after`` is ``None`` where it is only known when it is undone."""

    before: Runs
    after: Runs | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.before.nbytes + (0 if self.after is None else self.after.nbytes)


@dataclass
class SliceChange:
    """What a step did to a slice.

    Attributes:
        maps: by name.
        scores: the scores on the other side of the step, ``None`` where there are none.
        segmented: whether the slice counts as segmented there.
        with_scores: whether the step changed the two above.
    """

    maps: dict[str, MapChange] = field(default_factory=dict)
    scores: NDArray[np.uint8] | None = None
    segmented: bool = False
    with_scores: bool = False

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(change.nbytes for change in self.maps.values()) + (0 if self.scores is None else self.scores.nbytes)


@dataclass
class Step:
    """What one undo takes back: a run or an acceptance, of one slice or many.

    Attributes:
        what: for the message, such as ``"the run"``.
        slices: what it did, by slice.
        beside: what was changed together with the pixels, for whoever changes it back.
    """

    what: str
    slices: dict[Index, SliceChange] = field(default_factory=dict)
    beside: object = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(change.nbytes for change in self.slices.values())


@dataclass(frozen=True)
class StrokePart:
    """Pixels of one map of one slice that a stroke changed."""

    index: Index
    name: str
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    before: NDArray[np.generic]
    after: NDArray[np.generic]


Stroke = tuple[StrokePart, ...]
"""What one use of the brush, the bucket or another tool changed."""


class History:
    """Steps that can be undone and redone; the oldest are forgotten beyond a number and a size.

    Args:
        max_steps: how many are kept.
        max_bytes: how much memory they may take; the latest step is kept whatever it takes.
    """

    def __init__(self, max_steps: int = _STEPS, max_bytes: int = _BYTES) -> None:
        self._max_steps, self._max_bytes = max_steps, max_bytes
        self._done: deque[Step] = deque()
        self._undone: list[Step] = []

    def begin(self, step: Step) -> None:
        """Add a step; what was undone cannot be redone any more."""
        if not any(step is known for known in self._done):
            self._done.append(step)
            self._undone.clear()
            self._trim()

    @property
    def last(self) -> Step | None:
        """The step that would be undone next."""
        return self._done[-1] if self._done else None

    @property
    def next(self) -> Step | None:
        """The step that would be redone next."""
        return self._undone[-1] if self._undone else None

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps that can be undone or redone."""
        return (*self._done, *self._undone)

    def pop_done(self) -> Step | None:
        """The step to undo, which counts as undone from here on."""
        if not self._done:
            return None
        step = self._done.pop()
        self._undone.append(step)
        return step

    def pop_undone(self) -> Step | None:
        """The step to redo, which counts as done from here on."""
        if not self._undone:
            return None
        step = self._undone.pop()
        self._done.append(step)
        return step

    def _trim(self) -> None:
        while len(self._done) > self._max_steps or (
            len(self._done) > 1 and _bytes_of(self._done) + _bytes_of(self._undone) > self._max_bytes
        ):
            self._done.popleft()


def _bytes_of(steps: Iterable[Step]) -> int:
    return sum(step.nbytes for step in steps)
