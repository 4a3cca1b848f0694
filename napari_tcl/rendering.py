"""What a draft shows: the model's proposal, what a person changed, and nothing where something is accepted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "changed_box", "draft_of", "whole_box"]

Box = tuple[slice, slice]
"""Rows and columns of a slice."""


def draft_of(model: NDArray[np.uint16], hand: NDArray[np.uint32], accepted: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """The draft as it follows from what it is made of.

    Args:
        model: uint16 ``[H, W]``, the model's proposal.
        hand: uint32 ``[H, W]``, a person's label plus one, 0 for none.
        accepted: uint16 ``[H, W]``, 0 for nothing.

    >>> draft_of(np.array([[1, 1, 1]], np.uint16), np.array([[0, 3, 1]], np.uint32), np.array([[4, 0, 0]], np.uint16))
    array([[0, 2, 0]], dtype=uint16)
    """
    shown = model.copy()
    by_hand, taken = hand > 0, accepted > 0
    # Often there is nothing of the kind, and looking is cheaper than copying.
    if by_hand.any():
        np.copyto(shown, hand - 1, where=by_hand, casting="same_kind")
    if taken.any():
        np.copyto(shown, 0, where=taken)
    return shown


def changed_box(before: NDArray[Any], after: NDArray[Any]) -> Box | None:
    """The smallest box around all pixels in which two maps differ; ``None`` if they are equal.

    >>> changed_box(np.zeros((4, 5)), np.eye(4, 5, k=3))
    (slice(0, 2, None), slice(3, 5, None))
    """
    differs = before != after
    rows = np.flatnonzero(differs.any(axis=1))
    if not len(rows):
        return None
    tall = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(differs[tall].any(axis=0))
    return tall, slice(int(columns[0]), int(columns[-1]) + 1)


def whole_box(values: NDArray[Any]) -> Box:
    """All rows and columns of a slice."""
    return slice(0, values.shape[0]), slice(0, values.shape[1])
