"""Whether an image's file is still the one that was labeled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcl_core.errors import ImageError
from tcl_core.images import RemoteFile
from tcl_core.images.remote import RemoteStatus

__all__ = ["Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """An image's file as it was when it was labeled.

    Attributes:
        size: bytes.
        sha256: of the content, in hexadecimal digits.
        modified: nanoseconds since 1970; ``None`` where that is not known, as in finished outputs, which are the same
            for every copy of the images.
    """

    size: int
    sha256: str
    modified: int | None = None

    @classmethod
    def of(cls, path: Path, before: os.stat_result) -> Source:
        """Describe a file that was just decoded.

        Args:
            path: of the file.
            before: its status before it was opened. If it is another now, it is not known what was decoded, and the
                result says that it has changed whatever it is compared with.

        Raises:
            OSError: it cannot be read.
        """
        digest = _sha256(path)
        after = os.stat(path)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return cls(-1, "")
        return cls(after.st_size, digest, after.st_mtime_ns)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Source:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is no such entry.
        """
        return cls(int(entry["size"]), str(entry["sha256"]), entry.get("modified"))

    def to_json(self, *, modified: bool) -> dict[str, Any]:
        """As plain values.

        Args:
            modified: whether the time is among them.
        """
        entry: dict[str, Any] = {"size": self.size, "sha256": self.sha256}
        return {**entry, "modified": self.modified} if modified else entry

    @classmethod
    def of_content(cls, content: bytes, listed: RemoteStatus) -> Source:
        """Describe an object that was fetched.

        Args:
            content: all of it.
            listed: its status before.
        """
        if len(content) != listed.size:
            return cls(-1, "")
        return cls(listed.size, hashlib.sha256(content).hexdigest(), listed.modified)

    def has_changed(self, place: Path | RemoteFile) -> bool:
        """Whether the file has another content now; it is read only where size and time leave a doubt.

        A file that cannot be read has not changed: its result stays, and nothing better could be had.
        """
        try:
            if isinstance(place, RemoteFile):
                status = place.status()
                size, modified = status.size, status.modified
            else:
                found = os.stat(place)
                size, modified = found.st_size, found.st_mtime_ns
            if size != self.size:
                return True
            return modified != self.modified and _sha256(place) != self.sha256
        except (OSError, ImageError):
            return False


def _sha256(place: Path | RemoteFile) -> str:
    if isinstance(place, RemoteFile):
        content, _ = place.read(place.status().size)
        return hashlib.sha256(content).hexdigest()
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
