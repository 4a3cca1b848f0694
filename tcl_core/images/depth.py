"""Values of more than 8 bits as 8-bit values.

Cameras of 10, 12 or 14 bits often store their values in 16-bit files as they are, so that white is 4095 and not 65535.
Nothing in such a file says so but the values themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

__all__ = ["DEPTHS", "depth_of", "is_deep_color", "load_other_bytes", "mend_planes", "scale", "stretch"]

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners use in 16-bit files."""
_ROWS_AT_ONCE = 256
_TIFF_BITS, _TIFF_PLANAR, _TIFF_SEPARATE = 258, 284, 2
_PLANES = ("R", "G", "B", "A")
_FOREIGN = "B" if sys.byteorder == "little" else "L"
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX", *_PLANES)
    for order, other in (("L", "B"), ("B", "L"), ("N", _FOREIGN))
}
# Gray with opacity is unpacked in one order only; its four bytes are those of an RGBA pixel, too.
_GRAY_WITH_OPACITY = "LA;16B"
_OTHER_BYTE[_GRAY_WITH_OPACITY] = "RGBA"


def depth_of(highest: int) -> int:
    """How many bits the values of a 16-bit file use, by their highest.

    >>> depth_of(4095), depth_of(4096), depth_of(65535), depth_of(0)
    (12, 14, 16, 8)
    """
    return next(depth for depth in DEPTHS if highest < 1 << depth)


def scale(values: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Unsigned integers of ``bits`` bits to 8 bits, rounded to nearest, a few rows at a time; higher values are white.

    >>> scale(np.array([[0, 2048, 4095, 9999]]), 12)
    array([[  0, 128, 255, 255]], dtype=uint8)
    """
    white = (1 << bits) - 1
    gray = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS_AT_ONCE):
        rows = np.clip(values[top : top + _ROWS_AT_ONCE].astype(np.int64), 0, white)
        gray[top : top + _ROWS_AT_ONCE] = (rows * 255 + white // 2) // white
    return gray


def stretch(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Values without a defined white to 8 bits (the rule in `tcl_core.images.load_image`)."""
    lows, highs = [], []
    for part in _parts(values):
        finite = part[np.isfinite(part)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    low, high = (min(lows), max(highs)) if lows else (0.0, 1.0)
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    span = high - low
    gray = np.zeros(values.shape, dtype=np.uint8)
    if span > 0:
        for place, part in enumerate(_parts(values)):
            numbers = np.nan_to_num(part.astype(np.float64), nan=low, neginf=low, posinf=high)
            scaled = np.clip((numbers - low) * (255.0 / span), 0, 255)
            gray[place * _ROWS_AT_ONCE : (place + 1) * _ROWS_AT_ONCE] = np.rint(scaled)
    return gray


def _parts(values: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """A few rows at a time."""
    for top in range(0, len(values), _ROWS_AT_ONCE):
        yield values[top : top + _ROWS_AT_ONCE]


def is_deep_color(image: ImageFile.ImageFile) -> bool:
    """Whether a color image that is not decoded yet has 16 bits, of which Pillow will keep the upper 8."""
    if image.format == "TIFF" and image.tag_v2.get(_TIFF_PLANAR) == _TIFF_SEPARATE:  # type: ignore[attr-defined]
        # Of compressed planes Pillow's decoder takes the upper bytes, whatever it is told.
        return all(_raw_mode(tile.args)[:1] in _PLANES and tile.codec_name == "raw" for tile in image.tile)
    return bool(image.tile) and all(_raw_mode(tile.args) in _OTHER_BYTE for tile in image.tile)


def mend_planes(image: ImageFile.ImageFile) -> None:
    """Let Pillow read a TIFF whose 16-bit colors lie in planes, uncompressed; it would take each byte for a value.

    Args:
        image: opened, and not decoded; any other image stays as it is.
    """
    if image.format != "TIFF":
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(_TIFF_PLANAR) != _TIFF_SEPARATE or set(tags.get(_TIFF_BITS, ())) != {16}:
        return
    order = "L" if tags.prefix == b"II" else "B"
    image.tile = [
        tile._replace(args=_with_raw_mode(tile.args, f"{_raw_mode(tile.args)};16{order}"))
        if tile.codec_name == "raw" and _raw_mode(tile.args) in _PLANES
        else tile
        for tile in image.tile
    ]


def load_other_bytes(image: ImageFile.ImageFile) -> bool:
    """Decode an image of `is_deep_color` so that the lower 8 bits are kept.

    Pillow has no mode for 16-bit colors: its unpackers take the first or the second byte of each value, by the order of
    bytes that the file is said to have. Told the other order, they take the other byte.

    Args:
        image: opened, and not decoded.

    Returns:
        Whether it is gray with opacity, whose lower bytes are then the second and the fourth of four channels.
    """
    gray = any(_raw_mode(tile.args) == _GRAY_WITH_OPACITY for tile in image.tile)
    image.tile = [
        tile._replace(args=_with_raw_mode(tile.args, _OTHER_BYTE[_raw_mode(tile.args)])) for tile in image.tile
    ]
    image.load()
    return gray


def _raw_mode(args: object) -> str:
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_raw_mode(args: object, mode: str) -> str | tuple[object, ...]:
    return (mode, *args[1:]) if isinstance(args, tuple) else mode
