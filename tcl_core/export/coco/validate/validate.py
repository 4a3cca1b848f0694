"""Checking any COCO file, with the location of every fault.

Tolerances: an area may miss run lengths by 1 % (at least 1 pixel), and a polygon by 10 % or by a quarter of a pixel
along its whole border; a box by 1 pixel, and by 5 % (at least 0.75 pixel). Polygons are measured both as drawn by
``pycocotools`` and as the area they enclose, and a value that fits either is right, since both are in use. Rings and
boxes may leave the image by half a pixel.

A ring that touches itself is right (that is how a hole is kept in COCO's polygons); one that goes through itself is
not.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcl_core.errors import CocoError, ImageError
from tcl_core.export.coco.validate.geometry_checks import check_geometry
from tcl_core.export.coco.validate.issues import Issue, Report, is_not_finite
from tcl_core.export.coco.validate.kinds import (
    Kind,
    check_caption,
    check_keypoint_category,
    check_keypoints,
    check_segments,
    kind_of,
)
from tcl_core.export.names import is_text
from tcl_core.images import image_size

__all__ = ["CocoCheck", "check_coco", "validate_coco"]

Sizes = dict[int, tuple[int, int] | None]
_SECTIONS = ("images", "categories", "annotations")
# Run lengths are 32-bit numbers.
_MAX_PIXELS = 2**32 - 1
# What can become a number that is not finite: the three literals, or an exponent of three digits.
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
_MAYBE_NOT_FINITE = re.compile(r"NaN|Infinity|\d[eE]\+?\d{3}|\d{300}")


@dataclass(frozen=True)
class CocoCheck:
    """What a check found.

    Attributes:
        kind: of the file; ``None`` where it could not be read so far.
        issues: in the order of the file.
    """

    kind: Kind | None
    issues: list[Issue]


def validate_coco(path: str | os.PathLike[str], images_dir: str | os.PathLike[str] | None = None) -> list[Issue]:
    """Check a COCO file, and return its issues.

    Args:
        path: the JSON file, of instances, boxes, keypoints, panoptic segments or captions.
        images_dir: folder that file names are relative to. If given, each image must exist and have, after EXIF
            rotation, the size stated in the file.

    Returns:
        Errors and warnings; an empty list if there are none.

    Raises:
        CocoError: the file or the folder does not exist or cannot be read.
    """
    return check_coco(path, images_dir).issues


def check_coco(path: str | os.PathLike[str], images_dir: str | os.PathLike[str] | None = None) -> CocoCheck:
    """Check a COCO file of instances, boxes, keypoints, panoptic segments or captions.

    Args:
        path: the JSON file.
        images_dir: folder that file names are relative to. If given, each image must exist and have, after EXIF
            rotation, the size stated in the file. Only headers are read.

    Returns:
        The kind of the file and the issues, whose codes are those of `tcl_core.export.coco.validate.issues.CODES`.

    Raises:
        CocoError: the file or the folder does not exist or cannot be read.
    """
    file = Path(path)
    folder = None if images_dir is None else Path(images_dir)
    if folder is not None and not folder.is_dir():
        raise CocoError(f"{folder} is not a folder; give the folder that contains the images")
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CocoError(f"{file} cannot be read: {error.strerror}") from error
    report = Report()
    text = _decode(raw, report)
    data = None if text is None else _parse(text, report)
    if text is None or data is None:
        return CocoCheck(None, report.issues)
    if _MAYBE_NOT_FINITE.search(text):
        _report_non_finite(data, report)
    kind = kind_of(data)
    sections = _sections(data, kind, report)
    sizes = _check_images(sections.get("images"), folder, report)
    categories = _check_categories(sections.get("categories"), report)
    annotations = sections.get("annotations")
    if kind is Kind.PANOPTIC:
        _check_panoptic(annotations, sizes, categories, report)
    elif kind is Kind.CAPTIONS:
        for _, location, entry in _annotations(annotations, sizes, report):
            check_caption(entry, location, report)
    else:
        _check_annotations(annotations, sizes, categories, kind, report)
    return CocoCheck(kind, report.issues)


def _decode(raw: bytes, report: Report) -> str | None:
    if not raw.strip():
        report.add("file", "empty-file", "the file is empty")
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        report.add(f"byte {error.start}", "not-utf8", f"the file is not UTF-8: {error.reason}")
        return None


def _parse(text: str, report: Report) -> dict[str, Any] | None:
    repeats = _Repeats()
    try:
        data = json.loads(text, object_pairs_hook=repeats.take)
    except json.JSONDecodeError as error:
        report.add(f"line {error.lineno} column {error.colno}", "invalid-json", f"the file is not JSON: {error.msg}")
        return None
    except (RecursionError, ValueError) as error:
        report.add("file", "invalid-json", f"the file cannot be read as JSON: {error}")
        return None
    if isinstance(data, list) and data and isinstance(data[0], dict) and "image_id" in data[0]:
        report.add(
            "file",
            "wrong-type",
            "the file is a list of results, not a data set; use 'tcl-annotate score --gt FILE --dt FILE'",
        )
        return None
    if not isinstance(data, dict):
        report.add("file", "wrong-type", f"the file contains a {type(data).__name__}; it must be an object")
        return None
    repeats.report(data, report)
    return data


class _Repeats:
    """Objects that have a key twice."""

    def __init__(self) -> None:
        # The objects themselves are held, so that none of them gives its identity to another.
        self._found: dict[int, tuple[dict[str, Any], list[str]]] = {}

    def take(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Build one object of the file."""
        entry = dict(pairs)
        if len(entry) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self._found[id(entry)] = entry, [key for key, count in counts.items() if count > 1]
        return entry

    def report(self, data: dict[str, Any], report: Report) -> None:
        """Report them with their places; one that a repeated key hides is not in ``data`` any more."""
        if self._found:
            self._walk(data, "file", "", report)

    def _walk(self, value: Any, location: str, inner: str, report: Report) -> None:
        if isinstance(value, dict):
            for key in self._found.get(id(value), ({}, []))[1]:
                name = f"{inner}.{key}".lstrip(".")
                report.add(location, "duplicate-key", f"{name!r} appears twice; only the last one counts")
            for key, child in value.items():
                if location == "file" and not inner and key in _SECTIONS and isinstance(child, list):
                    for index, entry in enumerate(child):
                        self._walk(entry, _location(key, index, entry), "", report)
                else:
                    self._walk(child, location, f"{inner}.{key}", report)
        elif isinstance(value, list):
            for index, child in enumerate(value):
                self._walk(child, location, f"{inner}[{index}]", report)


