"""Default colors of labels."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator

__all__ = ["Color", "default_colors"]

Color = tuple[int, int, int]
"""Red, green and blue, each from 0 to 255."""


def default_colors() -> Iterator[Color]:
    """Distinct RGB colors without end; the n-th is always the same.

    Hues advance by the golden angle, so that any first few are far apart; brightness changes from color to color.

    Examples:
        >>> from itertools import islice
        >>> len(set(islice(default_colors(), 500)))
        500
    """
    seen: set[Color] = set()
    turn = 0
    while True:
        hue = (0.58 + turn * 0.6180339887498949) % 1.0
        saturation = (0.78, 0.62, 0.92)[turn % 3]
        value = (0.95, 0.78, 0.88)[(turn // 2) % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        color = (round(red * 255), round(green * 255), round(blue * 255))
        turn += 1
        if color not in seen:
            seen.add(color)
            yield color
