"""From a label map to regions: one connected piece of one label each, with mask, score, box and polygon."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tcl_core.errors import SettingsError
from tcl_core.polygons import simplify_apart, simplify_coverage
from tcl_core.polygons.arcs import faces_of
from tcl_core.specks import absorb_small
from tcl_core.types import Region, Segmentation

__all__ = ["drop_small", "label_map_to_regions"]


def label_map_to_regions(
    segmentation: Segmentation,
    *,
    min_area: int = 0,
    small: Literal["drop", "merge"] = "drop",
    tolerance: str | float | None = "default",
    shared: bool = True,
) -> list[Region]:
    """Split a label map into regions.

    Pixels belong together if they share an edge (4-connectivity), so that every polygon is valid; pixels that
    touch at a corner only are separate regions.

    Args:
        segmentation: label map, score map and vocabulary of one image.
        min_area: regions of fewer pixels are removed first; 0 keeps all.
        small: what happens to them: ``"drop"`` leaves background (0) in their place, ``"merge"`` gives their pixels,
            and those of pieces of background as small, to the label (or background) around them with the longest shared
            border.
        tolerance: of the polygons, see :func:`tcl_core.polygons.tolerance_in_pixels`; ``None`` makes no polygons.
        shared: whether neighbors keep one border (:func:`tcl_core.polygons.simplify_coverage`); otherwise each
            polygon is simplified by itself, many times faster (:func:`tcl_core.polygons.simplify_apart`).

    Returns:
        Regions ordered by label, then by their first pixel in reading order. A region's score is the mean of the
        score map over its pixels that the label won itself (merged pixels have another label's score).

    Raises:
        SettingsError: a negative ``min_area``, an unknown ``small`` or ``tolerance``, or maps that do not fit together.
    """
    label_map, score_map = segmentation.label_map, segmentation.score_map
    names = [label.name for label in segmentation.vocabulary.labels]
    _check(label_map, score_map, len(names))
    if min_area < 0:
        raise SettingsError(f"min_area: {min_area} is negative; give a number of pixels, 0 or more")
    if small not in ("drop", "merge"):
        raise SettingsError(f"small: {small!r} is not known; give drop or merge")
    if label_map.size == 0:
        return []
    kept = label_map
    if min_area > 1:
        kept = drop_small(label_map, min_area) if small == "drop" else absorb_small(label_map, min_area)
    faces = faces_of(kept)
    count = int(faces.max())
    label_of = np.zeros(count + 1, dtype=np.int64)
    label_of[faces] = kept
    area = np.bincount(faces.ravel(), minlength=count + 1)
    own = np.flatnonzero((kept == label_map) & (kept > 0))
    total = np.bincount(faces.ravel()[own], weights=score_map.ravel()[own], minlength=count + 1)
    won = np.bincount(faces.ravel()[own], minlength=count + 1)
    score = np.clip(total / np.maximum(won, 1), 0, 1)
    wanted = label_of[1:] > 0
    polygons = None
    if tolerance is not None:
        polygons = (
            simplify_coverage(faces, tolerance, wanted=wanted) if shared else simplify_apart(faces, tolerance, wanted)
        )
    boxes = ndimage.find_objects(faces)
    order = np.lexsort((np.arange(1, count + 1), label_of[1:])) + 1
    regions = []
    for face in order[label_of[order] > 0].tolist():
        rows, columns = boxes[face - 1]
        regions.append(
            Region(
                label_id=int(label_of[face]),
                label=names[label_of[face] - 1],
                score=float(score[face]),
                area=int(area[face]),
                bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                mask=faces[rows, columns] == face,
                polygon=None if polygons is None else polygons[face - 1],
            )
        )
    return regions


def drop_small(label_map: NDArray[np.int32], min_area: int) -> NDArray[np.int32]:
    """Set regions of fewer than ``min_area`` pixels to 0.

    Args:
        label_map: int32 ``[H, W]``, 0 is background.
        min_area: pixels.

    Returns:
        A new label map.

    Examples:
        >>> drop_small(np.array([[1, 1, 0, 1]], dtype=np.int32), 2).tolist()
        [[1, 1, 0, 0]]
    """
    faces = faces_of(label_map)
    area = np.bincount(faces.ravel())
    return np.where(area[faces] < min_area, 0, label_map).astype(np.int32)


def _check(label_map: NDArray[np.int32], score_map: NDArray[np.float32], labels: int) -> None:
    if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
        raise SettingsError(f"label map: expected integers [H, W], got {label_map.dtype} {list(label_map.shape)}")
    if score_map.shape != label_map.shape:
        raise SettingsError(f"score map: its shape {score_map.shape} differs from the label map's {label_map.shape}")
    if label_map.size and (label_map.min() < 0 or label_map.max() > labels):
        raise SettingsError(f"label map: values must be between 0 and {labels}, the number of labels")
