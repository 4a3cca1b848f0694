"""Images with captions in a table (CSV, TSV) or in COCO's caption files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tcl_core.errors import SettingsError, reason_of
from training.data.source import DataReport, Pair, Source

__all__ = ["ListedSource", "coco_captions", "table"]

_IMAGE_COLUMNS = ("image", "filepath", "file_name", "path")
_CAPTION_COLUMNS = ("caption", "title", "text")
_NO_IMAGE = "without an image"


class ListedSource(Source):
    """Image files with a caption each.

    Args:
        path: the file that lists them.
        rows: image file and caption, as they stand in the file.
    """

    def __init__(self, path: Path, rows: Iterable[tuple[Path, str]]):
        self._rows: list[tuple[Path, str]] = []
        self.report = DataReport(files=1)
        digest = hashlib.sha256()
        exists: dict[Path, bool] = {}
        for image, caption in rows:
            reason = _reason(image, caption, exists)
            if reason:
                self.report.dropped[reason] = self.report.dropped.get(reason, 0) + 1
                if reason == _NO_IMAGE:
                    self.report.examples.setdefault(reason, str(image))
                continue
            self._rows.append((image, caption))
            digest.update(json.dumps([image.name, caption]).encode())
        self.report.pairs = len(self._rows)
        self.groups = [len(self._rows)]
        self._identity = f"{path.name}:{digest.hexdigest()[:16]}"

    def read(self, index: int) -> Pair:
        """The pair of a number."""
        image, caption = self._rows[index]
        return Pair(image, caption, str(image))

    def identity(self) -> str:
        """The file's name, and its usable rows, hashed."""
        return self._identity


def _reason(image: Path, caption: str, exists: dict[Path, bool]) -> str:
    if not caption.strip():
        return "with an empty caption"
    if any(0xDC80 <= ord(letter) <= 0xDCFF for letter in caption):
        return "with a caption that is not UTF-8"
    # COCO has five captions for each image.
    if image not in exists:
        exists[image] = image.is_file()
    return "" if exists[image] else _NO_IMAGE


def table(path: Path, image_column: str | None = None, caption_column: str | None = None) -> ListedSource:
    """Read a table with a header, separated by commas, or by tabs if its name ends in ``.tsv``.

    Args:
        path: the table; image files are relative to its folder. A semicolon separates too where the header has no
            comma.
        image_column: by default the first of image, filepath, file_name and path.
        caption_column: by default the first of caption, title and text.

    Raises:
        SettingsError: it cannot be read, is not UTF-8, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline()
            file.seek(0)
            if any(letter == "\0" or 0xDC80 <= ord(letter) <= 0xDCFF for letter in header):
                raise SettingsError(f"{path}: is not UTF-8; save it as CSV with the encoding UTF-8.")
            comma = ";" if ";" in header and "," not in header else ","
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else comma)
            columns = [name.strip() for name in next(reader, [])]
            image = _column(path, columns, image_column, _IMAGE_COLUMNS, "image")
            caption = _column(path, columns, caption_column, _CAPTION_COLUMNS, "caption")
            return ListedSource(path, _rows(path, reader, image, caption))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {reason_of(error)}; check the path") from error
    except csv.Error as error:
        raise SettingsError(f"{path}: is not a table: {error}; save it as CSV or TSV") from error


def _rows(path: Path, reader: Iterable[list[str]], image: int, caption: int) -> Iterator[tuple[Path, str]]:
    for row in reader:
        # Empty lines are none; a row without an image is counted.
        if row:
            yield path.parent / (row[image] if len(row) > image else ""), row[caption] if len(row) > caption else ""


def _column(path: Path, columns: list[str], asked: str | None, known: tuple[str, ...], what: str) -> int:
    for name in (asked,) if asked else known:
        if name in columns:
            return columns.index(name)
    wanted = f"column {asked!r}" if asked else f"{what} column ({', '.join(known)})"
    raise SettingsError(
        f"{path}: has no {wanted}; its columns are: {', '.join(columns) or 'none'}; choose one with --{what}-column."
    )


def coco_captions(path: Path, images: Path) -> ListedSource:
    """Read COCO's captions, one pair for each.

    Args:
        path: such as ``captions_train2017.json``.
        images: folder of the image files.

    Raises:
        SettingsError: it cannot be read, or is not a file of captions.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        rows = [(names.get(entry["image_id"], ""), str(entry["caption"])) for entry in content["annotations"]]
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {reason_of(error)}; check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path}: is not a file of COCO captions ({type(error).__name__}: {error}); it must contain images with id "
            "and file_name, and annotations with image_id and caption"
        ) from error
    return ListedSource(path, ((images / name, caption) for name, caption in rows))
