"""What a check of a COCO file finds, and readers of single fields that report instead of raising."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "CODES",
    "WARNINGS",
    "Issue",
    "IssueGroup",
    "Report",
    "Severity",
    "group_issues",
    "is_not_finite",
    "is_number",
]

Severity = Literal["error", "warning"]
"""``error``: a reader crashes, loses or misreads data, or scores are wrong; ``warning``: odd, and harmless to most."""

CODES: dict[str, str] = {
    "absolute-file-name": "a file name is an absolute path",
    "area-mismatch": "the area differs from that of the geometry",
    "bad-area": "the area is zero or negative",
    "bad-keypoints": "the number of keypoints is wrong, or a visibility is unknown",
    "bad-iscrowd": "iscrowd is neither 0 nor 1",
    "bad-skeleton": "an edge of a skeleton does not connect two points of its category",
    "bbox-empty": "the box has no width or height",
    "bbox-mismatch": "the box differs from that of the geometry",
    "bbox-outside": "the box extends beyond the image",
    "duplicate-category-name": "two categories have the same name",
    "duplicate-file-name": "two images have the same file name",
    "duplicate-id": "an id appears twice in its list",
    "duplicate-key": "an object has a key twice; only the last one counts",
    "empty-file": "the file is empty",
    "empty-geometry": "the geometry covers no pixels",
    "empty-name": "a name is empty",
    "empty-segmentation": "the list of rings is empty",
    "file-name-not-text": "a file name contains bytes that are not UTF-8",
    "image-size": "a width or height is below 1, or the image is too large for RLE",
    "invalid-json": "the file is not JSON",
    "keypoint-outside": "a labeled point is outside the image",
    "keypoints-count": "num_keypoints differs from the number of labeled points",
    "missing-key": "a key is missing",
    "negative-id": "an id is negative",
    "non-finite": "a number is NaN or infinite, which is not JSON",
    "not-utf8": "the file is not UTF-8",
    "odd-coordinates": "a ring has an odd count of coordinates",
    "outside-file-name": "a file name leaves the folder with ..",
    "image-missing": "the image file does not exist",
    "image-size-differs": "the size of the image file differs, after EXIF rotation",
    "image-unreadable": "the image file cannot be read",
    "polygon-outside": "a ring extends beyond the image",
    "rle-size": "the size of the RLE differs from that of its image",
    "rle-undecodable": "the RLE cannot be decoded",
    "segment-id": "a segment's id does not fit into the colors of a PNG",
    "self-crossing": "a ring crosses itself",
    "too-few-points": "a ring has fewer than three different points",
    "unknown-category": "no category has this id",
    "unknown-image": "no image has this id",
    "wrong-type": "a value has the wrong type",
    "zero-id": "the id of an annotation or segment is 0",
}
"""Every code an issue can have, and what it means."""

WARNINGS = frozenset(
    {
        "area-mismatch",
        "bad-skeleton",
        "duplicate-category-name",
        "duplicate-file-name",
        "empty-segmentation",
        "keypoint-outside",
        "keypoints-count",
        "negative-id",
        "self-crossing",
    }
)
"""Codes of issues that are warnings; all others are errors."""

_SHOWN_ONE_BY_ONE = 3
_PARTICULAR = re.compile(r"'[^']*'|[-+]?\d[\d.,ex+-]*|\bnan\b|\binf\b")


@dataclass(frozen=True)
class Issue:
    """One fault of a COCO file.

    Attributes:
        location: where, such as ``annotations[12] (id 13)``, indices from 0.
        code: one of `CODES`.
        message: the field and what is wrong with it.
        severity: ``"error"`` or ``"warning"``.

    Example:
        >>> print(Issue("annotations[12] (id 13)", "bad-iscrowd", "iscrowd is 2; it must be 0 or 1"))
        annotations[12] (id 13): iscrowd is 2; it must be 0 or 1 [bad-iscrowd]
    """

    location: str
    code: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        """The issue as one line that any terminal can show, whatever characters the file holds."""
        line = f"{self.location}: {self.message} [{self.code}]"
        return line.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class IssueGroup:
    """Issues that say the same of several entries of one list.

    Attributes:
        issues: in the order of the file; at least one.
    """

    issues: tuple[Issue, ...]

    @property
    def severity(self) -> Severity:
        """Of each of them."""
        return self.issues[0].severity

    def lines(self) -> list[str]:
        """A few issues as they are; of more the first, how many there are, and where the last one is.

        >>> IssueGroup(tuple(Issue(f"annotations[{i}]", "zero-id", "id is 0") for i in range(1200))).lines()
        ['annotations[0]: id is 0 [zero-id]', '    and 1,199 similar ones, the last at annotations[1199]']
        """
        if len(self.issues) <= _SHOWN_ONE_BY_ONE:
            return [str(issue) for issue in self.issues]
        rest = f"    and {len(self.issues) - 1:,} similar ones, the last at {self.issues[-1].location}"
        return [str(self.issues[0]), rest.encode("utf-8", "backslashreplace").decode("utf-8")]


def group_issues(issues: Sequence[Issue]) -> list[IssueGroup]:
    """Put together what differs only in numbers and quoted names; errors come first.

    Args:
        issues: in the order of the file.

    Returns:
        Groups in the order of their first issues, those of errors before those of warnings.
    """
    groups: dict[tuple[str, str, str, str], list[Issue]] = {}
    for issue in issues:
        section = issue.location.partition("[")[0]
        key = (issue.severity, issue.code, section, _PARTICULAR.sub("#", issue.message))
        groups.setdefault(key, []).append(issue)
    return sorted((IssueGroup(tuple(group)) for group in groups.values()), key=lambda group: group.severity)


class Report:
    """Issues so far."""

    def __init__(self) -> None:
        self.issues: list[Issue] = []

    def add(self, location: str, code: str, message: str, severity: Severity | None = None) -> None:
        """Note one issue, by default with the severity of its code."""
        self.issues.append(Issue(location, code, message, severity or ("warning" if code in WARNINGS else "error")))

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
            self.add(location, "wrong-type", f"{key} is {_shown(value)}; it must be a string")
            return None
        if not value.strip():
            self.add(location, "empty-name", f"{key} is empty")
            return None
        return value

    def identity(
        self, entry: Mapping[str, Any], location: str, seen: dict[int, int], index: int, *, zero: str | None = None
    ) -> int | None:
        """An entry's id, checked to be new; ``seen`` maps ids to the index of their first use.

        ``zero`` says what harm an id of 0 does, which is none to images and categories.
        """
        value = self.integer(entry, "id", location)
        if value is None:
            return None
        if value == 0 and zero is not None:
            self.add(location, "zero-id", f"id is 0, which {zero}; ids start at 1")
        elif value < 0:
            self.add(location, "negative-id", f"id is {value}; ids start at 1")
        if value in seen:
            self.add(location, "duplicate-id", f"id {value} is already used by entry [{seen[value]}]")
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
