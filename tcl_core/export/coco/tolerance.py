"""How far an annotation's area and box may lie from its geometry: one rule for the writer and for the checker."""

from __future__ import annotations

__all__ = ["EXACT_BOX_TOLERANCE", "exact_area_tolerance", "polygon_area_tolerance", "polygon_box_tolerance"]

EXACT_BOX_TOLERANCE = 1.0
"""Pixels by which each side of a box may miss a run-length mask: some writers count the last column in, some do not."""


def exact_area_tolerance(area: float) -> float:
    """Pixels by which an area may miss a run-length mask: 1 %, at least 1."""
    return max(1.0, 0.01 * area)


def polygon_area_tolerance(area: float, border: float) -> float:
    """Pixels by which an area may miss a polygon: 10 %, or a border displaced by a quarter of a pixel all along.

    Args:
        area: the annotation's area in pixels.
        border: length of all rings in pixels.
    """
    return max(1.0, 0.1 * area, 0.25 * border)


def polygon_box_tolerance(side: float) -> float:
    """Pixels by which an edge of a box may miss a polygon: 5 % of ``side``, the box's length that way, at least 0.75.

    Below one pixel on small objects, so that a box of corners ``x1, y1, x2, y2`` is not taken for one of ``x, y, width,
    height``.
    """
    return max(0.75, 0.05 * side)
