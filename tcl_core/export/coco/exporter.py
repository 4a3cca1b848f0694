"""COCO as an exporter of jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tcl_core.errors import CocoError, SettingsError
from tcl_core.export.base import Exporter, Finished, ImageRegions, register_exporter
from tcl_core.export.coco.annotations import regions_to_annotations
from tcl_core.export.coco.geometry import GEOMETRIES, Geometry
from tcl_core.export.coco.writer import CocoFile, ImageResult
from tcl_core.export.names import printable
from tcl_core.vocabulary import Vocabulary

__all__ = ["CocoExporter"]


@register_exporter("coco")
class CocoExporter(Exporter):
    """One COCO file of all images.

    Args:
        geometry: ``"polygon"``, ``"keyhole"`` or ``"rle"``, see :mod:`tcl_core.export.coco.geometry`.
        merge: one annotation for each label of an image instead of one for each region.

    Raises:
        SettingsError: an unknown geometry.
    """

    def __init__(self, geometry: Geometry = "polygon", merge: bool = False) -> None:
        if geometry not in GEOMETRIES:
            raise SettingsError(f"--geometry {geometry}: choose polygon, keyhole or rle")
        self.geometry = geometry
        self.merge = merge
        self._file: CocoFile | None = None
        self._info: dict[str, Any] = {}

    @property
    def needs_polygons(self) -> bool:
        """Run lengths need none."""
        return self.geometry != "rle"

    def settings(self) -> dict[str, Any]:
        """Geometry and merging."""
        return {"geometry": self.geometry, "merge": self.merge}

    def open(self, out: Path, vocabulary: Vocabulary, info: Mapping[str, Any]) -> None:
        """Begin a file; see `tcl_core.export.base.Exporter.open`."""
        self._file = CocoFile(out, vocabulary)
        self._info = dict(info)

    def add(self, image: ImageRegions) -> None:
        """Write an image; see `tcl_core.export.base.Exporter.add`."""
        self.add_again(image.file_name, image.height, image.width, self.prepare(image))

    def prepare(self, image: ImageRegions) -> list[dict[str, Any]]:
        """The annotations of an image, without ids."""
        return regions_to_annotations(image.regions, (image.height, image.width), self.geometry, merge=self.merge)

    def add_again(self, file_name: str, height: int, width: int, content: Any) -> None:
        """Write annotations as they were."""
        self._opened().add(ImageResult(file_name, height, width, content))

    def close(self, *, complete: bool, failed: Sequence[tuple[str, str]]) -> None:
        """Put the file in place; a failed image has no size, so it stands in ``info.failed`` instead of ``images``."""
        listed = [{"file_name": printable(name), "reason": printable(reason)} for name, reason in failed]
        file, self._file = self._opened(), None
        file.close({**self._info, "complete": complete, "failed": listed})

    def abort(self) -> None:
        """Remove what was begun."""
        if self._file is not None:
            self._file.abort()
            self._file = None

    def read_finished(self, out: Path) -> Finished:
        """Read a file that this exporter wrote.

        Raises:
            CocoError: it was not written by this program.
        """
        try:
            with open(out, encoding="utf-8") as file:
                data = json.load(file)
            info = {key: value for key, value in data["info"].items() if key not in ("complete", "failed")}
            failed = [(failure["file_name"], failure["reason"]) for failure in data["info"]["failed"]]
            images = list(_images(data))
        except OSError as error:
            raise CocoError(f"{out} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CocoError(
                f"{out} was not written by tcl-annotate, so it cannot be resumed; choose another name"
            ) from None
        return Finished(info, iter(images), failed)

    def _opened(self) -> CocoFile:
        if self._file is None:
            raise CocoError("no COCO file is open; open one first")
        return self._file


def _images(data: Mapping[str, Any]) -> Iterator[tuple[str, int, int, Any]]:
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        plain = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
        annotations[annotation["image_id"]].append(plain)
    for image in data["images"]:
        yield image["file_name"], image["height"], image["width"], annotations[image["id"]]
