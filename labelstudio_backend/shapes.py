"""Label Studio's regions as masks: what an annotator drew, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from labelstudio_backend.brush_rle import decode_brush
from tcl_core.polygons.rasterize import polygon_to_mask

__all__ = [
    "cropped_mask",
    "ellipse_points",
    "finite_number",
    "image_size_of",
    "mask_of_value",
    "polygon_of_value",
    "rectangle_points",
]

_ELLIPSE_CORNERS = 64
_MOST_PIXELS = 1 << 31


def finite_number(value: object) -> float:
    """A number of a request or an export, which may hold anything that JSON can write.

    Raises:
        ValueError: it is no number, not finite, or too large for a float.

    Example:
        >>> finite_number("12.5"), finite_number(3)
        (12.5, 3.0)
    """
    try:
        number = float(cast(Any, value))
    except (TypeError, OverflowError):
        raise ValueError("it is not a number") from None
    if not math.isfinite(number):
        raise ValueError("it is not finite")
    return number


def image_size_of(result: Mapping[str, Any]) -> tuple[int, int]:
    """``(height, width)`` of the image that a region was drawn on.

    Args:
        result: as Label Studio writes it, with ``original_height`` and ``original_width``.

    Raises:
        ValueError: they are missing, or no image has this size.
    """
    try:
        height, width = (int(finite_number(result[f"original_{side}"])) for side in ("height", "width"))
    except (KeyError, ValueError):
        raise ValueError("the size of its image is missing") from None
    if min(height, width) < 1 or height * width > _MOST_PIXELS:
        raise ValueError("no image has the size that it was drawn at")
    return height, width


def mask_of_value(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask of a region.

    Args:
        kind: ``polygonlabels``, ``brushlabels`` or ``rectanglelabels``.
        value: the result's ``value``.
        size: ``(height, width)`` of the upright image.

    Returns:
        bool ``[H, W]``.

    Raises:
        ValueError: the kind is another one, or the value does not hold such a region.
    """
    (left, top), part = cropped_mask(kind, value, size)
    mask = np.zeros(size, dtype=bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return mask


def cropped_mask(
    kind: str, value: Mapping[str, Any], size: tuple[int, int]
) -> tuple[tuple[int, int], NDArray[np.bool_]]:
    """The mask of a region without most of what lies around it, so that a small region of a large image costs little.

    Args:
        kind: ``polygonlabels``, ``brushlabels`` or ``rectanglelabels``.
        value: the result's ``value``.
        size: ``(height, width)`` of the upright image.

    Returns:
        ``(x, y)`` of the mask's first pixel in the image, and the mask, bool ``[h, w]``, which may be empty.

    Raises:
        ValueError: the kind is another one, or the value does not hold such a region.
    """
    if kind == "brushlabels":
        rle = value.get("rle")
        if not isinstance(rle, Sequence) or isinstance(rle, str):
            raise ValueError("the brush region has no rle")
        mask = decode_brush(rle, size)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return (0, 0), np.zeros((0, 0), dtype=bool)
        return (int(columns[0]), int(rows[0])), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    polygon = polygon_of_value(kind, value, size)
    if not polygon.is_valid:
        # A ring with a bridge to its hole touches itself; pycocotools fills it rightly, shapely would tear it apart.
        parts = [Polygon(np.clip(np.asarray(polygon.exterior.coords), 0, (size[1], size[0])))]
    else:
        inside = shapely.get_parts(shapely.intersection(polygon, shapely.box(0, 0, size[1], size[0])))
        parts = [part for part in inside if isinstance(part, Polygon) and not part.is_empty]
    if not parts:
        return (0, 0), np.zeros((0, 0), dtype=bool)
    low_x, low_y, high_x, high_y = shapely.total_bounds(parts)
    left, top = math.floor(low_x), math.floor(low_y)
    mask = np.zeros((min(math.ceil(high_y) + 1, size[0]) - top, min(math.ceil(high_x) + 1, size[1]) - left), dtype=bool)
    for part in parts:
        mask |= polygon_to_mask(part, mask.shape, origin=(left, top))
    return (left, top), mask


def polygon_of_value(kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> Polygon:
    """Outline of a polygon or rectangle region in pixel-edge coordinates, as it was drawn.

    Args:
        kind: ``polygonlabels`` or ``rectanglelabels``.
        value: the result's ``value``, in percent.
        size: ``(height, width)`` of the upright image.

    Raises:
        ValueError: the kind is another one, or the value does not hold such a region.
    """
    if kind == "rectanglelabels":
        return Polygon(rectangle_points(value, size))
    if kind != "polygonlabels":
        raise ValueError(f"regions of type {kind!r} have no mask")
    points = value.get("points")
    if not isinstance(points, Sequence) or len(points) < 3:
        raise ValueError("the polygon has fewer than three points")
    try:
        xy = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("the polygon's points are not pairs of numbers") from None
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise ValueError("the polygon's points are not pairs of numbers")
    return Polygon(xy / 100 * (size[1], size[0]))


def rectangle_points(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Corners of a rectangle, float64 ``[4, 2]`` (x, y) in pixels; it is turned clockwise about its first corner.

    Args:
        value: ``x``, ``y``, ``width``, ``height`` in percent, ``rotation`` in degrees.
        size: ``(height, width)`` of the upright image.

    Raises:
        ValueError: a number is missing or not finite.

    Example:
        >>> rectangle_points({"x": 0, "y": 50, "width": 50, "height": 50}, (2, 4)).tolist()
        [[0.0, 1.0], [2.0, 1.0], [2.0, 2.0], [0.0, 2.0]]
    """
    (x, y, width, height), turn = _read_numbers(value, ("x", "y", "width", "height"), "rectangle")
    corner = np.array([x * size[1], y * size[0]])
    across = np.array([math.cos(turn), math.sin(turn)]) * width * size[1]
    down = np.array([-math.sin(turn), math.cos(turn)]) * height * size[0]
    return np.stack([corner, corner + across, corner + across + down, corner + down])


def ellipse_points(value: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Corners of a polygon that follows an ellipse, float64 ``[64, 2]`` (x, y) in pixels; it is turned clockwise.

    Args:
        value: ``x`` and ``y`` of the center, ``radiusX`` and ``radiusY``, in percent, and ``rotation`` in degrees.
        size: ``(height, width)`` of the upright image.

    Raises:
        ValueError: a number is missing or not finite.

    Example:
        >>> value = {"x": 50, "y": 50, "radiusX": 50, "radiusY": 25}
        >>> ellipse_points(value, (4, 2)).round(6).min(axis=0).tolist()
        [0.0, 1.0]
    """
    (x, y, across, down), turn = _read_numbers(value, ("x", "y", "radiusX", "radiusY"), "ellipse")
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_CORNERS, endpoint=False)
    right, below = np.cos(angles) * across * size[1], np.sin(angles) * down * size[0]
    turned = [right * math.cos(turn) - below * math.sin(turn), right * math.sin(turn) + below * math.cos(turn)]
    return np.stack(turned, axis=1) + (x * size[1], y * size[0])


def _read_numbers(value: Mapping[str, Any], keys: tuple[str, ...], what: str) -> tuple[list[float], float]:
    """Numbers that are in percent, as shares, and the rotation in radians."""
    try:
        shares = [finite_number(value[key]) / 100 for key in keys]
        return shares, math.radians(finite_number(value.get("rotation") or 0))
    except KeyError:
        raise ValueError(f"the {what} lacks {', '.join(keys[:-1])} or {keys[-1]}") from None
    except ValueError:
        raise ValueError(f"the {what} contains something that is not a finite number") from None
