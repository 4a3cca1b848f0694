"""Writing a COCO file image by image, in constant memory; it replaces an older one at once when it is whole.

The same input gives the same bytes: ids are given in the order of the images, and nothing in the file is taken from the
clock (COCO's ``date_created`` is therefore left out).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tcl_core.errors import CocoError, reason_of, remedy_of
from tcl_core.export.base import journal_path, slashed
from tcl_core.export.coco.annotations import categories_of
from tcl_core.export.info import run_info
from tcl_core.export.names import NOT_TEXT, is_text, printable
from tcl_core.vocabulary import Vocabulary

__all__ = ["CocoFile", "ImageResult", "coco_file_name", "write_coco_file"]

coco_file_name = slashed
"""The ``file_name`` of an image."""


@dataclass(frozen=True)
class ImageResult:
    """What a COCO file says about one image.

    Attributes:
        file_name: relative, as given, with forward slashes (`coco_file_name`).
        height: pixels after EXIF rotation.
        width: pixels after EXIF rotation.
        annotations: without ids, from `tcl_core.export.coco.annotations.regions_to_annotations`; may be empty.
    """

    file_name: str
    height: int
    width: int
    annotations: Sequence[Mapping[str, Any]] = field(default_factory=list)


class CocoFile:
    """A COCO file that is being written.

    Args:
        out: the file; missing folders are made.
        vocabulary: gives the categories.

    Raises:
        CocoError: the disk refuses.
    """

    def __init__(self, out: Path, vocabulary: Vocabulary) -> None:
        self.out = out
        self._categories = categories_of(vocabulary)
        self._names: set[str] = set()
        self._annotated = 0
        self._parts: list[IO[str]] = []
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            # COCO wants all images before the first annotation.
            for _ in range(2):
                self._parts.append(tempfile.TemporaryFile("w+", dir=out.parent, encoding="ascii", newline="\n"))
        except OSError as error:
            self.abort()
            raise self._refused(error) from error

    def add(self, image: ImageResult) -> None:
        """Write an image and its annotations.

        Raises:
            CocoError: the image is there already, its name is not text, it has no area, a number is not finite, or the
                disk refuses.
        """
        name = image.file_name
        if not is_text(name):
            raise CocoError(f"{printable(name)}: {NOT_TEXT}")
        if name in self._names:
            raise CocoError(f"{name} is listed twice; COCO lists each image once")
        if image.height < 1 or image.width < 1:
            raise CocoError(f"{name} has a size of {image.width}x{image.height}")
        image_id, first = len(self._names) + 1, self._annotated + 1
        entry = {"id": image_id, "file_name": name, "width": int(image.width), "height": int(image.height)}
        try:
            lines = [
                json.dumps({"id": first + place, "image_id": image_id, **annotation}, allow_nan=False)
                for place, annotation in enumerate(image.annotations)
            ]
        except ValueError as error:
            raise CocoError(f"{name}: a number is not finite, so it cannot be written as JSON") from error
        except TypeError as error:
            raise CocoError(f"{name} cannot be written as JSON: {error}") from error
        images, annotations = self._parts
        try:
            images.write(("\n" if image_id == 1 else ",\n") + json.dumps(entry))
            annotations.writelines(("\n" if first + place == 1 else ",\n") + line for place, line in enumerate(lines))
        except OSError as error:
            raise self._refused(error) from error
        self._names.add(name)
        self._annotated += len(lines)

    def close(self, info: Mapping[str, Any]) -> None:
        """Put the file in its place.

        Args:
            info: of the file, fit for JSON.

        Raises:
            CocoError: the disk refuses.
        """
        part = self.out.with_name(self.out.name + ".part")
        try:
            with open(part, "w", encoding="ascii", newline="\n") as out:
                categories = ",\n".join(json.dumps(category) for category in self._categories)
                out.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": [\n{categories}\n],\n')
                out.write('"images": [')
                for source, after in zip(self._parts, ('\n],\n"annotations": [', "\n]}\n"), strict=True):
                    source.seek(0)
                    shutil.copyfileobj(source, out)
                    out.write(after)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, self.out)
        except OSError as error:
            raise self._refused(error) from error
        finally:
            if part.is_file():
                part.unlink()
            self.abort()

    def abort(self) -> None:
        """Remove what was written so far; does nothing after `close`."""
        parts, self._parts = self._parts, []
        for part in parts:
            # On a full disk closing fails too, as it writes what was held back; the part is gone all the same.
            with contextlib.suppress(OSError):
                part.close()

    def _refused(self, error: OSError) -> CocoError:
        return CocoError(f"{self.out} cannot be written: {reason_of(error)}; {remedy_of(error)}")


def write_coco_file(
    out_path: str | os.PathLike[str],
    images: Iterable[ImageResult],
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a COCO file from results, one by one, in constant memory.

    Args:
        out_path: the file.
        images: results in the order they shall have.
        vocabulary: gives the categories.
        settings: stand in the file's ``info``.
        overwrite: replace an existing file.

    Raises:
        CocoError: the file is there and ``overwrite`` was not asked for, or see `CocoFile.add`.
    """
    out = Path(out_path)
    if out.exists() and not out.is_file():
        raise CocoError(f"{out} is not a file; give a file to write")
    if out.exists() and not overwrite:
        raise CocoError(f"{out} already exists; overwrite it, or choose another name")
    journal = journal_path(out)
    if journal.exists():
        raise CocoError(
            f"{out}: {journal} is left over from an unfinished run that writes this file; choose another name"
        )
    info = run_info(vocabulary, settings)
    file = CocoFile(out, vocabulary)
    try:
        for image in images:
            file.add(image)
        file.close({**info, "complete": True, "failed": []})
    finally:
        file.abort()
