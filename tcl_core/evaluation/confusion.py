"""Confusion matrices, and the metrics that benchmarks derive from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl_core.evaluation.datasets.base import IGNORED

__all__ = ["Scores", "confusion_matrix", "scores_of"]


def confusion_matrix(truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Count the pixels of each pair of true and predicted class.

    Args:
        truth: integers ``[H, W]``, 0 to K - 1, or -1 where a pixel is ignored.
        prediction: integers ``[H, W]``, 0 to K - 1, or -1 where no class was predicted.
        classes: number of classes K.

    Returns:
        int64 ``[K, K + 1]``: one row per true class, one column per predicted class; the last column is no class.

    Raises:
        ValueError: the shapes differ or a value is out of range.

    Example:
        >>> confusion_matrix(np.array([[0, 1, 1, -1]]), np.array([[0, 1, -1, 1]]), 2).tolist()
        [[1, 0, 0], [0, 1, 1]]
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"the truth has shape {truth.shape}, but the prediction has {prediction.shape}")
    for name, values in (("the truth", truth), ("the prediction", prediction)):
        if values.size and (values.min() < IGNORED or values.max() >= classes):
            raise ValueError(f"{name} has values from {values.min()} to {values.max()}, expected -1 to {classes - 1}")
    counted = truth != IGNORED
    columns = np.where(prediction < 0, classes, prediction)[counted].astype(np.int64)
    pairs = truth[counted].astype(np.int64) * (classes + 1) + columns
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


@dataclass(frozen=True)
class Scores:
    """Metrics of a confusion matrix; shares are in ``[0, 1]``, NaN if there was nothing to count.

    Attributes:
        intersect: int64 ``[K]``, correctly predicted pixels.
        union: int64 ``[K]``, pixels of the class in truth or prediction.
        predicted: int64 ``[K]``, pixels of the class in the prediction.
        labeled: int64 ``[K]``, pixels of the class in the truth.
        iou: float64 ``[K]``; 0 for a class that is predicted but never true, NaN for a class that is neither.
        accuracy: float64 ``[K]``, the share of a class's true pixels that were found.
        mean_iou: over all classes except those in neither map, as mmsegmentation computes it.
        mean_accuracy: over the classes in the truth.
        pixel_accuracy: share of all pixels that are not ignored.
        frequency_weighted_iou: weighted by each class's share of the true pixels.
    """

    intersect: NDArray[np.int64]
    union: NDArray[np.int64]
    predicted: NDArray[np.int64]
    labeled: NDArray[np.int64]
    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float


def scores_of(confusion: NDArray[np.int64]) -> Scores:
    """The metrics of a confusion matrix.

    Args:
        confusion: int64 ``[K, K + 1]`` of `confusion_matrix`, or a sum of several.

    Example:
        >>> scores_of(np.array([[8, 0, 0], [1, 0, 1]])).iou.round(3).tolist()
        [0.889, 0.0]
    """
    classes = len(confusion)
    intersect = np.diag(confusion).copy()
    labeled, predicted = confusion.sum(axis=1), confusion[:, :classes].sum(axis=0)
    union = labeled + predicted - intersect
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersect / union, intersect / labeled
    total = int(labeled.sum())
    share = labeled / total if total else np.full(classes, np.nan)
    weighted = share[labeled > 0] * iou[labeled > 0]
    return Scores(
        intersect,
        union,
        predicted,
        labeled,
        iou,
        accuracy,
        mean_iou=_mean(iou),
        mean_accuracy=_mean(accuracy),
        pixel_accuracy=float(intersect.sum() / total) if total else float("nan"),
        frequency_weighted_iou=float(weighted.sum()) if total else float("nan"),
    )


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
