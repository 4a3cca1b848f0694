"""Boundary quality, for all classes of an image at once.

Two metrics for each class: the boundary F score (Csurka et al., BMVC 2013), the harmonic mean of precision (predicted
boundary pixels with a true one nearby) and recall (true boundary pixels with a predicted one nearby); and boundary IoU
(Cheng et al., CVPR 2021), the IoU of the parts of the masks that lie near their own contours.

Before boundaries are located, each ignored pixel, such as those of the void bands around the objects of PASCAL VOC,
takes the class of the nearest pixel that is not ignored, so that the boundary runs along the middle of a band. Boundary
pixels that are more than `REACH` pixels inside an ignored area, where the truth is unknown, do not count. Boundary IoU
leaves out all ignored pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tcl_core.evaluation.datasets.base import IGNORED

__all__ = ["BAND_SHARE", "REACH", "TOLERANCE", "BoundaryCounts", "band_width", "boundary_counts", "boundary_scores"]

TOLERANCE = 2
"""Maximum distance of matching boundary pixels, in pixels (Euclidean)."""

BAND_SHARE = 0.02
"""Width of the band of boundary IoU, as a share of the image's diagonal."""

REACH = 3
"""How deep inside an ignored area boundary pixels still count, in pixels."""

_OUTSIDE = -3


@dataclass(frozen=True)
class BoundaryCounts:
    """Pixel counts of each class, int64 ``[K]`` each; counts of several images can be added.

    Attributes:
        predicted: boundary pixels of the prediction.
        predicted_met: those near the true boundary.
        true: boundary pixels of the truth.
        true_met: those near the predicted boundary.
        band_intersect: pixels near the contour of both masks.
        band_union: pixels near the contour of either mask.
    """

    predicted: NDArray[np.int64]
    predicted_met: NDArray[np.int64]
    true: NDArray[np.int64]
    true_met: NDArray[np.int64]
    band_intersect: NDArray[np.int64]
    band_union: NDArray[np.int64]


def band_width(height: int, width: int) -> int:
    """Width of the band of boundary IoU in whole pixels, at least 1.

    >>> band_width(375, 500)
    12
    """
    return max(1, round(BAND_SHARE * math.hypot(height, width)))


def boundary_counts(truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int) -> BoundaryCounts:
    """Compare the boundaries of all classes of an image.

    A boundary pixel has one of its four neighbors in another class. The border of the image is not a boundary, except
    for boundary IoU, as its authors define it; there, distances are counted in steps to the eight neighbors.

    Args:
        truth: integers ``[H, W]``, 0 to K - 1, or -1 where a pixel is ignored.
        prediction: integers ``[H, W]``, 0 to K - 1, or -1 where no class was predicted.
        classes: number of classes K.
    """
    counted = truth != IGNORED
    if not counted.any():
        zero = np.zeros(classes, np.int64)
        return BoundaryCounts(zero, zero, zero, zero, zero, zero)
    filled, near = truth.astype(np.int16), counted
    predicted = prediction.astype(np.int16)
    if not counted.all():
        distance, places = ndimage.distance_transform_edt(~counted, return_indices=True)
        filled = filled[tuple(places)]
        near = distance <= REACH
    edges = [np.where(_has_other_neighbor(each) & near, each, IGNORED) for each in (predicted, filled)]
    own, met = [], []
    for mine, other in (edges, edges[::-1]):
        place = mine >= 0
        own.append(_per_class(mine[place], classes))
        met.append(_per_class(mine[place & _met(mine, other)], classes))
    width = band_width(*truth.shape)
    inner = [np.where(_near_contour(each, width) & counted, each, IGNORED) for each in (predicted, filled)]
    both = _per_class(inner[0][(inner[0] == inner[1]) & (inner[0] >= 0)], classes)
    sizes = [_per_class(each[each >= 0], classes) for each in inner]
    return BoundaryCounts(own[0], met[0], own[1], met[1], both, sizes[0] + sizes[1] - both)


def boundary_scores(counts: BoundaryCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boundary F and boundary IoU of each class, float64 ``[K]`` in ``[0, 1]``; NaN for classes without one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(counts.predicted > 0, counts.predicted_met / counts.predicted, 0.0)
        recall = np.where(counts.true > 0, counts.true_met / counts.true, 0.0)
        score = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
        score[(counts.predicted == 0) & (counts.true == 0)] = np.nan
        return score, counts.band_intersect / counts.band_union


def _per_class(values: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    return np.bincount(values, minlength=classes).astype(np.int64)


def _has_other_neighbor(classes: NDArray[np.int16]) -> NDArray[np.bool_]:
    found = np.zeros(classes.shape, bool)
    rows, columns = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
    found[1:] |= rows
    found[:-1] |= rows
    found[:, 1:] |= columns
    found[:, :-1] |= columns
    return found


def _met(mine: NDArray[np.int16], other: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Where ``other`` has the same class within the tolerance; one comparison per offset serves all classes."""
    height, width = mine.shape
    padded = np.pad(other, TOLERANCE, constant_values=_OUTSIDE)
    found = np.zeros(mine.shape, bool)
    reach = range(-TOLERANCE, TOLERANCE + 1)
    for down, right in ((y, x) for y in reach for x in reach if y * y + x * x <= TOLERANCE**2):
        y, x = TOLERANCE + down, TOLERANCE + right
        found |= padded[y : y + height, x : x + width] == mine
    return found


def _near_contour(classes: NDArray[np.int16], width: int) -> NDArray[np.bool_]:
    """Pixels with another class, or the outside of the image, within ``width`` steps to the eight neighbors."""
    size = 2 * width + 1
    greatest = ndimage.maximum_filter(classes, size, mode="constant", cval=_OUTSIDE)
    least = ndimage.minimum_filter(classes, size, mode="constant", cval=_OUTSIDE)
    return (greatest != classes) | (least != classes)
