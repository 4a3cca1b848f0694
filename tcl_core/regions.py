"""From a label map to regions: one connected piece of one label each, with mask, score, box and polygon."""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from numpy.typing import NDArray
from scipy import ndimage

from tcl_core.errors import SettingsError
from tcl_core.polygons import simplify_apart, simplify_coverage
from tcl_core.polygons.arcs import faces_of
from tcl_core.types import Region, Segmentation

__all__ = ["absorb_small", "drop_small", "label_map_to_regions"]


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
        small: what happens to them: ``"drop"`` leaves background (0) in their place, ``"merge"`` gives their pixels to
            the label (or background) around them with the longest shared border.
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
        raise SettingsError(f"min_area: {min_area} is negative; give a number of pixels from 0 up")
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


def absorb_small(label_map: NDArray[np.int32], min_area: int) -> NDArray[np.int32]:
    """Merge regions of fewer than ``min_area`` pixels into the label around them with the longest shared border.

    The smallest go first (ties: reading order), so that a speck inside a small region joins it before that region
    is checked. Equal borders go to the smaller label. Pieces of background (0) are not regions and stay; a region that
    fills the image stays.

    Args:
        label_map: int32 ``[H, W]``, 0 is background.
        min_area: pixels.

    Returns:
        A new label map, in which every region that has a neighbor has at least ``min_area`` pixels.

    Examples:
        >>> absorb_small(np.array([[1, 1, 1], [1, 2, 0], [1, 1, 1]], dtype=np.int32), 2).tolist()
        [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    """
    faces = faces_of(label_map)
    count = int(faces.max(initial=0)) + 1
    group = np.arange(count)  # which piece each of the first pieces belongs to by now
    area = np.bincount(faces.ravel(), minlength=count)
    label_of = np.zeros(count, dtype=np.int64)
    label_of[faces] = label_map
    one, two, border = _neighbors(faces)
    # The image is only looked at here: what follows are pieces and the borders between them.
    while True:
        is_small = (area < min_area) & (label_of > 0)
        is_small[0] = False
        # Only the smallest of touching small regions moves in one round: two must not swap labels.
        rank = np.empty(len(area), dtype=np.int64)
        rank[np.lexsort((np.arange(len(area)), area))] = np.arange(len(area))
        waits = np.zeros(len(area), dtype=bool)
        waits[one[is_small[one] & is_small[two] & (rank[two] < rank[one])]] = True
        asked = is_small[one] & ~waits[one]
        if not asked.any():
            return label_of[group][faces].astype(np.int32)
        labels = int(label_of.max()) + 1
        key, index = np.unique(one[asked] * labels + label_of[two[asked]], return_inverse=True)
        shared = np.bincount(index, border[asked])
        face, label = key // labels, key % labels
        best = np.lexsort((label, -shared, face))
        first = best[np.append(True, face[best][1:] != face[best][:-1])]
        label_of[face[first]] = label[first]
        new = _joined(label_of, one, two)
        group = new[group]
        pieces = int(new.max()) + 1
        area = np.bincount(new, area, minlength=pieces).astype(np.int64)
        labels_before, label_of = label_of, np.zeros(pieces, dtype=np.int64)
        label_of[new] = labels_before
        apart = new[one] != new[two]
        key, index = np.unique(new[one[apart]] * pieces + new[two[apart]], return_inverse=True)
        border = np.bincount(index, border[apart]).astype(np.float64)
        one, two = key // pieces, key % pieces


def _neighbors(faces: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of pieces that share a border, each in both orders, and how many pixel edges they share."""
    pairs = []
    for here, there in ((faces[:, 1:], faces[:, :-1]), (faces[1:], faces[:-1])):
        differ = here != there
        pairs.append(np.stack([here[differ], there[differ]]))
    here, there = np.concatenate(pairs, axis=1)
    pieces = int(faces.max(initial=0)) + 1
    both = np.concatenate([here * pieces + there, there * pieces + here])
    key, border = np.unique(both, return_counts=True)
    return key // pieces, key % pieces, border.astype(np.float64)


def _joined(label_of: NDArray[np.int64], one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.int64]:
    """New numbers of pieces, neighbors of one label together, in the order of the first of each."""
    count = len(label_of)
    same = label_of[one] == label_of[two]
    links = scipy.sparse.csr_matrix((np.ones(int(same.sum())), (one[same], two[same])), shape=(count, count))
    _, component = scipy.sparse.csgraph.connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[component]


def _check(label_map: NDArray[np.int32], score_map: NDArray[np.float32], labels: int) -> None:
    if label_map.ndim != 2 or not np.issubdtype(label_map.dtype, np.integer):
        raise SettingsError(f"label map: expected integers [H, W], got {label_map.dtype} {list(label_map.shape)}")
    if score_map.shape != label_map.shape:
        raise SettingsError(f"score map: its shape {score_map.shape} differs from the label map's {label_map.shape}")
    if label_map.size and (label_map.min() < 0 or label_map.max() > labels):
        raise SettingsError(f"label map: values must lie between 0 and {labels}, the number of labels")
