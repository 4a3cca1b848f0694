"""Checks of one annotation's geometry, and of its area and box against that geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.export.coco.geometry import drawn_twice, rasterize_rings
from tcl_core.export.coco.rle import read_rle
from tcl_core.export.coco.tolerance import (
    EXACT_BOX_TOLERANCE,
    exact_area_tolerance,
    polygon_area_tolerance,
    polygon_box_tolerance,
)
from tcl_core.export.coco.validate.issues import Report, Severity, is_number
from tcl_core.export.coco.validate.rings import first_crossing

__all__ = ["OUTSIDE_TOLERANCE", "check_geometry"]

OUTSIDE_TOLERANCE = 0.5
"""Pixels by which a ring or a box may leave its image."""

# The rasterizer keeps five points for each pixel of border; a longer border is measured, not drawn.
_MAX_BORDER = 2e7


@dataclass(frozen=True)
class Extent:
    """What area and box are compared with: everything between two bounds is right, within the tolerance.

    Attributes:
        areas: smallest and largest right area in pixels.
        low: right boxes' smallest ``(left, top, right, bottom)``.
        high: their largest.
        border: length of all rings in pixels; ``None`` for run lengths, which are exact.
    """

    areas: tuple[float, float]
    low: tuple[float, ...]
    high: tuple[float, ...]
    border: float | None


def check_geometry(
    entry: Mapping[str, Any],
    location: str,
    size: tuple[int, int] | None,
    report: Report,
    *,
    needs_segmentation: bool = True,
) -> None:
    """Check ``segmentation``, ``area`` and ``bbox`` of an annotation.

    Args:
        entry: the annotation.
        location: its location in the file.
        size: ``(height, width)`` of its image; ``None`` where that is not known, then only the form is checked.
        report: receives the issues.
        needs_segmentation: whether the segmentation may be missing or empty, as in files of boxes.
    """
    boxed = not needs_segmentation and not entry.get("segmentation")
    extent = None if boxed else _segmentation(entry, location, size, report)
    area = report.number(entry, "area", location)
    if area is not None and area <= 0:
        severity: Severity = "error" if area < 0 else "warning"
        report.add(location, "bad-area", f"area is {area:.10g}; it must be positive", severity)
        area = None
    box = _box(entry, location, size, report)
    if boxed and area is not None and box is not None and area > box[2] * box[3] + polygon_area_tolerance(area, 0):
        # It may be that of a mask that is not in the file, but not more than the box holds.
        report.add(location, "area-mismatch", f"area is {area:.10g}, the box holds {box[2] * box[3]:.10g} pixels")
    if extent is None:
        return
    # Crowds are left out of every score, whatever their area and box.
    crowd: Severity | None = "warning" if entry.get("iscrowd") == 1 else None
    if area is not None:
        _compare_area(area, extent, location, report, crowd)
    if box is not None:
        _compare_box(box, extent, location, report, crowd)


def _segmentation(
    entry: Mapping[str, Any], location: str, size: tuple[int, int] | None, report: Report
) -> Extent | None:
    if "segmentation" not in entry:
        report.add(location, "missing-key", "segmentation is missing")
        return None
    segmentation = entry["segmentation"]
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, location, size, report)
    if isinstance(segmentation, list):
        return _rings(segmentation, location, size, report)
    kind = "null" if segmentation is None else type(segmentation).__name__
    report.add(location, "wrong-type", f"segmentation is {kind}; it must be a list of rings or RLE")
    return None


def _run_lengths(rle: Mapping[str, Any], location: str, size: tuple[int, int] | None, report: Report) -> Extent | None:
    missing = [key for key in ("size", "counts") if key not in rle]
    for key in missing:
        report.add(location, "missing-key", f"segmentation.{key} is missing")
    if missing:
        return None
    own = rle["size"]
    whole = isinstance(own, list) and len(own) == 2 and all(isinstance(n, int) and type(n) is not bool for n in own)
    if not whole:
        report.add(location, "wrong-type", "segmentation.size must be two whole numbers, height and width")
        return None
    if min(own) < 1 or (size is not None and tuple(own) != size):
        image = "" if size is None else f", the image is {size[0]} high and {size[1]} wide"
        report.add(location, "rle-size", f"segmentation.size says {own[0]} high and {own[1]} wide{image}")
        return None
    try:
        runs = read_rle(rle, (own[0], own[1]))
    except ValueError as error:
        report.add(location, "rle-undecodable", f"segmentation.counts: {error}")
        return None
    if runs.area == 0:
        report.add(location, "empty-geometry", "segmentation covers no pixels")
        return None
    if size is None:
        return None
    edges = _edges(*runs.bbox)
    return Extent((runs.area, runs.area), edges, edges, None)


def _rings(rings: list[Any], location: str, size: tuple[int, int] | None, report: Report) -> Extent | None:
    if not rings:
        report.add(location, "empty-segmentation", "segmentation is an empty list")
        return None
    if all(is_number(value) for value in rings):
        report.add(location, "wrong-type", "segmentation is one flat list of numbers; it must be a list of rings")
        return None
    checked = [_ring(ring, f"segmentation[{i}]", location, size, report) for i, ring in enumerate(rings)]
    points = [ring for ring in checked if ring is not None]
    if len(points) < len(rings) or size is None:
        return None
    border = float(sum(np.hypot(*(p - np.roll(p, 1, axis=0)).T).sum() for p in points))
    area = float(sum(abs(_signed_area(p)) for p in points))
    every = np.concatenate(points)
    edges = (*every.min(axis=0).tolist(), *every.max(axis=0).tolist())
    if border > _MAX_BORDER:
        return Extent((area, area), edges, edges, border)
    flat = [p.ravel().tolist() for p in points]
    drawn = rasterize_rings(flat, size)
    if drawn.area == 0:
        report.add(location, "empty-geometry", "segmentation covers no pixels once it is drawn")
        return None
    area -= drawn_twice(flat, drawn)
    pairs = list(zip(edges, _edges(*drawn.bbox), strict=True))
    low, high = tuple(min(pair) for pair in pairs), tuple(max(pair) for pair in pairs)
    return Extent((min(area, drawn.area), max(area, drawn.area)), low, high, border)


def _ring(
    ring: Any, field: str, location: str, size: tuple[int, int] | None, report: Report
) -> NDArray[np.float64] | None:
    """The ring's points ``[n, 2]``, or ``None`` where it cannot be drawn."""
    if not isinstance(ring, list) or not all(is_number(value) for value in ring):
        report.add(location, "wrong-type", f"{field} is not a flat list of numbers x0, y0, x1, y1, ...")
        return None
    if len(ring) % 2:
        report.add(location, "odd-coordinates", f"{field} has {len(ring)} coordinates; they come in pairs")
        return None
    points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        return None
    if len(np.unique(points, axis=0)) < 3:
        report.add(location, "too-few-points", f"{field} has fewer than three different points")
        return None
    if size is not None:
        beyond = np.maximum(-points, points - np.array([size[1], size[0]])).max(axis=1)
        worst = int(beyond.argmax())
        if beyond[worst] > OUTSIDE_TOLERANCE:
            x, y = points[worst]
            report.add(
                location,
                "polygon-outside",
                f"{field} reaches ({x:.10g}, {y:.10g}), outside the image of {size[1]}x{size[0]}",
            )
            return None
    crossing = first_crossing(points)
    if crossing is not None:
        report.add(location, "self-crossing", f"{field} crosses itself at ({crossing[0]:.10g}, {crossing[1]:.10g})")
        return None
    return points


