"""From Pillow's decoded image to 8-bit RGB, a few rows at a time: a copy of a large image would take its size again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from tcl_core.images.depth import depth_of, load_other_bytes, scale, stretch

__all__ = ["AUTOMATIC", "deep_color_to_rgb", "to_rgb"]

AUTOMATIC: Literal["auto"] = "auto"
"""Bits of the values are those that they suggest."""

_ROWS = 256


def deep_color_to_rgb(
    image: ImageFile.ImageFile, again: Callable[[], ImageFile.ImageFile], bit_depth: int | None
) -> NDArray[np.uint8] | None:
    """A color image of 16-bit values scaled by all its bits, uint8 ``[H, W, 3]``.

    Args:
        image: decoded.
        again: opens it once more.
        bit_depth: bits that are used; ``None`` takes those that the values suggest.

    Returns:
        ``None`` where the upper 8 bits are all that is shown.
    """
    if bit_depth is None and depth_of(_highest(image) << 8 | 0xFF) == 16:
        return None
    other = again()
    gray = load_other_bytes(other)
    depth = bit_depth or depth_of(max(int(values[..., :3].max()) for _, values in _deep_values(image, other, gray)))
    key = image.info.get("transparency")
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for rows, values in _deep_values(image, other, gray):
        opacity = np.full((*values.shape[:2], 1), 255, dtype=np.uint8)
        if values.shape[2] == 4:
            opacity = (values[..., 3:] >> 8).astype(np.uint8)
        if isinstance(key, tuple):
            opacity[(values[..., :3] == key).all(axis=2)] = 0
        pixels[rows] = _on_white(np.concatenate([scale(values[..., :3], depth), opacity], axis=2))
    return pixels


def _deep_values(image: Image.Image, other: Image.Image, gray: bool) -> Iterator[tuple[slice, NDArray[np.uint16]]]:
    """Values of 16 bits, uint16 ``[rows, W, 3 or 4]``, of their upper bytes and the other ones."""
    for rows, upper in _strips(image):
        lower = np.asarray(other.crop((0, rows.start, other.width, rows.stop)))
        # Gray with opacity was unpacked as if its four bytes were colors.
        lower = lower[..., [1, 1, 1, 3]] if gray else lower
        yield rows, np.asarray(upper).astype(np.uint16) << 8 | lower


def _highest(image: Image.Image) -> int:
    """The highest value of the first three channels."""
    return max(int(np.asarray(part)[..., :3].max()) for _, part in _strips(image))


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """A decoded image a few rows at a time: a copy of a large one takes as much memory again, in any mode."""
    for top in range(0, image.height, _ROWS):
        rows = slice(top, min(top + _ROWS, image.height))
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def _on_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(rgba)
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image, mask=image.getchannel("A"))
    return np.array(canvas)


def to_rgb(
    image: Image.Image, bits: int | None, depth: int | Literal["auto"] | None, white_is_zero: bool
) -> NDArray[np.uint8]:
    """A decoded image of 8 bits, or of gray values, uint8 ``[H, W, 3]``; what is transparent lies on white.

    Args:
        image: decoded.
        bits: of gray values that have a defined white; ``None`` for others.
        depth: bits that these use, or ``"auto"`` for those that they suggest; ``None`` for all.
        white_is_zero: whether gray values are inverted.
    """
    if image.mode.startswith(("I", "F")):
        values = np.concatenate([np.asarray(part) for _, part in _strips(image)])
        key = image.info.get("transparency")
        if bits is not None and depth is not None:
            # The value that stands for "nothing here" may be higher than any other.
            bits = depth_of(int(values.max(where=values != key, initial=0))) if depth == AUTOMATIC else depth
        gray = stretch(values) if bits is None else scale(values, bits)
        if white_is_zero:
            gray = 255 - gray
        if isinstance(key, int):
            gray[values == key] = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            image.info["transparency"] = tuple(value >> 8 for value in key)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for rows, part in _strips(image):
        if part.has_transparency_data:
            # Pillow converts the pre-multiplied and palette modes to straight alpha only step by step.
            straight = part.convert("LA") if part.mode == "La" else part
            pixels[rows] = _on_white(np.asarray(straight.convert("RGBA")))
        else:
            pixels[rows] = np.asarray(part.convert("RGB"))
    return pixels
