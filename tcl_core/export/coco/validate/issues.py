"""What a check of a COCO file finds, and readers of single fields that report instead of raising."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CODES", "Issue", "Report", "is_not_finite", "is_number"]

CODES: dict[str, str] = {
    "absolute-file-name": "a file name is an absolute path",
    "area-mismatch": "the area is not that of the geometry",
    "bad-area": "the area is zero or negative",
    "bad-iscrowd": "iscrowd is neither 0 nor 1",
    "bbox-empty": "the box has no width or height",
    "bbox-mismatch": "the box does not lie around the geometry",
    "bbox-outside": "the box leaves the image",
    "duplicate-category-name": "two categories have one name",
    "duplicate-file-name": "two images have one file name",
    "duplicate-id": "an id is there twice in its list",
    "duplicate-key": "an object has a key twice; all but the last are lost",
    "empty-file": "the file holds nothing",
    "empty-geometry": "the geometry covers no pixel",
    "empty-name": "a name is empty",
    "empty-segmentation": "there is no ring",
    "file-name-not-text": "a file name holds bytes that are not UTF-8",
    "image-size": "a width or height is below 1, or the image is too large for run lengths",
    "invalid-json": "the file is not JSON",
    "missing-key": "a key is missing",
    "negative-id": "an id is negative",
    "non-finite": "a number is NaN or infinite, which is not JSON",
    "not-utf8": "the file is not UTF-8",
    "odd-coordinates": "a ring has an odd count of coordinates",
    "outside-file-name": "a file name leads out of the folder by ..",
    "image-missing": "the image's file is not there",
    "image-size-differs": "the image's size is another after EXIF rotation",
    "image-unreadable": "the image's file cannot be read",
    "polygon-outside": "a ring leaves the image",
    "rle-size": "the run-length encoding is of another size than its image",
    "rle-undecodable": "the run-length encoding does not decode",
    "self-crossing": "a ring crosses itself",
    "too-few-points": "a ring has less than three different points",
    "unknown-category": "no category has this id",
    "unknown-image": "no image has this id",
    "wrong-type": "a value is of the wrong type",
    "zero-id": "an id is 0",
}
"""Every code an issue can have, and what it means."""


@dataclass(frozen=True)
class Issue:
    """One fault of a COCO file.

    Attributes:
        location: where, such as ``annotations[12] (id 13)``, indices from 0.
        code: one of `CODES`.
        message: the field and what is wrong with it.

    Example:
        >>> print(Issue("annotations[12] (id 13)", "bad-iscrowd", "iscrowd is 2; it must be 0 or 1"))
        annotations[12] (id 13): iscrowd is 2; it must be 0 or 1 [bad-iscrowd]
    """

    location: str
    code: str
    message: str

    def __str__(self) -> str:
        """The issue as one line that any terminal can show, whatever characters the file holds."""
        line = f"{self.location}: {self.message} [{self.code}]"
        return line.encode("utf-8", "backslashreplace").decode("utf-8")


class Report:
    """Issues so far."""

    def __init__(self) -> None:
        self.issues: list[Issue] = []

    def add(self, location: str, code: str, message: str) -> None:
        """Note one issue."""
        self.issues.append(Issue(location, code, message))

    def integer(self, entry: Mapping[str, Any], key: str, location: str) -> int | None:
        """A whole number, or ``None`` after reporting that it is missing or something else."""
        value = self._present(entry, key, location)
        if value is None or is_not_finite(value):
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.add(location, "wrong-type", f"{key} is {_shown(value)}; it must be a whole number")
            return None
        return value

    def number(self, entry: Mapping[str, Any], key: str, location: str) -> float | None:
        """A finite number, or ``None`` after reporting that it is missing or something else."""
        value = self._present(entry, key, location)
        if value is None or is_not_finite(value):
            return None
        if not is_number(value):
            self.add(location, "wrong-type", f"{key} is {_shown(value)}; it must be a number")
            return None
        return float(value)

    def text(self, entry: Mapping[str, Any], key: str, location: str) -> str | None:
        """A text that is not empty, or ``None`` after reporting."""
        value = self._present(entry, key, location)
        if value is None:
            return None
        if not isinstance(value, str):
            self.add(location, "wrong-type", f"{key} is {_shown(value)}; it must be a text")
            return None
        if not value.strip():
            self.add(location, "empty-name", f"{key} is empty")
            return None
        return value

    def identity(self, entry: Mapping[str, Any], location: str, seen: dict[int, int], index: int) -> int | None:
        """An entry's id, checked to be positive and new; ``seen`` maps ids to the index of their first use."""
        value = self.integer(entry, "id", location)
        if value is None:
            return None
        if value == 0:
            self.add(location, "zero-id", "id is 0, which COCOeval and many loaders take for 'none'; count from 1")
        elif value < 0:
            self.add(location, "negative-id", f"id is {value}; count from 1")
        if value in seen:
            self.add(location, "duplicate-id", f"id {value} is that of entry [{seen[value]}] already")
        else:
            seen[value] = index
        return value

    def _present(self, entry: Mapping[str, Any], key: str, location: str) -> Any:
        if key not in entry:
            self.add(location, "missing-key", f"{key} is missing")
            return None
        if entry[key] is None:
            self.add(location, "wrong-type", f"{key} is null")
        return entry[key]


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number that a double can hold (NaN and infinity count, they are reported elsewhere)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def is_not_finite(value: Any) -> bool:
    """Whether a JSON value is NaN or infinite; such values are reported by one pass over the whole file."""
    return isinstance(value, float) and not math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float) and not _is_huge(value) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 1000