def _sections(data: dict[str, Any], kind: Kind, report: Report) -> dict[str, list[Any]]:
    """The three lists that are there; what is not a list is reported."""
    found: dict[str, list[Any]] = {}
    for key in _SECTIONS:
        if key not in data:
            # Captions are of no category.
            if not (kind is Kind.CAPTIONS and key == "categories"):
                report.add("file", "missing-key", f"{key} is missing")
        elif not isinstance(data[key], list):
            report.add(key, "wrong-type", f"{key} is a {type(data[key]).__name__}; it must be a list")
        else:
            found[key] = data[key]
    for key, wanted in (("info", dict), ("licenses", list)):
        if key in data and not isinstance(data[key], wanted):
            report.add(key, "wrong-type", f"{key} is a {type(data[key]).__name__}; it must be a {wanted.__name__}")
    return found


def _entries(section: str, entries: list[Any] | None, report: Report) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for index, entry in enumerate(entries or []):
        location = _location(section, index, entry)
        if isinstance(entry, dict):
            yield index, location, entry
        else:
            report.add(location, "wrong-type", f"the entry is a {type(entry).__name__}; it must be an object")


def _check_images(
    entries: list[Any] | None, folder: Path | None, report: Report
) -> dict[int, tuple[int, int] | None] | None:
    """Size (height, width) of each image by id, ``None`` where the file states no usable one."""
    if entries is None:
        return None
    sizes: dict[int, tuple[int, int] | None] = {}
    ids: dict[int, int] = {}
    names: dict[str, int] = {}
    for index, location, entry in _entries("images", entries, report):
        identity = report.identity(entry, location, ids, index)
        name = report.text(entry, "file_name", location)
        if name is not None and names.setdefault(name, index) != index:
            report.add(location, "duplicate-file-name", f"file_name {name!r} is already used by images[{names[name]}]")
        size = _stated_size(entry, location, report)
        if identity is not None:
            sizes.setdefault(identity, size)
        if name is not None and _names_inside(name, location, report) and folder is not None:
            _check_image(folder, name, size, location, report)
    return sizes


def _names_inside(name: str, location: str, report: Report) -> bool:
    """Whether a file name is text and stays in the folder of the images, on any system; reported if not."""
    if not is_text(name):
        report.add(location, "file-name-not-text", f"file_name {name!r} is not valid Unicode; rename the file")
    elif _ABSOLUTE.match(name):
        report.add(location, "absolute-file-name", f"file_name {name!r} is absolute; it must be relative to the folder")
    elif ".." in re.split(r"[/\\]", name):
        report.add(location, "outside-file-name", f"file_name {name!r} may leave the image folder with '..'")
    else:
        return True
    return False


def _stated_size(entry: dict[str, Any], location: str, report: Report) -> tuple[int, int] | None:
    width, height = report.integer(entry, "width", location), report.integer(entry, "height", location)
    if width is None or height is None:
        return None
    if width < 1 or height < 1:
        report.add(location, "image-size", f"the size is {width}x{height}; both must be at least 1")
        return None
    if width * height > _MAX_PIXELS:
        report.add(location, "image-size", f"the size is {width}x{height}; RLE supports at most {_MAX_PIXELS} pixels")
        return None
    return height, width


