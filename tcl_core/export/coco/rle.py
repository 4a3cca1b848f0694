"""Run-length encoding of masks, straight from a region's crop, and a decoder that trusts nothing.

COCO counts a mask's pixels column by column, starting with the run of zeros. ``pycocotools`` encodes only whole
images; a region that covers a thousandth of its image is encoded here from its crop in time proportional to the
crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["MOST_PIXELS", "Runs", "counts_of_crop", "decode_counts", "encode_counts", "encode_crop", "read_rle"]

MOST_PIXELS = (1 << 32) - 1
"""Of an image with masks: ``pycocotools`` counts in 32 bits."""

# A count is below 2**32; with five bits a character (one of them the sign) it never needs more than this.
_MAX_CHARS_PER_COUNT = 7
_PIXELS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Runs:
    """A decoded mask, kept as runs.

    Attributes:
        counts: int64 ``[n]``; lengths of the runs of zeros and ones in turn, column by column, zeros first.
        size: ``(height, width)`` of the image in pixels.
    """

    counts: NDArray[np.int64]
    size: tuple[int, int]

    def pixels(self) -> NDArray[np.bool_]:
        """The mask, bool ``[height, width]``.

        Example:
            >>> Runs(np.array([1, 2, 1]), (2, 2)).pixels().astype(int).tolist()
            [[0, 1], [1, 0]]
        """
        flags = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(flags, self.counts).reshape(self.size[::-1]).T

    @property
    def area(self) -> int:
        """Number of pixels of the mask."""
        return int(self.counts[1::2].sum())

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """Tight box ``(x, y, width, height)`` in pixels; all zero for an empty mask."""
        height = self.size[0]
        ends = np.cumsum(self.counts)
        lengths = self.counts[1::2]
        last = ends[1::2][lengths > 0] - 1
        first = last - lengths[lengths > 0] + 1
        if not last.size:
            return 0, 0, 0, 0
        left, right = int(first[0] // height), int(last[-1] // height)
        wraps = bool(np.any(first // height != last // height))
        top = 0 if wraps else int((first % height).min())
        bottom = height - 1 if wraps else int((last % height).max())
        return left, top, right - left + 1, bottom - top + 1


def counts_of_crop(crop: NDArray[np.bool_], origin: tuple[int, int], size: tuple[int, int]) -> NDArray[np.int64]:
    """Counts of a mask that is given only inside a crop of its image.

    Args:
        crop: bool ``[h, w]``.
        origin: ``(x, y)`` of the crop's upper left pixel.
        size: ``(height, width)`` of the image; the crop lies inside.

    Returns:
        int64 ``[n]`` counts, zeros first, their sum ``height * width``.

    Raises:
        ValueError: the crop is not two-dimensional or sticks out of the image.

    Example:
        >>> counts_of_crop(np.ones((2, 1), dtype=bool), (1, 0), (3, 2)).tolist()
        [3, 2, 1]
    """
    height, width = size
    x, y = origin
    if crop.ndim != 2 or x < 0 or y < 0 or y + crop.shape[0] > height or x + crop.shape[1] > width:
        raise ValueError(f"a crop of shape {crop.shape} at {origin} does not lie in an image of {height}x{width}")
    sides: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    # A few columns at a time, because what is made of each pixel here is several times the mask.
    at_once = max(1, _PIXELS_AT_ONCE // max(crop.shape[0], 1))
    for left in range(0, crop.shape[1], at_once):
        part = crop[:, left : left + at_once]
        columns = np.zeros((part.shape[1], part.shape[0] + 2), dtype=np.int8)
        columns[:, 1:-1] = part.T
        steps = np.diff(columns, axis=1)
        for side, step in zip(sides, (1, -1), strict=True):
            column, row = np.nonzero(steps == step)
            side.append((column + left + x) * height + row + y)
    starts, ends = (np.concatenate([np.zeros(0, np.int64), *side]) for side in sides)
    # A run down to the last row goes on at the top of the next column: the encoding knows no columns.
    joined = ends[:-1] == starts[1:]
    starts = starts[np.concatenate(([True], ~joined))] if starts.size else starts
    ends = ends[np.concatenate((~joined, [True]))] if ends.size else ends
    edges = np.empty(2 * starts.size + 2, dtype=np.int64)
    edges[0], edges[-1] = 0, height * width
    edges[1:-1:2], edges[2:-1:2] = starts, ends
    counts = np.diff(edges)
    return counts[:-1] if counts.size > 1 and counts[-1] == 0 else counts


def encode_counts(counts: NDArray[np.int64], size: tuple[int, int]) -> dict[str, Any]:
    """Compress counts to COCO's string form, JSON-ready: ``{"size": [h, w], "counts": str}``."""
    height, width = size
    encoded = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def encode_crop(crop: NDArray[np.bool_], origin: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """COCO RLE of a mask given only inside a crop of its image.

    Identical to ``pycocotools.mask.encode`` of the whole image's mask.

    Args:
        crop: bool ``[h, w]``.
        origin: ``(x, y)`` of the crop's upper left pixel.
        size: ``(height, width)`` of the image.

    Returns:
        ``{"size": [height, width], "counts": str}``.

    Raises:
        ValueError: the crop sticks out of the image.

    Example:
        >>> encode_crop(np.ones((1, 1), dtype=bool), (0, 0), (1, 1))
        {'size': [1, 1], 'counts': '01'}
    """
    return encode_counts(counts_of_crop(crop, origin, size), size)


def decode_counts(text: str) -> NDArray[np.int64]:
    """Decode COCO's compressed counts without handing unchecked bytes to C.

    Five bits a character, least significant first, bit 5 says that more follow, the sign is the top bit of the last;
    from the fourth number on each is a difference to the one before the last.

    Args:
        text: the ``counts`` string.

    Returns:
        int64 ``[n]`` counts, all at least 0.

    Raises:
        ValueError: a character outside ``0``..``o``, a number that does not end or is too long, or a negative count.

    Example:
        >>> decode_counts("132").tolist()
        [1, 3, 2]
    """
    try:
        chars = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("the counts contain a character that is not ASCII") from None
    if not chars.size:
        raise ValueError("the counts are empty")
    if chars.min() < 0 or chars.max() > 63:
        raise ValueError("the counts contain a character outside '0'..'o'")
    last = (chars & 0x20) == 0
    if not last[-1]:
        raise ValueError("the counts end in the middle of a number")
    stops = np.flatnonzero(last)
    begins = np.concatenate(([0], stops[:-1] + 1))
    lengths = stops - begins + 1
    if lengths.max() > _MAX_CHARS_PER_COUNT:
        raise ValueError("the counts contain a number that is too long")
    shifts = 5 * (np.arange(chars.size) - np.repeat(begins, lengths))
    values = np.add.reduceat((chars & 0x1F) << shifts, begins)
    negative = (chars[stops] & 0x10) != 0
    values = np.where(negative, values - (np.int64(1) << (5 * lengths)), values)
    counts = values.copy()
    counts[1::2] = np.cumsum(values[1::2])
    counts[2::2] = np.cumsum(values[2::2])
    if counts.min() < 0:
        raise ValueError("the counts contain a negative run")
    return counts


def read_rle(rle: Mapping[str, Any], size: tuple[int, int]) -> Runs:
    """Read a COCO RLE, compressed or not, and check that it fills its image.

    Args:
        rle: a mapping with ``size`` and ``counts`` (string or list of ints).
        size: ``(height, width)`` of the image.

    Returns:
        The mask's runs.

    Raises:
        ValueError: ``counts`` is of the wrong type, does not decode, has a negative run or does not sum to height x
            width.
    """
    counts = rle.get("counts")
    if isinstance(counts, str):
        decoded = decode_counts(counts)
    elif isinstance(counts, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in counts):
        if any(n < 0 for n in counts):
            raise ValueError("the counts contain a negative run")
        if any(n > size[0] * size[1] for n in counts):
            raise ValueError("the counts contain a run longer than the image")
        decoded = np.asarray(counts, dtype=np.int64)
    else:
        raise ValueError("the counts are neither a string nor a list of whole numbers")
    total = int(decoded.sum())
    if total != size[0] * size[1]:
        raise ValueError(f"the counts sum to {total}, the image has {size[0] * size[1]} pixels")
    return Runs(decoded, size)
