"""What every exporter does: the regions of images, one image after the other, become files of an annotation format.

A job knows its exporter by this contract alone. To add a format, write a sub-class in a module of its own and register
it; a package of its own brings one by an entry point of the group ``tcl_annotate.exporters``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tcl_core.errors import ExportError, SettingsError
from tcl_core.plugins import installed, load
from tcl_core.types import Region
from tcl_core.vocabulary import Vocabulary

__all__ = [
    "ENTRY_POINTS",
    "Exporter",
    "Finished",
    "ImageRegions",
    "create_exporter",
    "journal_path",
    "list_exporters",
    "register_exporter",
    "slashed",
]

ENTRY_POINTS = "tcl_annotate.exporters"


@dataclass(frozen=True)
class ImageRegions:
    """All that a job found in one image.

    Attributes:
        file_name: relative, as given, with forward slashes (`slashed`).
        height: pixels after EXIF rotation.
        width: pixels after EXIF rotation.
        regions: with their exact masks, and polygons if the exporter needs them; may be empty.
    """

    file_name: str
    height: int
    width: int
    regions: Sequence[Region] = field(default_factory=list)


@dataclass(frozen=True)
class Finished:
    """A finished output, read back so that its job can go on with more images.

    Attributes:
        info: what the exporter was opened with.
        images: file name, height, width, and what `Exporter.add_again` takes, in the order of the output.
        failed: file name and reason of each image that has no result.
    """

    info: Mapping[str, Any]
    images: Iterator[tuple[str, int, int, Any]]
    failed: Sequence[tuple[str, str]]


class Exporter(ABC):
    """Writes one output, in constant memory; it appears under its name only when it is closed.

    ``open``, then ``add`` for each image in the order that the output shall have, then ``close``, or ``abort``.
    """

    name: ClassVar[str] = ""
    writes_folder: ClassVar[bool] = False
    """Whether an output is a folder."""

    @property
    def needs_polygons(self) -> bool:
        """Whether regions have to come with polygons."""
        return True

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the output depends on besides the regions, fit for JSON."""

    def check_target(self, out: Path) -> None:
        """Refuse, before any work, a place that an output could not take.

        Raises:
            ExportError: what is there cannot be replaced.
        """
        if out.exists() and not out.is_file():
            raise ExportError(f"{out} is not a file; give a file to write")

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse, before any work, images that an output could not tell apart; by default there are none.

        Args:
            names: file names of all images.

        Raises:
            ExportError: with two of them.
        """
        return None

    @abstractmethod
    def open(self, out: Path, vocabulary: Vocabulary, info: Mapping[str, Any]) -> None:
        """Begin an output.

        Args:
            out: file or folder, as the format wants it; what is there stays until `close`.
            vocabulary: the labels.
            info: how the labels were made, fit for JSON.

        Raises:
            ExportError: the disk refuses.
        """

    @abstractmethod
    def add(self, image: ImageRegions) -> None:
        """Write an image; one that cannot be written leaves no trace.

        Raises:
            ExportError: a region cannot be written, or the disk refuses.
        """

    @abstractmethod
    def close(self, *, complete: bool, failed: Sequence[tuple[str, str]]) -> None:
        """Put the output in its place at once.

        Args:
            complete: whether the job is over.
            failed: file name and reason of each image that has no result.

        Raises:
            ExportError: the disk refuses.
        """

    @abstractmethod
    def abort(self) -> None:
        """Remove what was begun; does nothing after `close`."""

    def prepare(self, image: ImageRegions) -> Any:
        """Whatever takes long about an image, done once when it is labeled and kept in the journal, fit for JSON.

        Returns:
            What `add_again` takes; ``None`` where the regions alone are kept, and `add` does all the work.

        Raises:
            ExportError: a region cannot be written.
        """
        return None

    def read_finished(self, out: Path) -> Finished:
        """Read an output of this exporter back.

        Raises:
            ExportError: it was not written by this program, or the format cannot be read back.
        """
        raise ExportError(f"{out}: a finished {self.name} output cannot be resumed; choose another name")

    def add_again(self, file_name: str, height: int, width: int, content: Any) -> None:
        """Write an image of `prepare` or `read_finished` as it was."""
        raise ExportError(f"a finished {self.name} output cannot be resumed; choose another name")


ExporterClass = TypeVar("ExporterClass", bound=type[Exporter])
_EXPORTERS: dict[str, type[Exporter]] = {}


def register_exporter(name: str) -> Callable[[ExporterClass], ExporterClass]:
    """Class decorator that makes an exporter known under ``name``.

    Raises:
        ValueError: another class has the name.
    """

    def register(exporter: ExporterClass) -> ExporterClass:
        if _EXPORTERS.setdefault(name, exporter) is not exporter:
            raise ValueError(f"the exporter name {name!r} is taken by {_EXPORTERS[name].__qualname__}")
        exporter.name = name
        return exporter

    return register


def list_exporters() -> list[str]:
    """Names of all exporters, sorted.

    Example:
        >>> "coco" in list_exporters()
        True
    """
    return sorted({*_EXPORTERS, *installed(ENTRY_POINTS)})


def create_exporter(name: str, **settings: Any) -> Exporter:
    """An exporter with its settings.

    Raises:
        SettingsError: the name is unknown, its package cannot be imported, or a setting is out of range.
    """
    if name not in _EXPORTERS:
        point = installed(ENTRY_POINTS).get(name)
        if point is None:
            raise SettingsError(f"there is no exporter {name!r}; the exporters are: {', '.join(list_exporters())}")
        register_exporter(name)(load(point, "the exporter", Exporter, subclass=True))
    return _EXPORTERS[name](**settings)


def slashed(path: str | os.PathLike[str]) -> str:
    """The file name of an image in an output: the path as it was given, with forward slashes.

    >>> slashed("a folder/b.png")
    'a folder/b.png'
    """
    return os.fspath(path).replace(os.sep, "/")


def journal_path(out_path: str | os.PathLike[str]) -> Path:
    """Where the journal of a job that makes an output lies: next to it, with ``.journal`` appended."""
    out = Path(out_path)
    return out.with_name(out.name + ".journal")
