"""Regions become COCO annotations; a vocabulary becomes COCO categories.

Annotations made here carry no ids: those are given when the file is put together, so that a run that was interrupted
and resumed ends with the same file as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pycocotools import mask as coco_mask

from tcl_core.errors import CocoError, SettingsError
from tcl_core.export.coco.geometry import GEOMETRIES, Geometry, rasterize_rings, rings_of
from tcl_core.export.coco.rle import Runs, decode_counts, encode_crop
from tcl_core.types import Region

if TYPE_CHECKING:
    from tcl_core.vocabulary import Vocabulary

__all__ = ["categories_of", "region_to_annotation", "regions_to_annotations"]

_SCORE_DECIMALS = 6


def categories_of(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """COCO categories in the vocabulary's order, ids from 1."""
    return [
        {"id": index, "name": label.name, "supercategory": ""} for index, label in enumerate(vocabulary.labels, start=1)
    ]


def region_to_annotation(region: Region, image_size: tuple[int, int], geometry: Geometry = "polygon") -> dict[str, Any]:
    """One region as a COCO annotation without ids.

    Args:
        region: with its exact mask; its polygon is used where ``geometry`` asks for one, else the mask's exact
            outline.
        image_size: ``(height, width)`` of the image.
        geometry: ``"polygon"``, ``"keyhole"`` or ``"rle"``, see `tcl_core.export.coco.geometry`.

    Returns:
        ``category_id``, ``segmentation``, ``area`` and ``bbox`` (both of the pixels that the segmentation covers),
        ``iscrowd`` 0 and ``score`` (rounded to six decimals).

    Raises:
        CocoError: the mask is empty or sticks out of the image, or the score is not a number in [0, 1].
        SettingsError: an unknown geometry.

    Example:
        >>> import numpy as np
        >>> dot = Region(1, "dot", 0.5, 1, (2, 1, 1, 1), np.ones((1, 1), dtype=bool))
        >>> region_to_annotation(dot, (4, 4), "rle")["segmentation"]
        {'size': [4, 4], 'counts': '916'}
    """
    return _annotation([region], image_size, geometry)


def regions_to_annotations(
    regions: Iterable[Region], image_size: tuple[int, int], geometry: Geometry = "polygon", *, merge: bool = False
) -> list[dict[str, Any]]:
    """The annotations of one image.

    Args:
        regions: in the order the annotations shall have.
        image_size: ``(height, width)`` of the image.
        geometry: ``"polygon"``, ``"keyhole"`` or ``"rle"``.
        merge: one annotation for each label (in the order of the label ids) instead of one for each region: its
            geometry is the union (all their rings, or one RLE), its score the mean
            weighted by area.

    Returns:
        Annotations without ids, see `region_to_annotation`.

    Raises:
        CocoError: a region cannot be written, see `region_to_annotation`.
        SettingsError: an unknown geometry.
    """
    if not merge:
        return [_annotation([region], image_size, geometry) for region in regions]
    groups: dict[int, list[Region]] = {}
    for region in regions:
        groups.setdefault(region.label_id, []).append(region)
    return [_annotation(groups[label_id], image_size, geometry) for label_id in sorted(groups)]


def _annotation(regions: list[Region], size: tuple[int, int], geometry: Geometry) -> dict[str, Any]:
    """One annotation for regions of one label."""
    if geometry not in GEOMETRIES:
        raise SettingsError(f"geometry is {geometry!r}; give one of {', '.join(GEOMETRIES)}")
    size = (int(size[0]), int(size[1]))
    for region in regions:
        _check(region, size)
    segmentation: dict[str, Any] | list[list[float]]
    if geometry == "rle":
        masks = [encode_crop(region.mask, region.bbox[:2], size) for region in regions]
        union = coco_mask.merge(masks)["counts"].decode("ascii") if len(masks) > 1 else masks[0]["counts"]
        segmentation = {"size": list(size), "counts": union}
        runs = Runs(decode_counts(union), size)
    else:
        segmentation = [ring for r in regions for ring in rings_of(r.mask, r.bbox[:2], r.polygon, size, geometry)]
        runs = rasterize_rings(segmentation, size)
    areas = [int(region.mask.sum()) for region in regions]
    score = sum(float(region.score) * area for region, area in zip(regions, areas, strict=True)) / sum(areas)
    return {
        "category_id": int(regions[0].label_id),
        "segmentation": segmentation,
        "area": runs.area,
        "bbox": list(runs.bbox),
        "iscrowd": 0,
        "score": round(score, _SCORE_DECIMALS),
    }


def _check(region: Region, size: tuple[int, int]) -> None:
    x, y, width, height = region.bbox
    what = f"the region of label {region.label!r} at x={x}, y={y}"
    if region.mask.shape != (height, width) or min(x, y) < 0 or y + height > size[0] or x + width > size[1]:
        raise CocoError(
            f"{what} has a mask of {region.mask.shape} and a box of {width}x{height}, which must match "
            f"and inside the image of {size[1]}x{size[0]}"
        )
    if region.label_id < 1:
        raise CocoError(f"{what} has the id {region.label_id}; label ids start at 1")
    if not region.mask.any():
        raise CocoError(f"{what} has no pixels; leave it out")
    score = float(region.score)
    if not math.isfinite(score) or not 0 <= score <= 1:
        raise CocoError(f"{what} has the score {score}; a score is a number in [0, 1]")
