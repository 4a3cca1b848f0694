"""Annotations of a project as ground truth: a JSON export and its images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstudio_backend.export import image_name
from labelstudio_backend.labeled_shapes import join_labels, value_of_result
from labelstudio_backend.labeling_config import BACKGROUND_NAMES
from labelstudio_backend.shapes import image_size_of, mask_of_value
from tcl_core.errors import DataSetError
from tcl_core.evaluation.datasets.base import IGNORED, ClassList, files_sha256
from tcl_core.evaluation.datasets.own import FolderDataSet
from tcl_core.images import is_supported
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.labels import name_key

__all__ = ["LabelStudioDataSet"]

_KINDS = ("polygonlabels", "brushlabels", "rectanglelabels")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


class LabelStudioDataSet(FolderDataSet):
    """Tasks of a JSON export of Label Studio with their newest annotation; tasks without an annotation are left out.

    Polygons, brushes and rectangles count; where they overlap, the smaller one is on top. Everything else is
    background, or ignored if the vocabulary has no background.

    Args:
        path: the export (format "JSON").
        images: folder of the images; they are found by the file name in the task's URL, with or without the prefix that
            Label Studio adds to uploads.
        vocabulary: labels to evaluate; ``None`` for all labels that were used, by name.

    Raises:
        DataSetError: the file is not such an export, or an image is missing.
    """

    def __init__(self, path: Path, images: Path, vocabulary: Vocabulary | None) -> None:
        self._path = path
        tasks, self._results = [], []
        for task in _read(path):
            with _as_exported(path, task):
                if _newest(task) is not None:
                    tasks.append(task)
                    self._results.append(list(self._regions(task)))
        if vocabulary is None:
            used = {label for regions in self._results for _, label, _, _ in regions}
            if not used:
                raise DataSetError(f"{path}: no task has an annotated region; annotate one, or pass --labels FILE")
            vocabulary = Vocabulary(tuple(Label(name) for name in sorted(used)))
        self._places = {name_key(name): place for place, name in enumerate(vocabulary.names)}
        names = [self._name(task, images) for task in tasks]
        super().__init__(path.stem, images, ClassList.of(vocabulary), names)
        self.about |= {"annotations": "newest of each task", "annotations_sha256": files_sha256([path])}

    def _name(self, task: Mapping[str, Any], images: Path) -> str:
        """The image of a task, relative to the folder."""
        values = [value for value in (task.get("data") or {}).values() if isinstance(value, str)]
        names = [name for value in values if is_supported(name := image_name(value))]
        if not names:
            raise DataSetError(f"{self._path}: task {task.get('id')} has no image file; export the project as JSON")
        name = names[0]
        base = name.rsplit("/", 1)[-1]
        for candidate in (name, base, _UPLOAD_PREFIX.sub("", base)):
            if os.path.isfile(images / candidate):
                return candidate
        return name

    def _regions(self, task: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], tuple[int, int]]]:
        """Kind, label, value and image size of every region.

        Raises:
            DataSetError: its place on the image is not known.
        """
        newest = _newest(task) or {}
        for result in join_labels(newest.get("result") or []):
            kind = result.get("type")
            if kind not in _KINDS:
                continue
            where = f"{self._path}: task {task.get('id')}, region {result.get('id')}"
            try:
                size = image_size_of(result)
            except ValueError as error:
                raise DataSetError(f"{where}: {error}; export the project again") from None
            if result.get("image_rotation"):
                raise DataSetError(f"{where}: was drawn on a rotated image, so its position is unknown; draw it again")
            value = value_of_result(result)
            for label in value.get(kind) or []:
                if label.casefold() not in BACKGROUND_NAMES:
                    yield kind, label, value, size

    def check(self, index: int) -> None:
        """See `DataSet.check`."""
        for _, _, _, size in self._results[index]:
            self.check_size(index, size, self._path)
        self.truth(index)

    def truth(self, index: int) -> NDArray[np.int16]:
        """See `DataSet.truth`."""
        size = self._results[index][0][3] if self._results[index] else self.size(index)
        first = int(self.classes.has_background)
        truth = np.full(size, 0 if first else IGNORED, np.int16)
        drawn = []
        for kind, label, value, _ in self._results[index]:
            place = self._places.get(name_key(label))
            if place is None:
                continue
            try:
                drawn.append((mask_of_value(kind, value, size), place))
            except ValueError as error:
                raise DataSetError(
                    f"{self._path}: a {label!r} of {self.images[index]} cannot be drawn ({error}); draw it again"
                ) from error
        for mask, place in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
            truth[mask] = place + first
        return truth


@contextmanager
def _as_exported(path: Path, task: Mapping[str, Any]) -> Iterator[None]:
    """Refuse what has not the form that Label Studio gives it."""
    try:
        yield
    except (AttributeError, KeyError, TypeError):
        raise DataSetError(
            f"{path}: task {task.get('id')} is not as Label Studio writes it; export the project as JSON"
        ) from None


def _newest(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The newest annotation of a task that was not skipped."""
    kept = [each for each in task.get("annotations") or [] if not each.get("was_cancelled")]
    return max(kept, key=lambda each: (str(each.get("updated_at")), each.get("id") or 0), default=None)


def _read(path: Path) -> list[Mapping[str, Any]]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataSetError(f"{path}: cannot be read ({error.strerror}); give a JSON export of Label Studio") from error
    except (ValueError, RecursionError):
        raise DataSetError(f"{path}: is not a JSON file; export the project as JSON") from None
    fits = isinstance(data, list) and all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) for task in data
    )
    if not fits or any("annotations" not in task for task in data):
        raise DataSetError(f"{path}: is not a list of tasks with annotations; export the project as JSON, not JSON-MIN")
    return data
