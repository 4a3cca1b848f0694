"""Faults that users of other tools reported, tried on this one; each test names the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_core.errors import DataSetError
from tcl_core.evaluation.confusion import confusion_matrix, scores_of
from tcl_core.evaluation.datasets import open_benchmark
from tests.core.test_evaluation_datasets import DATA


def test_a_class_in_neither_map_has_no_iou() -> None:
    """torchmetrics 1693 and 2866: it counted as 0 and lowered the mean."""
    scores = scores_of(confusion_matrix(np.array([[0, 1, 0, 0]]), np.array([[0, 1, 0, 1]]), 3))
    np.testing.assert_allclose(scores.iou, [2 / 3, 1 / 2, np.nan])
    assert scores.mean_iou == pytest.approx(7 / 12)


@pytest.mark.parametrize("prediction", [[1, 2, 1, 1], [1, 2, 1, 0]])
def test_predictions_at_ignored_pixels_change_nothing(prediction: list[int]) -> None:
    """torchmetrics 312 and 1385: they stayed in the union, and the ignored class in the mean."""
    truth = np.array([[2, 1, 1, -1]])
    scores = scores_of(confusion_matrix(truth, np.array([prediction]), 3))
    np.testing.assert_allclose(scores.iou, [np.nan, 1 / 3, 0])
    assert scores.mean_iou == pytest.approx(1 / 6)


def test_counts_are_summed_before_they_are_divided() -> None:
    """mmsegmentation 2594: means of the IoU of single images give other figures than the official rule."""
    images = [
        (np.array([[1, 1, 1, 0]]), np.array([[1, 1, 1, 0]])),
        (np.array([[1, 0, 0, 0]]), np.array([[0, 0, 0, 0]])),
    ]
    total = np.sum([confusion_matrix(truth, prediction, 2) for truth, prediction in images], axis=0)
    np.testing.assert_allclose(scores_of(total).iou, [4 / 5, 3 / 4])


def test_label_ids_of_cityscapes_are_never_taken_for_train_ids(tmp_path: Path) -> None:
    """hellochick/ICNet-tensorflow 17 and PSPNet-tensorflow 25: an mIoU of 0.4 % without an error."""
    shutil.copytree(DATA / "cityscapes", tmp_path / "cityscapes")
    converted = open_benchmark("cityscapes", tmp_path)
    before = [converted.truth(index) for index in range(len(converted))]
    for path in tmp_path.rglob("*_gtFine_labelTrainIds.png"):
        path.unlink()
    released = open_benchmark("cityscapes", tmp_path)
    for index, expected in enumerate(before):
        np.testing.assert_array_equal(released.truth(index), expected)
    for path in tmp_path.rglob("*_gtFine_labelIds.png"):
        shutil.copy(path, path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    wrong = open_benchmark("cityscapes", tmp_path)
    with pytest.raises(DataSetError, match="which is not a class of cityscapes"):
        for index in range(len(wrong)):
            wrong.check(index)


@pytest.mark.parametrize("value", [182, 183, 25])
def test_coco_stuff_ids_beside_the_table_are_errors(value: int, tmp_path: Path) -> None:
    """kazuto1011/deeplab-pytorch 56, nightrome/cocostuff 17 and winycg/CIRKD 27: ids of another release, or none."""
    shutil.copytree(DATA / "coco_stuff164k", tmp_path / "coco_stuff164k")
    for path in tmp_path.rglob("*TrainIds.png"):
        path.unlink()
    label = sorted(tmp_path.rglob("annotations/val2017/*.png"))[0]
    values = np.asarray(Image.open(label)).copy()
    values[0, 0] = value
    Image.fromarray(values).save(label)
    for name in ("coco_stuff", "coco_object"):
        with pytest.raises(DataSetError, match=f"contains the value {value}, which is not a class of {name}"):
            open_benchmark(name, tmp_path).check(0)
