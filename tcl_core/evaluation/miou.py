"""Dataset-level mean intersection over union."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MeanIoU"]


class MeanIoU:
    """Intersection over union of each class, with counts that are summed over a data set first.

    The confusion matrix has one row per true class and one column per predicted class. Pixels whose ground truth is the
    ignored value do not count; a prediction of 0 (background) is a miss of the true class.

    Args:
        classes: number of classes K; class values run from 1 to K.
        ignore: true value of pixels that are left out.

    Example:
        >>> metric = MeanIoU(2)
        >>> metric.update(np.array([[1, 1, 2, 0]]), np.array([[1, 2, 2, 1]]))
        >>> metric.per_class()
        array([0.5, 0.5])
        >>> metric.compute()
        0.5
    """

    def __init__(self, classes: int, ignore: int = 0):
        if classes < 1:
            raise ValueError(f"the number of classes must be at least 1, not {classes}")
        self.classes = classes
        self.ignore = ignore
        self.confusion = np.zeros((classes + 1, classes + 1), np.int64)

    def update(self, ground_truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
        """Add one image.

        Args:
            ground_truth: integer ``[H, W]``, values 0 to K and ``ignore``.
            prediction: integer ``[H, W]``, values 0 to K.

        Raises:
            ValueError: the shapes differ or a value is out of range.
        """
        if ground_truth.shape != prediction.shape:
            raise ValueError(
                f"the ground truth has shape {ground_truth.shape} but the prediction has {prediction.shape}"
            )
        counted = ground_truth != self.ignore
        rows, columns = ground_truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
        for name, values in (("the ground truth", rows), ("the prediction", columns)):
            if values.size and (values.min() < 0 or values.max() > self.classes):
                raise ValueError(
                    f"{name} has values from {values.min()} to {values.max()}, expected 0 to {self.classes}"
                )
        side = self.classes + 1
        self.confusion += np.bincount(rows * side + columns, minlength=side * side).reshape(side, side)

    def per_class(self) -> NDArray[np.float64]:
        """IoU of the classes 1 to K, float64 ``[K]`` in ``[0, 1]``; NaN for classes that occur in neither map."""
        hit = np.diag(self.confusion).astype(np.float64)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - hit
        with np.errstate(invalid="ignore"):
            return (hit / union)[1:]

    def present(self) -> NDArray[np.bool_]:
        """Which of the classes 1 to K occur in the ground truth, bool ``[K]``."""
        return self.confusion.sum(axis=1)[1:] > 0

    def compute(self, classes: slice = slice(None)) -> float:
        """Mean IoU over the classes that occur in the ground truth.

        Args:
            classes: which of the K classes to average over.

        Returns:
            The mean in ``[0, 1]``; NaN if none of them occurs.
        """
        values = self.per_class()[classes][self.present()[classes]]
        return float(values.mean()) if values.size else float("nan")
