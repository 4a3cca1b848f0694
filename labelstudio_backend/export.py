"""A project's annotations as one COCO file, every image once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from labelstudio_backend.image_fetch.locations import cloud_key
from labelstudio_backend.labeled_shapes import join_labels, value_of_result
from labelstudio_backend.labeling_config import BACKGROUND_NAMES, LabelingConfig, ProjectConfig
from labelstudio_backend.shapes import image_size_of, mask_of_value, polygon_of_value
from tcl_core.errors import CocoError, SettingsError, TclError
from tcl_core.export.coco import Geometry, ImageResult, regions_to_annotations, write_coco_file
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["ANNOTATORS", "Annotators", "ExportSummary", "export_tasks", "image_name", "is_annotated"]

Annotators = Literal["latest", "all", "consensus"]
ANNOTATORS: tuple[Annotators, ...] = get_args(Annotators)
"""Whose regions count where a task has several annotations."""

_KINDS = ("polygonlabels", "brushlabels", "rectanglelabels")
_UPLOAD = re.compile(r"^.*?/data/upload/\d+/(.+)$")


@dataclass
class ExportSummary:
    """What stands in the file, and what does not.

    Attributes:
        images: images of the file.
        annotations: annotations of the file.
        failed: reason by task that is not in the file.
        left_out: reason by task, of regions that are not in the file.
    """

    images: int = 0
    annotations: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    left_out: dict[int, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Drawn:
    """A region that an annotator accepted."""

    label: str
    region: Region


def export_tasks(
    tasks: Iterable[Mapping[str, Any]],
    config: ProjectConfig | LabelingConfig,
    out: Path,
    *,
    annotators: Annotators = "latest",
    geometry: Geometry = "polygon",
    size_of: Callable[[Mapping[str, Any]], tuple[int, int]],
    overwrite: bool = False,
) -> ExportSummary:
    """Write the accepted regions of tasks. A task with several images gives several images of the file.

    Args:
        tasks: with their annotations, from Label Studio.
        config: the project's labeling configuration.
        out: the COCO file.
        annotators: ``"latest"`` takes a task's newest annotation, ``"all"`` every one's regions, ``"consensus"`` the
            pixels that more than half of the annotators gave a label.
        geometry: see :mod:`tcl_core.export.coco.geometry`.
        size_of: height and width of an upright image, where annotations do not say it; given the task, with the
            image's address as ``image_url``.
        overwrite: replace an existing file.

    Returns:
        What was written and what was not.

    Raises:
        SettingsError: ``annotators`` is unknown.
        CocoError: the file cannot be written, or two tasks cannot be told apart.
    """
    if annotators not in ANNOTATORS:
        raise SettingsError(f"annotators is {annotators!r}; give one of {', '.join(ANNOTATORS)}")
    project = config if isinstance(config, ProjectConfig) else ProjectConfig((config,))
    if project.dynamic:
        tasks = list(tasks)
        named = [image.values for task in tasks for image, _ in project.images_of(task.get("data") or {})]
        names_there = tuple(dict.fromkeys(value for values in named for value in values))
    else:
        names_there = project.values
    values = [value for value in names_there if value.casefold() != "background"]
    if not values:
        raise CocoError("the project has no labels to export")
    vocabulary = Vocabulary(tuple(Label(value) for value in values))
    summary = ExportSummary()
    names = _Names()

    def images() -> Iterator[ImageResult]:
        for task in tasks:
            number = int(task["id"])
            for image, url in project.images_of(task.get("data") or {}):
                try:
                    if isinstance(url, TclError):
                        raise url
                    drawn = _regions_of(task, image, values, annotators, summary)
                    size = drawn[1] or size_of({**task, "image_url": url})
                    regions = [one.region for one in drawn[0] if one.region.mask.any()]
                    annotations = regions_to_annotations(regions, size, geometry)
                except (TclError, ValueError) as error:
                    summary.failed[number] = str(error)
                    continue
                for annotation in annotations:
                    # Nobody measured a score here: people accepted the regions.
                    del annotation["score"]
                summary.images += 1
                summary.annotations += len(annotations)
                yield ImageResult(names.of(number, url), *size, annotations)

    settings = {"source": "Label Studio", "annotators": annotators, "geometry": geometry}
    write_coco_file(out, images(), vocabulary, settings, overwrite=overwrite)
    return summary


def is_annotated(task: Mapping[str, Any]) -> bool:
    """Whether somebody annotated a task, and did not skip it."""
    return any(not annotation.get("was_cancelled") for annotation in task.get("annotations") or [])


def _regions_of(
    task: Mapping[str, Any],
    config: LabelingConfig,
    names: Sequence[str],
    annotators: Annotators,
    summary: ExportSummary,
) -> tuple[list[_Drawn], tuple[int, int] | None]:
    """The regions of one of a task's images, and the size of that image where they say it."""
    annotations = [annotation for annotation in task.get("annotations") or [] if not annotation.get("was_cancelled")]
    annotations.sort(key=lambda annotation: (str(annotation.get("updated_at")), annotation.get("id") or 0))
    if annotators == "latest":
        annotations = annotations[-1:]
    left_out: list[str] = []
    drawn = [_read(annotation, config, names, left_out) for annotation in annotations]
    if left_out:
        summary.left_out.setdefault(int(task["id"]), []).extend(left_out)
    sizes = {size for _, sizes in drawn for size in sizes}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"its regions were drawn on images of different sizes: {listed}")
    size = next(iter(sizes), None)
    regions = [region for regions, _ in drawn for region in regions]
    if annotators == "consensus" and size is not None and len(drawn) > 1:
        regions = _consensus([regions for regions, _ in drawn], names, size)
    return regions, size