def _check_image(folder: Path, name: str, size: tuple[int, int] | None, location: str, report: Report) -> None:
    try:
        image = folder / name
        there = image.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        report.add(location, "image-missing", f"file_name {name!r}: no such file in {str(folder)!r}")
        return
    try:
        height, width = image_size(image)
    except ImageError as error:
        report.add(location, "image-unreadable", str(error))
        return
    if size is not None and size != (height, width):
        report.add(
            location,
            "image-size-differs",
            f"the size is {size[1]}x{size[0]}, file_name {name!r} is {width}x{height} after EXIF rotation",
        )


def _check_categories(entries: list[Any] | None, report: Report) -> dict[int, int | None] | None:
    """How many keypoints each category has by id, ``None`` where it names none."""
    if entries is None:
        return None
    ids: dict[int, int] = {}
    counts: dict[int, int | None] = {}
    names: dict[str, int] = {}
    for index, location, entry in _entries("categories", entries, report):
        identity = report.identity(entry, location, ids, index)
        count = check_keypoint_category(entry, location, report)
        if identity is not None:
            counts.setdefault(identity, count)
        name = report.text(entry, "name", location)
        if name is not None and names.setdefault(name, index) != index:
            report.add(
                location, "duplicate-category-name", f"name {name!r} is already used by categories[{names[name]}]"
            )
    return counts


def _annotations(
    entries: list[Any] | None, sizes: Sizes | None, report: Report, *, with_ids: bool = True
) -> Iterator[tuple[int | None, str, dict[str, Any]]]:
    """Image, location and entry of each annotation; its id and image are checked.

    A list of images that is missing altogether makes no reference to it wrong.
    """
    ids: dict[int, int] = {}
    for index, location, entry in _entries("annotations", entries, report):
        if with_ids:
            harm = "COCOeval treats as 'no match', so that a found object counts as missed"
            report.identity(entry, location, ids, index, zero=harm)
        image = report.integer(entry, "image_id", location)
        if image is not None and sizes is not None and image not in sizes:
            report.add(location, "unknown-image", f"image_id is {image}; no image has this id")
        yield image, location, entry


def _check_category_of(
    entry: Mapping[str, Any], location: str, categories: dict[int, int | None] | None, report: Report
) -> int | None:
    """The id of an entry's category, which must be known if there is a list of them."""
    category = report.integer(entry, "category_id", location)
    if category is not None and categories is not None and category not in categories:
        report.add(location, "unknown-category", f"category_id is {category}; no category has this id")
    return category


def _check_panoptic(
    entries: list[Any] | None, sizes: Sizes | None, categories: dict[int, int | None] | None, report: Report
) -> None:
    for image, location, entry in _annotations(entries, sizes, report, with_ids=False):
        name = report.text(entry, "file_name", location)
        if name is not None:
            _names_inside(name, location, report)
        size = None if image is None or sizes is None else sizes.get(image)
        for place, segment in check_segments(entry, location, report):
            _check_category_of(segment, place, categories, report)
            check_geometry(segment, place, size, report, needs_segmentation=False)
            _check_crowd(segment, place, report)


def _check_annotations(
    entries: list[Any] | None,
    sizes: Sizes | None,
    categories: dict[int, int | None] | None,
    kind: Kind,
    report: Report,
) -> None:
    for image, location, entry in _annotations(entries, sizes, report):
        category = _check_category_of(entry, location, categories, report)
        size = None if image is None or sizes is None else sizes.get(image)
        check_geometry(entry, location, size, report, needs_segmentation=kind is Kind.INSTANCES)
        if kind is Kind.KEYPOINTS:
            count = None if category is None or categories is None else categories.get(category)
            check_keypoints(entry, location, size, count, report)
        _check_crowd(entry, location, report)
        if "score" in entry:
            report.number(entry, "score", location)


def _check_crowd(entry: Mapping[str, Any], location: str, report: Report) -> None:
    if "iscrowd" not in entry:
        report.add(location, "missing-key", "iscrowd is missing")
    elif is_not_finite(entry["iscrowd"]):
        return
    elif isinstance(entry["iscrowd"], bool) or entry["iscrowd"] not in (0, 1):
        shown = repr(entry["iscrowd"])[:60]
        report.add(location, "bad-iscrowd", f"iscrowd is {shown}; it must be 0 or 1")


def _report_non_finite(data: dict[str, Any], report: Report) -> None:
    """Report each NaN and infinity wherever it stands; the checks of single fields pass over them."""
    for section, value in data.items():
        if section in _SECTIONS and isinstance(value, list):
            for index, entry in enumerate(value):
                for inner, number in _non_finite(entry, ""):
                    report.add(_location(section, index, entry), "non-finite", f"{inner.lstrip('.')} is {number}")
        else:
            for inner, number in _non_finite(value, section):
                report.add(inner, "non-finite", f"the value is {number}")


def _non_finite(value: Any, location: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _non_finite(inner, f"{location}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _non_finite(inner, f"{location}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield location, value


def _location(section: str, index: int, entry: Any) -> str:
    location = f"{section}[{index}]"
    identity = entry.get("id") if isinstance(entry, dict) else None
    return f"{location} (id {identity})" if isinstance(identity, int) and identity.bit_length() < 100 else location