def _box(
    entry: Mapping[str, Any], location: str, size: tuple[int, int] | None, report: Report
) -> tuple[float, float, float, float] | None:
    if "bbox" not in entry:
        report.add(location, "missing-key", "bbox is missing")
        return None
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        report.add(location, "wrong-type", "bbox is not four numbers x, y, width, height")
        return None
    x, y, width, height = (float(value) for value in box)
    if not all(math.isfinite(value) for value in (x, y, width, height)):
        return None
    if width <= 0 or height <= 0:
        report.add(location, "bbox-empty", f"bbox is {width:.10g} wide and {height:.10g} high")
        return None
    if size is not None:
        beyond = max(-x, -y, x + width - size[1], y + height - size[0])
        if beyond > OUTSIDE_TOLERANCE:
            report.add(
                location,
                "bbox-outside",
                f"bbox {_box_text(box)} extends beyond the image of {size[1]}x{size[0]} by {beyond:.10g}",
            )
            return None
    return x, y, width, height


def _compare_area(area: float, extent: Extent, location: str, report: Report, severity: Severity | None) -> None:
    low, high = extent.areas
    if extent.border is None:
        tolerance = exact_area_tolerance(area)
    else:
        tolerance = polygon_area_tolerance(area, extent.border)
    if not low - tolerance <= area <= high + tolerance:
        right = f"{low:.10g}" if low == high else f"{low:.10g} to {high:.10g}"
        report.add(
            location,
            "area-mismatch",
            f"area is {area:.10g}, the segmentation covers {right} pixels (tolerance {tolerance:.3g})",
            severity,
        )


def _compare_box(
    box: tuple[float, float, float, float], extent: Extent, location: str, report: Report, severity: Severity | None
) -> None:
    across = EXACT_BOX_TOLERANCE if extent.border is None else polygon_box_tolerance(box[2])
    down = EXACT_BOX_TOLERANCE if extent.border is None else polygon_box_tolerance(box[3])
    tolerances = (across, down, across, down)
    for edge, low, high, tolerance in zip(_edges(*box), extent.low, extent.high, tolerances, strict=True):
        if not low - tolerance <= edge <= high + tolerance:
            left, top, right, bottom = ((a + b) / 2 for a, b in zip(extent.low, extent.high, strict=True))
            around = _box_text([left, top, right - left, bottom - top])
            message = f"bbox is {_box_text(list(box))}, the segmentation's is {around}"
            report.add(location, "bbox-mismatch", message + _beyond_box(box, extent), severity)
            return


def _beyond_box(box: tuple[float, float, float, float], extent: Extent) -> str:
    """Where and how far polygons leave their box, as the end of a sentence; nothing for run lengths or inside."""
    if extent.border is None:
        return ""
    left, top, right, bottom = _edges(*box)
    beyond = {
        "left": left - extent.high[0],
        "top": top - extent.high[1],
        "right": extent.low[2] - right,
        "bottom": extent.low[3] - bottom,
    }
    side = max(beyond, key=beyond.__getitem__)
    if beyond[side] <= polygon_box_tolerance(box[2] if side in ("left", "right") else box[3]):
        return ""
    return f": the polygon extends beyond the bbox by {beyond[side]:.3g} pixels at its {side} side"


def _edges(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    return x, y, x + width, y + height


def _box_text(box: list[float]) -> str:
    return "[" + ", ".join(f"{value:.10g}" for value in box) + "]"


def _signed_area(points: NDArray[np.float64]) -> float:
    x, y = (points - points[0]).T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)
