"""The run-length encoding of Label Studio's brush masks.

It is the "rle-pack" format: a bit stream with the number of values (32 bits), the width of a value (5 bits, less one)
and the widths of four kinds of run lengths (4 bits each, less one), then the runs. A run begins with a bit that says
whether one value is repeated or each is written out, and two bits for the kind of its length (less one). The values
are the four channels of an RGBA image, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["decode_brush", "encode_brush"]

_CHANNELS = 4
_ALPHA = 3
_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)
_LONGEST = 1 << _LENGTH_BITS[-1]
_HEADER_BITS = 32 + 5 + 4 * 4
_OPAQUE = 128


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask.

    Args:
        mask: bool ``[H, W]`` with at least one pixel.

    Returns:
        Bytes, 0 to 255 each.

    Example:
        >>> encode_brush(np.ones((1, 2), dtype=bool))
        [0, 0, 0, 8, 57, 27, 252, 255, 224]
    """
    flat = mask.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(np.concatenate((starts, [flat.size]))) * _CHANNELS
    values = np.where(flat[starts], 255, 0)
    pieces = -(-lengths // _LONGEST)
    sizes = np.full(int(pieces.sum()), _LONGEST)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    values = np.repeat(values, pieces)
    kind = np.searchsorted([1 << bits for bits in _LENGTH_BITS], sizes)
    length_bits = np.asarray(_LENGTH_BITS)[kind]
    code = ((0b100 | kind) << length_bits | (sizes - 1)) << _VALUE_BITS | values
    width = 3 + length_bits + _VALUE_BITS
    aligned = (code << (32 - width)).astype(">u4")
    bits = np.unpackbits(aligned.view(np.uint8)).reshape(-1, 32)
    runs = bits[np.arange(32) < width[:, None]]
    header = flat.size * _CHANNELS
    for number, length in ((_VALUE_BITS, 5), *((bits, 4) for bits in _LENGTH_BITS)):
        header = header << length | number - 1
    head = np.asarray([header >> shift & 1 for shift in reversed(range(_HEADER_BITS))], dtype=np.uint8)
    return np.packbits(np.concatenate((head, runs))).tolist()


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a mask; a pixel belongs to it where the image is more opaque than not.

    Args:
        rle: bytes, 0 to 255 each.
        size: ``(height, width)`` of the mask.

    Returns:
        bool ``[H, W]``.

    Raises:
        ValueError: these are no bytes, they end too early, or they do not hold an RGBA image of this size.

    Example:
        >>> decode_brush(encode_brush(np.array([[True, False]])), (1, 2)).tolist()
        [[True, False]]
    """
    if not all(isinstance(byte, int) and 0 <= byte <= 255 for byte in rle):
        raise ValueError("the brush mask contains a value that is not a byte")
    reader = _BitReader(bytes(rle))
    count = reader.read(32)
    if count != size[0] * size[1] * _CHANNELS:
        raise ValueError(
            f"the brush mask has {count} values, which does not fit an image of {size[1]} x {size[0]} pixels"
        )
    value_bits = reader.read(5) + 1
    lengths = [reader.read(4) + 1 for _ in range(4)]
    values = np.zeros(count, dtype=np.uint8)
    position = 0
    while position < count:
        repeated = reader.read(1)
        stop = min(position + 1 + reader.read(lengths[reader.read(2)]), count)
        if repeated:
            values[position:stop] = reader.read(value_bits)
            position = stop
        for place in range(position, stop):
            values[place] = reader.read(value_bits)
        position = stop
    return values.reshape(*size, _CHANNELS)[:, :, _ALPHA] >= _OPAQUE


class _BitReader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, bits: int) -> int:
        """The next bits as a number, most significant first."""
        first, last = self._position >> 3, (self._position + bits + 7) >> 3
        if last > len(self._data):
            raise ValueError("the brush mask ends in the middle of a run")
        self._position += bits
        number = int.from_bytes(self._data[first:last], "big") >> (last * 8 - self._position)
        return number & ((1 << bits) - 1)
