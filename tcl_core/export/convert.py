"""From annotations in one format to another: what people drew stays as they drew it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tcl_core.errors import ExportError
from tcl_core.export.base import Exporter, ImageRegions
from tcl_core.export.coco.annotations import regions_to_annotations
from tcl_core.export.coco.exporter import CocoExporter
from tcl_core.export.coco.geometry import Geometry
from tcl_core.export.info import run_info
from tcl_core.export.sources import Source, SourceImage
from tcl_core.export.yolo_seg import YoloSegExporter, yolo_lines
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["ConvertSummary", "convert", "segmentation_mask"]

_CROWDS = "crowds converted to single objects, because the format has no crowds"
_HIDDEN = "pixels with several labels, which keep only the last one"
_EMPTY = "annotations that cover no pixels"


@dataclass
class ConvertSummary:
    """What was written, and what was not.

    Attributes:
        images: images of the output.
        annotations: annotations of the output.
        left_out: how often something was not taken over, by its reason.
        changed: how often something was taken over but means less in the new format, by what became of it.
    """

    images: int = 0
    annotations: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)


def convert(
    source: Source,
    exporter: Exporter,
    out: Path,
    *,
    geometry: Geometry | None = None,
    tolerance: str | float = "default",
    min_area: int = 0,
    info: Mapping[str, Any] | None = None,
) -> ConvertSummary:
    """Write the annotations of a source in another format.

    Annotations of a COCO file are written to COCO as they are, whatever else they hold, unless a geometry is asked for.
    Polygons that are needed are made of masks together, as one coverage, where they do not overlap.

    Args:
        source: of `tcl_core.export.sources.open_source`.
        exporter: writes the output.
        out: the output; it appears at once, when it is whole.
        geometry: of a COCO output; ``None`` keeps that of a COCO file and makes polygons of masks.
        tolerance: of polygons that are made, see :func:`tcl_core.polygons.tolerance_in_pixels`.
        min_area: regions of masks of fewer pixels are merged into their surroundings; 0, the default, keeps all, for
            these are no predictions.
        info: what else shall stand in the output about its making.

    Raises:
        ExportError: the source cannot be read, or the output cannot be written.
    """
    exporter.check_target(out)
    exporter.check_names(source.names)
    settings = {"geometry": geometry, "tolerance": tolerance, "min_area": min_area, **(info or {})}
    about = run_info(source.vocabulary, settings)
    summary = ConvertSummary()
    changed: Counter[str] = Counter()
    exporter.open(out, source.vocabulary, {**about, "description": "Converted by tcl-annotate"})
    try:
        for image in source.images():
            size = (image.height, image.width)
            if isinstance(exporter, (CocoExporter, YoloSegExporter)):
                wanted: Geometry = "polygon" if isinstance(exporter, YoloSegExporter) else geometry or "polygon"
                keep = geometry is None and isinstance(exporter, CocoExporter)
                annotations = _annotations(image, source.vocabulary, wanted, keep, tolerance, min_area)
                content = annotations if isinstance(exporter, CocoExporter) else yolo_lines(annotations, size)
                exporter.add_again(image.file_name, *size, content)
                summary.annotations += len(annotations)
                if isinstance(exporter, YoloSegExporter):
                    changed[_CROWDS] += sum(1 for one in annotations if one.get("iscrowd"))
            else:
                polygons = tolerance if exporter.needs_polygons else None
                regions = _regions(image, source.vocabulary, polygons, min_area)
                changed[_HIDDEN] += _overlaps(regions, size)
                changed[_EMPTY] += len(image.annotations or regions) - len(regions)
                exporter.add(ImageRegions(image.file_name, *size, regions))
                summary.annotations += len(regions)
            summary.images += 1
        exporter.close(complete=True, failed=[])
    finally:
        exporter.abort()
    summary.left_out = dict(source.left_out)
    summary.changed = {what: number for what, number in changed.items() if number}
    return summary


def _annotations(
    image: SourceImage,
    vocabulary: Vocabulary,
    geometry: Geometry,
    keep: bool,
    tolerance: str | float,
    min_area: int,
) -> list[dict[str, Any]]:
    """COCO annotations without ids and, where nobody measured any, without scores."""
    size = (image.height, image.width)
    if image.annotations is None:
        regions = _regions(image, vocabulary, None if geometry == "rle" else tolerance, min_area)
        return [_without_score(annotation) for annotation in regions_to_annotations(regions, size, geometry)]
    if keep:
        return [dict(annotation) for annotation in image.annotations]
    # Rings stay as somebody drew them; RLE is traced, all of an image together.
    traced = [place for place, one in enumerate(image.annotations) if isinstance(one["segmentation"], Mapping)]
    masks = {place: segmentation_mask(image.annotations[place]["segmentation"], size) for place in traced}
    made = dict(zip(traced, _traced(list(masks.values()), size, geometry, tolerance), strict=True))
    written = []
    for place, annotation in enumerate(image.annotations):
        segmentation = made.get(place, annotation["segmentation"])
        if isinstance(segmentation, list) and geometry == "rle":
            segmentation = _encoded(segmentation_mask(segmentation, size))
        written.append({**annotation, "segmentation": segmentation})
    return written


def _traced(
    masks: Sequence[NDArray[np.bool_]], size: tuple[int, int], geometry: Geometry, tolerance: str | float
) -> list[Any]:
    """A segmentation for each mask."""
    if not masks:
        return []
    if geometry == "rle":
        return [_encoded(mask) for mask in masks]
    covered = sum((mask.astype(np.int32) for mask in masks), np.zeros(size, dtype=np.int32))
    groups = [list(range(len(masks)))] if covered.max(initial=0) < 2 else [[place] for place in range(len(masks))]
    rings: list[list[list[float]]] = [[] for _ in masks]
    for group in groups:
        label_map = np.zeros(size, dtype=np.int32)
        for number, place in enumerate(group, start=1):
            label_map[masks[place]] = number
        for region in _split(label_map, len(group), tolerance):
            [annotation] = regions_to_annotations([region], size, geometry)
            rings[group[region.label_id - 1]] += annotation["segmentation"]
    return rings


def _split(label_map: NDArray[np.int32], labels: int, tolerance: str | float) -> list[Region]:
    vocabulary = Vocabulary(tuple(Label(f"number {number}") for number in range(1, labels + 1)))
    return label_map_to_regions(Segmentation(label_map, _ones(label_map), vocabulary), tolerance=tolerance)


def _regions(image: SourceImage, vocabulary: Vocabulary, tolerance: str | float | None, min_area: int) -> list[Region]:
    """Regions of a label map, or one for each annotation."""
    if image.label_map is not None:
        maps = Segmentation(image.label_map, _ones(image.label_map), vocabulary)
        return label_map_to_regions(maps, min_area=min_area, small="merge", tolerance=tolerance)
    regions = []
    for annotation in image.annotations or ():
        mask = segmentation_mask(annotation["segmentation"], (image.height, image.width))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            continue
        x, y = int(columns[0]), int(rows[0])
        width, height = int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
        crop = mask[y : y + height, x : x + width]
        label_id = int(annotation["category_id"])
        name, box = vocabulary.names[label_id - 1], (x, y, width, height)
        regions.append(Region(label_id, name, 1.0, int(crop.sum()), box, crop))
    return regions


def _overlaps(regions: Sequence[Region], size: tuple[int, int]) -> int:
    """Pixels that regions of different labels share."""
    first, shared = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
    for region in regions:
        x, y, width, height = region.bbox
        window = np.s_[y : y + height, x : x + width]
        shared[window] |= region.mask & (first[window] > 0) & (first[window] != region.label_id)
        first[window][region.mask & (first[window] == 0)] = region.label_id
    return int(shared.sum())


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels of a segmentation that was checked when it was read.

    Args:
        segmentation: rings of polygons, or RLE, as COCO has them.
        size: height and width of the image.

    Returns:
        bool ``[H, W]``.

    Raises:
        ExportError: it cannot be drawn.
    """
    try:
        if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], str):
            encoded = {"size": list(size), "counts": segmentation["counts"].encode("ascii")}
        elif isinstance(segmentation, Mapping):
            encoded = coco_mask.frPyObjects({"size": list(size), "counts": segmentation["counts"]}, *size)
        else:
            encoded = coco_mask.merge(coco_mask.frPyObjects([[float(v) for v in ring] for ring in segmentation], *size))
    except (TypeError, ValueError) as error:
        raise ExportError(f"a segmentation cannot be drawn: {error}") from error
    return np.asarray(coco_mask.decode(encoded) > 0)


def _encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": encoded["counts"].decode("ascii")}


def _ones(label_map: NDArray[np.int32]) -> NDArray[np.float32]:
    return (label_map > 0).astype(np.float32)


def _without_score(annotation: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in annotation.items() if key != "score"}
