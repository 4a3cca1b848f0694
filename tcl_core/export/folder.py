"""Exporters whose output is a folder: it is made beside its place and takes it at once when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from tcl_core.errors import ExportError
from tcl_core.export.base import Exporter
from tcl_core.export.names import printable
from tcl_core.vocabulary import Vocabulary

__all__ = ["INFO_FILE", "FolderExporter"]

INFO_FILE = "info.json"
"""How a folder was made, its images and what failed; it also says that the program may replace the folder."""


class FolderExporter(Exporter):
    """Base of exporters that write one file for each image, below `files`, with the image's name and another ending."""

    writes_folder = True
    files: ClassVar[str]
    ending: ClassVar[str]

    def __init__(self) -> None:
        self._out: Path | None = None
        self._part: Path | None = None
        self._info: dict[str, Any] = {}
        self._images: dict[str, str] = {}

    @abstractmethod
    def describe(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        """The files about the whole folder: text by name."""

    def check_target(self, out: Path) -> None:
        """Refuse a file, and a folder with files that this program did not write."""
        if out.exists() and not out.is_dir():
            raise ExportError(f"{out} is a file, but {self.name} writes a folder; choose a folder")
        if out.is_dir() and any(out.iterdir()) and not _is_own(out, self.name):
            raise ExportError(f"{out} contains files that {self.name} did not write; choose another folder")

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse images whose files would be one."""
        taken: dict[str, str] = {}
        for name in names:
            place = self.place(name)
            if place in taken:
                raise ExportError(f"{taken[place]} and {name} would both be written to {place}; rename one of the two")
            taken[place] = name

    def place(self, name: str) -> str:
        """Where an image's file stands in the folder.

        Raises:
            ExportError: the name would lead out of the folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ExportError(f"{printable(name)} is not a relative path; set --root to a folder that contains it")
        return f"{self.files}/{path.with_suffix(self.ending)}"

    def open(self, out: Path, vocabulary: Vocabulary, info: Mapping[str, Any]) -> None:
        """Begin a folder; see `tcl_core.export.base.Exporter.open`."""
        self.check_target(out)
        self._out, self._info, self._images = out, dict(info), {}
        self._part = out.with_name(out.name + ".part")
        try:
            if self._part.exists():
                shutil.rmtree(self._part)
            (self._part / self.files).mkdir(parents=True)
            for name, text in self.describe(vocabulary).items():
                (self._part / name).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise self._refused(error) from error

    def write(self, name: str, data: bytes) -> None:
        """Write an image's file.

        Raises:
            ExportError: the image's file is there already, or the disk refuses.
        """
        if self._part is None:
            raise ExportError(f"no {self.name} folder is open; open one first")
        place = self.place(name)
        if place in self._images:
            raise ExportError(
                f"{self._images[place]} and {name} would both be written to {place}; rename one of the two"
            )
        try:
            path = self._part / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise self._refused(error) from error
        self._images[place] = name

    def close(self, *, complete: bool, failed: Sequence[tuple[str, str]]) -> None:
        """Put the folder in its place; see `tcl_core.export.base.Exporter.close`."""
        if self._part is None or self._out is None:
            raise ExportError(f"no {self.name} folder is open; open one first")
        listed = [{"file_name": printable(name), "reason": printable(reason)} for name, reason in failed]
        about = {**self._info, "exporter": self.name, "complete": complete, "failed": listed, "images": self._images}
        old = self._out.with_name(self._out.name + ".old")
        try:
            (self._part / INFO_FILE).write_text(json.dumps(about, indent=1) + "\n", encoding="ascii", newline="\n")
            if old.exists():
                shutil.rmtree(old)
            if self._out.exists():
                os.rename(self._out, old)
            os.rename(self._part, self._out)
            shutil.rmtree(old, ignore_errors=True)
        except OSError as error:
            raise self._refused(error) from error
        self._part = None

    def abort(self) -> None:
        """Remove what was begun."""
        if self._part is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part = None

    def _refused(self, error: OSError) -> ExportError:
        return ExportError(f"{self._out} cannot be written: {error.strerror}; choose another folder or name")


def _is_own(folder: Path, exporter: str) -> bool:
    try:
        about = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("exporter") == exporter
