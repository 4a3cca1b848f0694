"""From arrays as viewers hold them to the 8-bit RGB images that the model sees.

A viewer's array may be RGB or gray, deeper than 8 bits, have channels along any axis, and be a stack over time or
depth, in memory or lazy (dask, zarr). `SliceReader` gives its two-dimensional slices one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ImageError

__all__ = ["MAX_CHANNELS", "Index", "SliceReader", "axis_of", "scale_to_8_bit"]

MAX_CHANNELS = 3
"""An image is shown to the model as red, green and blue, so at most three channels can be chosen."""

Index = tuple[int, ...]
"""Place of a slice along the leading axes of a stack; ``()`` for a single image."""

_WHITE = 255


@dataclass(frozen=True)
class SliceReader:
    """The two-dimensional images of an array.

    Attributes:
        data: array-like with ``shape``, ``dtype`` and NumPy indexing.
        rgb: the last axis holds red, green, blue and perhaps opacity.
        channel_axis: axis of ``data`` that holds channels (counted from 0), or ``None``.
        channels: which channels become gray (one), red and green (two) or red, green and blue (three).
        limits: values that become black and white; ``None`` takes the range of the number format for unsigned
            integers, [0, 1] for floats within it, and the slice's own range for all else. RGB of 8 bits is taken
            as it is.

    Raises:
        ImageError: the axes or channels do not fit the array, or it has no pixel.

    Examples:
        >>> stack = np.zeros((5, 2, 30, 40), np.uint16)
        >>> reader = SliceReader(stack, channel_axis=1, channels=(0, 1))
        >>> reader.stack_shape, reader.size, reader.read((4,)).shape
        ((5,), (30, 40), (30, 40, 3))
    """

    data: Any
    rgb: bool = False
    channel_axis: int | None = None
    channels: tuple[int, ...] = (0,)
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.data.shape)
        if self.rgb and (len(shape) < 3 or shape[-1] not in (3, 4)):
            raise ImageError(f"an RGB image needs a last axis of size 3 or 4, but the array has the shape {shape}")
        if self.rgb and self.channel_axis is not None:
            raise ImageError("an RGB image already has channels; set the channel axis to none")
        planes = len(shape) - self.rgb - (self.channel_axis is not None)
        if planes < 2:
            raise ImageError(f"this array has the shape {shape}, which leaves fewer than two axes for the image")
        if self.channel_axis is not None:
            self._check_channels(shape)
        if 0 in shape:
            raise ImageError(f"this array has the shape {shape}, so it has no pixels")
        if np.dtype(self.data.dtype).kind not in "buif":
            raise ImageError(f"images of type {self.data.dtype} are not supported; use real numbers")

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        axis = self.channel_axis
        if axis is None or not 0 <= axis < len(shape):
            raise ImageError(f"there is no channel axis {axis} in an array of shape {shape}")
        if not 1 <= len(self.channels) <= MAX_CHANNELS:
            raise ImageError(f"choose one to {MAX_CHANNELS} channels, not {len(self.channels)}")
        wrong = [channel for channel in self.channels if not 0 <= channel < shape[axis]]
        if wrong:
            raise ImageError(f"there is no channel {wrong[0]}; axis {axis} has the channels 0 to {shape[axis] - 1}")

    @property
    def _spatial(self) -> tuple[int, ...]:
        """Axes of ``data`` that are neither channels nor RGB; the last two are rows and columns."""
        axes = range(len(self.data.shape) - self.rgb)
        return tuple(axis for axis in axes if axis != self.channel_axis)

    @property
    def stack_axes(self) -> tuple[int, ...]:
        """Axes of ``data`` that the places of slices count along."""
        return self._spatial[:-2]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a slice in pixels."""
        rows, columns = self._spatial[-2:]
        return int(self.data.shape[rows]), int(self.data.shape[columns])

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Lengths of the leading axes; empty for a single image."""
        return tuple(int(self.data.shape[axis]) for axis in self.stack_axes)

    def indices(self) -> Iterator[Index]:
        """Places of all slices in reading order."""
        return product(*(range(length) for length in self.stack_shape))

    def read(self, index: Sequence[int] = ()) -> NDArray[np.uint8]:
        """One slice as the model sees it.

        Args:
            index: one number for each leading axis.

        Returns:
            uint8 ``[H, W, 3]``, RGB, contiguous. Opacity is composited on white; gray is repeated.

        Raises:
            ImageError: there is no such slice.
        """
        place = tuple(int(number) for number in index)
        inside = len(place) == len(self.stack_shape) and all(
            0 <= number < length for number, length in zip(place, self.stack_shape, strict=True)
        )
        if not inside:
            raise ImageError(f"there is no slice {place} in a stack of shape {self.stack_shape}")
        if self.rgb:
            return _flatten(np.asarray(self.data[place]), self.limits)
        gray = [scale_to_8_bit(self._plane(place, channel), self.limits) for channel in self._chosen]
        if len(gray) == 1:
            gray *= MAX_CHANNELS
        while len(gray) < MAX_CHANNELS:
            gray.append(np.zeros_like(gray[0]))
        return np.stack(gray, axis=-1)

    @property
    def _chosen(self) -> tuple[int | None, ...]:
        return (None,) if self.channel_axis is None else self.channels

    def _plane(self, place: Index, channel: int | None) -> NDArray[Any]:
        selection: list[int | slice] = [slice(None)] * len(self.data.shape)
        for axis, number in zip(self.stack_axes, place, strict=True):
            selection[axis] = number
        if channel is not None and self.channel_axis is not None:
            selection[self.channel_axis] = channel
        return np.asarray(self.data[tuple(selection)])


def axis_of(text: str, ndim: int) -> int:
    """The axis that a text names, counted from 0 or, with a minus, from the end.

    Raises:
        ImageError: an array of so many axes has no such axis.

    Example:
        >>> axis_of("2", 4), axis_of("-1", 4)
        (2, 3)
    """
    axis = int(text)
    if not -ndim <= axis < ndim:
        raise ImageError(f"there is no channel axis {axis}; the layer has the axes 0 to {ndim - 1}")
    return axis % ndim


def scale_to_8_bit(values: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """Scale numbers to 0 to 255, rounded; what lies outside the limits becomes black or white, NaN black.

    Args:
        values: booleans, integers or floats of any shape.
        limits: see `SliceReader`.

    Returns:
        uint8 of the same shape.

    Examples:
        >>> scale_to_8_bit(np.array([0, 1000, 4000], np.uint16), (0, 2000)).tolist()
        [0, 128, 255]
        >>> scale_to_8_bit(np.array([0.0, 0.5, np.nan])).tolist()
        [0, 128, 0]
    """
    if values.dtype == np.bool_:
        return np.where(values, np.uint8(_WHITE), np.uint8(0))
    low, high = _own_limits(values) if limits is None else (float(limits[0]), float(limits[1]))
    if values.dtype == np.uint8 and (low, high) == (0, _WHITE):
        return values
    if not high > low:
        return np.where(values > low, np.uint8(_WHITE), np.uint8(0))
    # float32 holds 16-bit integers exactly and takes half the memory of float64.
    precise = np.float32 if values.dtype.itemsize <= 2 else np.float64
    scaled = (np.nan_to_num(values.astype(precise), nan=low, posinf=high, neginf=low) - low) * (_WHITE / (high - low))
    # Not np.rint, which rounds halves to even.
    return np.floor(np.clip(scaled, 0, _WHITE) + 0.5).astype(np.uint8)


def _own_limits(values: NDArray[Any]) -> tuple[float, float]:
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return 0.0, float(np.iinfo(values.dtype).max)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (0.0, 1.0) if values.dtype.kind == "f" and low >= 0 and high <= 1 else (low, high)


def _flatten(pixels: NDArray[Any], limits: tuple[float, float] | None) -> NDArray[np.uint8]:
    """RGB or RGBA to 8-bit RGB on white."""
    if pixels.dtype == np.uint8:
        limits = None
    colors = np.ascontiguousarray(scale_to_8_bit(pixels[..., :3], limits))
    if pixels.shape[-1] == 3:
        return colors
    opacity = scale_to_8_bit(pixels[..., 3:]).astype(np.uint16)
    blended = colors * opacity + _WHITE * (_WHITE - opacity)
    return ((blended + _WHITE // 2) // _WHITE).astype(np.uint8)