def _read(
    annotation: Mapping[str, Any], config: LabelingConfig, names: Sequence[str], left_out: list[str]
) -> tuple[list[_Drawn], set[tuple[int, int]]]:
    """The regions of one annotation, and the sizes that they were drawn at."""
    drawn: list[_Drawn] = []
    sizes: set[tuple[int, int]] = set()
    for result in join_labels(annotation.get("result") or []):
        kind = result.get("type")
        if kind not in _KINDS or result.get("to_name") != config.image_name:
            continue
        if config.item_index is not None and (result.get("item_index") or 0) != config.item_index:
            continue
        value = value_of_result(result)
        try:
            size = image_size_of(result)
        except ValueError as error:
            left_out.append(f"region {result.get('id')}: {error}")
            continue
        sizes.add(size)
        if result.get("image_rotation"):
            left_out.append(f"region {result.get('id')}: drawn on a rotated image, so its position is unknown")
            continue
        for written in value.get(kind) or []:
            label = config.label_of(result.get("from_name"), str(written)) or str(written)
            if label not in names:
                if label.casefold() not in BACKGROUND_NAMES:
                    left_out.append(f"region {result.get('id')}: the project has no label {label!r}")
                continue
            try:
                drawn.append(_Drawn(label, _region(names.index(label) + 1, label, kind, value, size)))
            except ValueError as error:
                left_out.append(f"region {result.get('id')}: {error}")
    return drawn, sizes


def _region(label_id: int, label: str, kind: str, value: Mapping[str, Any], size: tuple[int, int]) -> Region:
    """One accepted region, however many pieces it has."""
    mask = mask_of_value(kind, value, size)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("it covers no pixels")
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    polygon = polygon_of_value(kind, value, size) if kind != "brushlabels" else None
    inside = polygon is not None and polygon.is_valid and 0 <= min(polygon.bounds) and _within(polygon.bounds, size)
    return Region(
        label_id=label_id,
        label=label,
        score=1.0,
        area=int(mask.sum()),
        bbox=(left, top, right - left, bottom - top),
        mask=mask[top:bottom, left:right],
        polygon=polygon if inside else None,
    )


def _within(bounds: tuple[float, float, float, float], size: tuple[int, int]) -> bool:
    return bounds[2] <= size[1] and bounds[3] <= size[0]


def _consensus(drawn: Sequence[Sequence[_Drawn]], names: Sequence[str], size: tuple[int, int]) -> list[_Drawn]:
    """Regions of the pixels to which more than half of the annotators gave a label."""
    agreed: list[_Drawn] = []
    for label_id, label in enumerate(names, start=1):
        votes: NDArray[np.int32] = np.zeros(size, dtype=np.int32)
        for regions in drawn:
            own = np.zeros(size, dtype=bool)
            for one in regions:
                if one.label == label:
                    own |= one.region.full_mask(size)
            votes += own
        won = votes * 2 > len(drawn)
        maps = Segmentation(won.astype(np.int32), won.astype(np.float32), Vocabulary((Label(label),)))
        for region in label_map_to_regions(maps, tolerance=None):
            agreed.append(_Drawn(label, Region(label_id, label, 1.0, region.area, region.bbox, region.mask)))
    return agreed


class _Names:
    """A file name for every task, none twice."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, task: int, url: object) -> str:
        name = image_name(url if isinstance(url, str) else "") or f"task-{task}"
        path, count = PurePosixPath(name), 1
        while name in self._taken:
            again = f"-{count}" if count > 1 else ""
            name = str(path.with_name(f"{path.stem}-task-{task}{again}{path.suffix}"))
            count += 1
        self._taken.add(name)
        return name


def image_name(url: str) -> str:
    """The part of an address that people know the image by."""
    if url.startswith("data:"):
        return ""
    if (key := cloud_key(url)) is not None:
        # Not split as a URL: a key may hold a question mark or a number sign.
        return key.partition("://")[2].partition("/")[2].lstrip("/")
    parts = urlsplit(url)
    if parts.path.rstrip("/").endswith("/data/local-files"):
        return parse_qs(parts.query).get("d", [""])[0].lstrip("/")
    path = unquote(parts.path)
    upload = _UPLOAD.match(path)
    return upload.group(1) if upload else PurePosixPath(path).name
