"""What the model proposes, what a person changed, and what is accepted, kept apart for one image or stack.

Two maps are shown: the **draft**, which the model fills and a person corrects, and the **accepted** map, which later
runs never touch. A pixel belongs to the accepted map where that is not 0, else to the draft. The person may change
both at any time with the viewer's own tools, so what was changed is found by comparing the draft with what was last
put there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_tcl.slices import Index

__all__ = ["Annotation", "LabelMap", "TakenOut"]

_UNDO_STEPS = 20

LabelMap = NDArray[np.uint16]
"""Label ids, 0 for nothing."""


class Annotation:
    """The draft and the accepted map of an image or stack.

    The arrays are worked on in place, so that a viewer which shows them shows the result.

    Args:
        draft: uint16 ``[..., H, W]``, label ids.
        accepted: uint16 of the same shape.

    Examples:
        >>> note = Annotation(np.zeros((1, 3), np.uint16), np.zeros((1, 3), np.uint16))
        >>> note.propose((), np.array([[1, 1, 2]], np.uint16))
        >>> note.draft[0, 0] = 2  # a person's brush
        >>> note.propose((), np.array([[1, 1, 1]], np.uint16))
        >>> note.draft.tolist()
        [[2, 1, 1]]
        >>> note.accept((), [2])
        1
        >>> note.propose((), np.array([[1, 1, 1]], np.uint16))
        >>> note.draft.tolist(), note.accepted.tolist(), note.combined(()).tolist()
        ([[0, 1, 1]], [[2, 0, 0]], [[2, 1, 1]])
    """

    def __init__(self, draft: LabelMap, accepted: LabelMap) -> None:
        if draft.shape != accepted.shape or draft.ndim < 2:
            raise ValueError(f"the maps have the shapes {draft.shape} and {accepted.shape}")
        self.draft = draft
        self.accepted = accepted
        self._put = draft.copy()
        self._by_hand = np.zeros(draft.shape, dtype=bool)
        self._history: deque[tuple[Index, list[_Runs]]] = deque(maxlen=_UNDO_STEPS)

    def propose(self, index: Index, proposal: LabelMap) -> None:
        """Put the model's result into a slice of the draft; corrections and accepted pixels stay.

        Args:
            index: the slice.
            proposal: uint16 ``[H, W]``.
        """
        draft, put = self.draft[index], self._put[index]
        by_hand = self._note_by_hand(index)
        np.copyto(put, proposal)
        np.copyto(put, draft, where=by_hand)
        put[self.accepted[index] > 0] = 0
        np.copyto(draft, put)

    def attribute(self, index: Index, proposal: LabelMap) -> None:
        """Say what the model proposes for a slice, without changing it: what differs was changed by a person.

        For maps that were saved with their corrections.

        Args:
            index: the slice.
            proposal: uint16 ``[H, W]``.
        """
        put = self._put[index]
        np.copyto(put, proposal)
        put[self.accepted[index] > 0] = 0
        self._by_hand[index] = self.draft[index] != put

    def by_hand(self, index: Index) -> NDArray[np.bool_]:
        """Pixels of a slice of the draft that a person changed since the model last put something there.

        Returns:
            bool ``[H, W]``.
        """
        return np.asarray(self._by_hand[index] | (self.draft[index] != self._put[index]))

    def _note_by_hand(self, index: Index) -> NDArray[np.bool_]:
        """Remember `by_hand`, because draft and what was put there are about to change."""
        self._by_hand[index] = self.by_hand(index)
        return self._by_hand[index]

    def accept(self, index: Index, ids: Iterable[int]) -> int:
        """Move a slice's regions of some labels from the draft to the accepted map.

        Args:
            index: the slice.
            ids: of the labels.

        Returns:
            Number of pixels moved; pixels that are accepted already stay what they are.
        """
        draft, accepted = self.draft[index], self.accepted[index]
        by_hand = self._note_by_hand(index)
        chosen = np.isin(draft, list(ids)) & (draft > 0)
        if not chosen.any():
            return 0
        self.remember(index)
        moved = chosen & (accepted == 0)
        accepted[moved] = draft[moved]
        draft[chosen] = 0
        self._put[index][chosen] = 0
        by_hand[chosen] = False
        return int(np.count_nonzero(moved))

    def remember(self, index: Index) -> None:
        """Keep what a slice is now, so that `undo` can bring it back; the oldest of many steps is forgotten."""
        self._note_by_hand(index)
        self._history.append((index, [_Runs.of(part[index]) for part in self._parts]))

    def undo(self) -> Index | None:
        """Bring back what the last `remember` or `accept` kept.

        Returns:
            The slice that changed, or ``None`` where there is nothing to undo.
        """
        if not self._history:
            return None
        index, kept = self._history.pop()
        for part, runs in zip(self._parts, kept, strict=True):
            part[index] = runs.expand()
        return index

    @property
    def _parts(self) -> tuple[NDArray[np.generic], ...]:
        return self.draft, self.accepted, self._put, self._by_hand

    def combined(self, index: Index) -> LabelMap:
        """What is exported of a slice: the accepted map, and the draft where nothing is accepted."""
        accepted = self.accepted[index]
        return np.where(accepted > 0, accepted, self.draft[index])

    def confirmed(self, index: Index) -> NDArray[np.bool_]:
        """Pixels of a slice that a person vouches for: accepted, or labeled by hand; bool ``[H, W]``."""
        return np.asarray((self.accepted[index] > 0) | (self.by_hand(index) & (self.draft[index] > 0)))

    def take_out(self, ids: Sequence[int]) -> TakenOut:
        """Remove labels from both maps, everywhere.

        Until they are put back, nothing that was remembered before can be undone, for it holds their pixels.

        Args:
            ids: of the labels.

        Returns:
            What `put_back` needs.
        """
        removed = []
        for label_map in (self.draft, self.accepted, self._put):
            gone = np.where(np.isin(label_map, list(ids)), label_map, np.uint16(0))
            label_map[gone > 0] = 0
            removed.append(_Runs.of(gone))
        history = tuple(self._history)
        self._history.clear()
        return TakenOut(tuple(removed), history)

    def put_back(self, taken: TakenOut) -> None:
        """Undo `take_out`, where nothing else was put since."""
        for label_map, runs in zip((self.draft, self.accepted, self._put), taken.removed, strict=True):
            gone = np.asarray(runs.expand(), np.uint16)
            np.copyto(label_map, gone, where=(label_map == 0) & (gone > 0))
        # What is accepted meanwhile hides a draft.
        self.draft[self.accepted > 0] = 0
        self._history = deque([*taken.history, *self._history], maxlen=_UNDO_STEPS)


@dataclass(frozen=True)
class TakenOut:
    """Pixels of labels that were removed from an annotation, and what could be undone before.

    Attributes:
        removed: the ids that stood in the draft, in the accepted map, and in what the model proposed.
        history: older steps.
    """

    removed: tuple[_Runs, ...]
    history: tuple[tuple[Index, list[_Runs]], ...]


@dataclass(frozen=True)
class _Runs:
    """An array as runs of equal values in reading order: label maps shrink to about a hundredth, in no time."""

    values: NDArray[np.generic]
    lengths: NDArray[np.uint32]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: NDArray[np.generic]) -> _Runs:
        flat = array.ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        bounds: NDArray[np.intp] = np.concatenate([[0], changes, [flat.size]])
        return cls(flat[bounds[:-1]], (bounds[1:] - bounds[:-1]).astype(np.uint32), array.shape)

    def expand(self) -> NDArray[np.generic]:
        return np.asarray(np.repeat(self.values, self.lengths).reshape(self.shape))
