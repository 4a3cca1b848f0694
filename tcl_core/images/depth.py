"""Values of more than 8 bits as 8-bit values.

Cameras of 10, 12 or 14 bits often store their values in 16-bit files as they are, so that white is 4095 and not 65535.
Nothing in such a file says so but the values themselves.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

__all__ = ["DEPTHS", "depth_of", "is_deep_color", "mend_planes", "other_bytes", "scale", "stretch"]

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
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    numbers = np.nan_to_num(numbers, nan=low, neginf=low, posinf=high if high > low else low + 1)
    span = high - low
    scaled = (numbers - low) * (255.0 / span) if span > 0 else np.zeros_like(numbers)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


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


def other_bytes(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Decode an image of `is_deep_color` so that the lower 8 bits are kept.

    Pillow has no mode for 16-bit colors: its unpackers take the first or the second byte of each value, by the order of
    bytes that the file is said to have. Told the other order, they take the other byte.

    Args:
        image: opened, and not decoded.

    Returns:
        uint8 ``[H, W, 3 or 4]``.
    """
    gray = any(_raw_mode(tile.args) == _GRAY_WITH_OPACITY for tile in image.tile)
    image.tile = [
        tile._replace(args=_with_raw_mode(tile.args, _OTHER_BYTE[_raw_mode(tile.args)])) for tile in image.tile
    ]
    image.load()
    pixels = np.asarray(image)
    return pixels[..., [1, 1, 1, 3]] if gray else pixels


def _raw_mode(args: object) -> str:
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _with_raw_mode(args: object, mode: str) -> str | tuple[object, ...]:
    return (mode, *args[1:]) if isinstance(args, tuple) else mode
