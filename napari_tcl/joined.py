"""Channels that a viewer holds as separate arrays, as one array with a first axis of channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_tcl.slices import MAX_CHANNELS, SliceReader, scale_to_8_bit
from tcl_core.errors import ImageError

__all__ = ["JoinedChannels", "joined_reader"]


@dataclass(frozen=True)
class JoinedChannels:
    """Gray arrays of one shape as channels, each scaled to 8 bits by limits of its own when it is read.

    Attributes:
        arrays: array-likes with ``shape``, ``dtype`` and NumPy indexing.
        limits: of each, what becomes black and white; see `SliceReader`.

    Raises:
        ImageError: the shapes differ, or there are more than three.

    Examples:
        >>> dim, bright = np.full((2, 3), 10, np.uint16), np.full((2, 3), 1000, np.uint16)
        >>> joined = JoinedChannels((dim, bright), ((0, 20), (0, 1000)))
        >>> joined.shape, joined[1, 0].tolist()
        ((2, 2, 3), [255, 255, 255])
    """

    arrays: tuple[Any, ...]
    limits: tuple[tuple[float, float] | None, ...]

    def __post_init__(self) -> None:
        shapes = [tuple(array.shape) for array in self.arrays]
        if not 1 <= len(shapes) <= MAX_CHANNELS:
            raise ImageError(f"choose one to {MAX_CHANNELS} layers as channels, not {len(shapes)}")
        if any(shape != shapes[0] for shape in shapes):
            raise ImageError(f"the layers have the shapes {' and '.join(map(str, shapes))}; choose layers of one shape")

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of channels, then the shape of each."""
        return (len(self.arrays), *(int(length) for length in self.arrays[0].shape))

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """What is read."""
        return np.dtype(np.uint8)

    def __getitem__(self, selection: tuple[Any, ...]) -> NDArray[np.uint8]:
        """Part of one channel; the first index is its number."""
        channel, *rest = selection
        return scale_to_8_bit(np.asarray(self.arrays[channel][tuple(rest)]), self.limits[channel])


def joined_reader(arrays: Sequence[Any], limits: Sequence[tuple[float, float] | None]) -> SliceReader:
    """Slices of gray arrays that become red, green and blue in their order.

    Raises:
        ImageError: see `JoinedChannels`.
    """
    data = JoinedChannels(tuple(arrays), tuple(limits))
    return SliceReader(data, channel_axis=0, channels=tuple(range(len(arrays))), limits=(0, 255))
