"""From a label map to regions: one connected piece of one label each, with mask, score, box and polygon."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import SettingsError
from tcl_core.polygons import simplify_apart, simplify_coverage
from tcl_core.polygons.run_map import RunMap, strips
from tcl_core.specks import absorb_small_pieces
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
    runs = RunMap.of(label_map)
    kept = runs
    if min_area > 1:
        kept = _without_small(runs, min_area) if small == "drop" else absorb_small_pieces(runs, min_area)
    faces = kept.faces()
    face = faces.values
    count = int(face.max())
    label_of = np.zeros(count + 1, dtype=np.int64)
    label_of[face] = kept.values
    area = np.bincount(face, weights=faces.lengths, minlength=count + 1).astype(np.int64)
    score = _mean_scores(label_map, score_map, kept, faces)
    wanted = label_of[1:] > 0
    polygons = None
    if tolerance is not None:
        polygons = (
            simplify_coverage(faces, tolerance, wanted=wanted) if shared else simplify_apart(faces, tolerance, wanted)
        )
    order = np.lexsort((np.arange(1, count + 1), label_of[1:])) + 1
    by_face = np.argsort(face, kind="stable")
    first_of = np.searchsorted(face[by_face], np.arange(count + 2))
    regions = []
    for number in order[label_of[order] > 0].tolist():
        bbox, mask = _crop(faces, by_face[first_of[number] : first_of[number + 1]])
        regions.append(
            Region(
                label_id=int(label_of[number]),
                label=names[label_of[number] - 1],
                score=float(score[number]),
                area=int(area[number]),
                bbox=bbox,
                mask=mask,
                polygon=None if polygons is None else polygons[number - 1],
            )
        )
    return regions


def _mean_scores(
    label_map: NDArray[np.int32], score_map: NDArray[np.float32], kept: RunMap, faces: RunMap
) -> NDArray[np.float64]:
    """The mean score of each face over the pixels that its label won, float64 ``[faces + 1]``."""
    count = int(faces.values.max()) + 1
    total = np.zeros(count)
    won = np.bincount(faces.values, weights=faces.lengths, minlength=count)
    for rows in strips(*label_map.shape):
        labels = kept.rows(rows)
        face, labeled = faces.rows(rows), labels > 0
        own = labels == label_map[rows]
        np.subtract.at(won, face[labeled & ~own], 1)
        own &= labeled
        # Pixel after pixel, so that sums do not depend on where strips end.
        np.add.at(total, face[own], score_map[rows][own].astype(np.float64))
    return np.clip(total / np.maximum(won, 1), 0, 1)


def _crop(faces: RunMap, runs: NDArray[np.int64]) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
    """The box ``(x, y, width, height)`` of some runs (int64), in reading order, and their mask in it."""
    row, left = np.divmod(faces.starts[runs], faces.size[1])
    right = left + faces.lengths[runs]
    x, y, width, height = left.min(), row[0], right.max() - left.min(), row[-1] - row[0] + 1
    steps = np.zeros(height * width + 1, dtype=np.int8)
    place = (row - y) * width - x
    # A run may begin where the last one ends, at the end of a row.
    steps[place + left] += 1
    steps[place + right] -= 1
    mask = np.cumsum(steps, dtype=np.int8, out=steps)[:-1].view(bool).reshape(height, width)
    return (int(x), int(y), int(width), int(height)), mask


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
    kept = _without_small(RunMap.of(label_map), min_area)
    return kept.pixels().astype(np.int32)


def _without_small(label_map: RunMap, min_area: int) -> RunMap:
    piece = label_map.pieces()
    area = np.bincount(piece, weights=label_map.lengths)
    return label_map.with_values(np.where(area[piece] < min_area, 0, label_map.values))


def _check(label_map: NDArray[np.int32], score_map: NDArray[np.float32], labels: int) -> None:
    if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
        raise SettingsError(f"label map: expected integers [H, W], got {label_map.dtype} {list(label_map.shape)}")
    if score_map.shape != label_map.shape:
        raise SettingsError(f"score map: its shape {score_map.shape} differs from the label map's {label_map.shape}")
    if label_map.size and (label_map.min() < 0 or label_map.max() > labels):
        raise SettingsError(f"label map: values must be between 0 and {labels}, the number of labels")
