"""The kinds of COCO files: what each holds, and the checks that are a kind's own.

COCO's data format (https://cocodataset.org/#format-data) has instances, keypoints, panoptic segments and captions;
files for detectors hold boxes alone. What one kind needs is not missing in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from tcl_core.export.coco.validate.issues import Report, is_number

__all__ = ["Kind", "check_caption", "check_keypoint_category", "check_keypoints", "check_segments", "kind_of"]

_VALUES_OF_POINT = 3
_VISIBILITIES = (0, 1, 2)
_HIGHEST_SEGMENT_ID = 256**3 - 1


class Kind(StrEnum):
    """What the annotations of a file are; the value is what people call it."""

    INSTANCES = "instances"
    BOXES = "boxes only"
    KEYPOINTS = "keypoints"
    PANOPTIC = "panoptic segments"
    CAPTIONS = "captions"


def kind_of(data: Mapping[str, Any]) -> Kind:
    """Recognize the kind of a file by what its annotations hold; one without any is of instances.

    >>> kind_of({"annotations": [{"bbox": [0, 0, 2, 2], "segmentation": []}]}).value
    'boxes only'
    """
    annotations = _objects(data.get("annotations"))
    if any("segments_info" in entry for entry in annotations):
        return Kind.PANOPTIC
    if not annotations:
        return Kind.INSTANCES
    if all("caption" in entry and not entry.keys() & {"bbox", "segmentation", "category_id"} for entry in annotations):
        return Kind.CAPTIONS
    categories = _objects(data.get("categories"))
    if any("keypoints" in entry for entry in annotations) and any("keypoints" in entry for entry in categories):
        return Kind.KEYPOINTS
    if any("bbox" in entry for entry in annotations) and not any(entry.get("segmentation") for entry in annotations):
        return Kind.BOXES
    return Kind.INSTANCES


def check_caption(entry: Mapping[str, Any], location: str, report: Report) -> None:
    """Check an annotation that is a caption."""
    report.text(entry, "caption", location)


def check_keypoint_category(entry: Mapping[str, Any], location: str, report: Report) -> int | None:
    """Check the names and the skeleton of a category; returns how many points it has."""
    names = entry.get("keypoints")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        report.add(location, "wrong-type", "keypoints is not a list of names")
        return None
    skeleton = entry.get("skeleton", [])
    pairs = skeleton if isinstance(skeleton, list) else [None]
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(_is_index(end, len(names)) for end in pair)):
            report.add(location, "bad-skeleton", f"skeleton has an edge that is not two numbers from 1 to {len(names)}")
            break
    return len(names)


def check_keypoints(
    entry: Mapping[str, Any], location: str, size: tuple[int, int] | None, count: int | None, report: Report
) -> None:
    """Check the points of an annotation.

    Args:
        entry: the annotation.
        location: its location in the file.
        size: ``(height, width)`` of its image, where that is known.
        count: points of its category, where that is known.
        report: receives the issues.
    """
    points = entry.get("keypoints")
    if points is None:
        report.add(location, "missing-key", "keypoints is missing")
        return
    if not isinstance(points, list) or not all(is_number(value) for value in points):
        report.add(location, "wrong-type", "keypoints is not a flat list of numbers x0, y0, v0, x1, y1, v1, ...")
        return
    expected = None if count is None else _VALUES_OF_POINT * count
    if len(points) % _VALUES_OF_POINT or (expected is not None and len(points) != expected):
        wanted = "three for each point" if expected is None else f"{expected}, three for each of {count} points"
        report.add(location, "bad-keypoints", f"keypoints has {len(points)} numbers; it must have {wanted}")
        return
    triples = list(zip(points[::3], points[1::3], points[2::3], strict=True))
    if any(v not in _VISIBILITIES for *_, v in triples):
        report.add(location, "bad-keypoints", "keypoints has a visibility that is not 0, 1 or 2")
        return
    labeled = [(x, y) for x, y, v in triples if v > 0]
    stated = report.integer(entry, "num_keypoints", location)
    if stated is not None and stated != len(labeled):
        report.add(
            location, "keypoints-count", f"num_keypoints is {stated}, but {len(labeled)} points are labeled (v above 0)"
        )
    if size is not None:
        for x, y in labeled:
            if math.isfinite(x) and math.isfinite(y) and not (0 <= x <= size[1] and 0 <= y <= size[0]):
                report.add(
                    location,
                    "keypoint-outside",
                    f"keypoints has ({x:.10g}, {y:.10g}), outside the image of {size[1]}x{size[0]}",
                )
                break


def check_segments(entry: Mapping[str, Any], location: str, report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Check the list of segments of a panoptic annotation and their ids; yields each segment with its location."""
    segments = entry.get("segments_info")
    if segments is None:
        report.add(location, "missing-key", "segments_info is missing")
        return
    if not isinstance(segments, list):
        report.add(location, "wrong-type", f"segments_info is a {type(segments).__name__}; it must be a list")
        return
    seen: dict[int, int] = {}
    for index, segment in enumerate(segments):
        place = f"{location}, segments_info[{index}]"
        if not isinstance(segment, dict):
            report.add(place, "wrong-type", f"the entry is a {type(segment).__name__}; it must be an object")
            continue
        identity = report.identity(segment, place, seen, index, zero="stands for pixels without a segment in the PNG")
        if identity is not None and identity > _HIGHEST_SEGMENT_ID:
            report.add(
                place, "segment-id", f"id is {identity}; the colors of the PNG can encode at most {_HIGHEST_SEGMENT_ID}"
            )
        yield place, segment


def _objects(entries: Any) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= count
