"""The 8-bit bilinear resize with which the published figures were measured, in integers and equal to the last bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["resize_bilinear"]

_WEIGHT_BITS = 11
# Values of an intermediate row are shifted before the vertical product, and once more after it.
_ROW_SHIFT, _PRODUCT_SHIFT, _LAST_SHIFT = 4, 16, 2
_STRIP_VALUES = 1 << 20


def resize_bilinear(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize as ``cv2.resize`` does by default (``INTER_LINEAR`` on 8 bits): half-pixel centers, no antialias.

    OpenCV computes in integers with weights of 11 bits, and drops bits of the intermediate rows; a float formula
    differs by one gray level in places, which is enough to move one arg-max pixel in a hundred. The result is the same
    on every machine. Memory does not grow with the image beyond its own size and the result's.

    Args:
        image: uint8 ``[H, W, C]``.
        size: height and width to resize to, each at least 1.

    Returns:
        uint8 ``[h, w, C]``; the image itself where it has that size.

    Raises:
        ValueError: the image is not such an array, or a side is not positive.

    Example:
        >>> resize_bilinear(np.array([[[0], [100]]], np.uint8), (1, 4)).ravel().tolist()
        [0, 25, 75, 100]
    """
    if image.dtype != np.uint8 or image.ndim != 3 or not image.size or min(size) < 1:
        raise ValueError(f"cannot resize {image.dtype} {list(image.shape)} to {size[0]}x{size[1]} pixels")
    if image.shape[:2] == tuple(size):
        return image
    (height, width), channels = size, image.shape[2]
    rows, below, row_weights = _positions(height, image.shape[0])
    row_weights = row_weights[:, :, None]
    columns, right, column_weights = _positions(width, image.shape[1])
    # Of the columns alone: what lies outside of the image has no part, instead of being repeated with its weight.
    outside = (columns < 0) | (columns >= image.shape[1] - 1)
    column_weights[:, outside] = np.array([[1 << _WEIGHT_BITS], [0]])
    rows, below = (np.clip(places, 0, image.shape[0] - 1) for places in (rows, below))
    columns, right = (np.clip(places, 0, image.shape[1] - 1) for places in (columns, right))
    # One line of all channels, so that a strip is gathered and multiplied in long runs.
    channel = np.arange(channels)
    left_values, right_values = ((places[:, None] * channels + channel).ravel() for places in (columns, right))
    left_weights, right_weights = column_weights.repeat(channels, axis=1).astype(np.int32)
    lines = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    result = np.empty((height, width * channels), np.uint8)
    step = max(1, _STRIP_VALUES // (width * channels))
    for start in range(0, height, step):
        strip = slice(start, min(start + step, height))
        needed, place = np.unique(np.concatenate([rows[strip], below[strip]]), return_inverse=True)
        source = lines[needed]
        across = np.take(source, left_values, axis=1).astype(np.int32)
        across *= left_weights
        other = np.take(source, right_values, axis=1).astype(np.int32)
        other *= right_weights
        across += other
        across >>= _ROW_SHIFT
        count = strip.stop - strip.start
        total = across[place[:count]]
        total *= row_weights[0, strip]
        total >>= _PRODUCT_SHIFT
        lower = across[place[count:]]
        lower *= row_weights[1, strip]
        lower >>= _PRODUCT_SHIFT
        total += lower
        total += 1 << (_LAST_SHIFT - 1)
        total >>= _LAST_SHIFT
        result[strip] = total
    return result.reshape(height, width, channels)


def _positions(length: int, source: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """First and second source pixel of each pixel of the result, and their weights int32 ``[2, length]``."""
    scale = 1 / (length / source)
    place = ((np.arange(length) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(place)
    share = place - first
    weights = np.stack([np.float32(1) - share, share]) * np.float32(1 << _WEIGHT_BITS)
    first = first.astype(np.intp)
    return first, first + 1, np.rint(weights).astype(np.int32)
