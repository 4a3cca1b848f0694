"""Metrics of an evaluation, against scikit-learn, scikit-image on single masks, and published implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.morphology import binary_dilation, binary_erosion, disk
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from tcl_core.evaluation.boundary import REACH, band_width, boundary_counts, boundary_scores
from tcl_core.evaluation.confusion import confusion_matrix as own_confusion
from tcl_core.evaluation.confusion import scores_of

REFERENCE = np.load(Path(__file__).parents[1] / "data" / "boundary" / "reference.npz")
REFERENCE_NAMES = ("truth", "prediction", "boundary_iou", "framed_truth", "framed_prediction", "surface_dice")


@given(st.integers(2, 6), st.integers(0, 2**31))
def test_figures_equal_those_of_scikit_learn(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # The last class is in neither, the last but one only in the prediction.
    truth = rng.integers(-1, classes, (3, 9, 8))
    prediction = rng.integers(0, classes + 1, truth.shape)
    total = sum(own_confusion(t, p, classes + 2) for t, p in zip(truth, prediction, strict=True))
    scores = scores_of(np.asarray(total))
    true, predicted = truth[truth >= 0], prediction[truth >= 0]
    expected = confusion_matrix(true, predicted, labels=range(classes + 2))
    np.testing.assert_array_equal(np.asarray(total)[:, :-1], expected)
    present = sorted({*true.tolist(), *predicted.tolist()})
    iou = jaccard_score(true, predicted, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose(scores.iou[present], iou)
    absent = [each for each in range(classes + 2) if each not in present]
    assert np.isnan(scores.iou[absent]).all()
    assert scores.mean_iou == pytest.approx(iou.mean())
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(true, predicted))
    in_truth = sorted(set(true.tolist()))
    recall = recall_score(true, predicted, labels=in_truth, average=None, zero_division=0)
    np.testing.assert_allclose(scores.accuracy[in_truth], recall)
    assert scores.mean_accuracy == pytest.approx(recall.mean())
    weights = np.bincount(true, minlength=classes + 2)[present] / len(true)
    assert scores.frequency_weighted_iou == pytest.approx((weights * iou).sum())


def test_nothing_predicted_is_a_miss_and_no_class() -> None:
    truth, prediction = np.array([[0, 0, 1, -1]]), np.array([[0, -1, -1, 1]])
    scores = scores_of(own_confusion(truth, prediction, 2))
    assert scores.union.tolist() == [2, 1] and scores.intersect.tolist() == [1, 0]
    assert scores.predicted.tolist() == [1, 0] and scores.labeled.tolist() == [2, 1]
    assert scores.pixel_accuracy == pytest.approx(1 / 3)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        own_confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(ValueError, match="prediction has values"):
        own_confusion(np.zeros((1, 1), int), np.full((1, 1), 2), 2)
    with pytest.raises(ValueError, match="truth has values"):
        own_confusion(np.full((1, 1), 255), np.zeros((1, 1), int), 2)
    assert np.isnan(scores_of(own_confusion(np.full((2, 2), -1), np.zeros((2, 2), int), 3)).mean_iou)


# -- boundaries --------------------------------------------------------------------------------------------------------


def blobs(rng: np.random.Generator, classes: int, size: tuple[int, int]) -> NDArray[np.int64]:
    coarse = rng.integers(0, classes, (size[0] // 7 + 1, size[1] // 6 + 1))
    fine = coarse.repeat(7, axis=0).repeat(6, axis=1)[: size[0], : size[1]]
    flip = rng.random(size) < 0.02
    return np.where(flip, rng.integers(0, classes, size), fine)


def contour(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask with a neighbor in the image that is outside of it."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    return mask & binary_dilation(np.pad(~mask, 1), cross)[1:-1, 1:-1]


def near_contour(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """As Cheng et al. have it: what as many erosions as the band is wide take away."""
    eroded = np.pad(mask, 1)
    for _ in range(width):
        eroded = np.pad(binary_erosion(eroded, np.ones((3, 3), bool))[1:-1, 1:-1], 1)
    return mask & ~eroded[1:-1, 1:-1]


@pytest.mark.parametrize("seed", range(6))
def test_boundaries_equal_morphology_of_single_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, classes = (int(rng.integers(30, 70)), int(rng.integers(30, 70))), 4
    truth, prediction = blobs(rng, classes - 1, size), blobs(rng, classes, size) - 1
    counted = np.ones(size, bool)
    if seed % 2:
        counted[5:20, 3:9] = counted[-2:, :] = False
    shown = np.where(counted, truth, -1)
    counts = boundary_counts(shown, prediction, classes)
    near = np.ones(size, bool)
    filled = _filled(shown)
    if seed % 2:
        rows, columns = np.nonzero(counted)
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1).reshape(-1, 1, 2)
        far = np.sqrt(((grid - np.stack([rows, columns], axis=-1)) ** 2).sum(axis=-1))
        lent = (far == far.min(axis=1, keepdims=True)) & (truth[rows, columns] == filled.reshape(-1, 1))
        assert lent.any(axis=1).all(), "a pixel took the class of one that is not the nearest"
        near = (far.min(axis=1) <= REACH).reshape(size)
    for number in range(classes):
        masks = prediction == number, filled == number
        edges = [contour(mask) & near for mask in masks]
        wide = [binary_dilation(edge, disk(2)) for edge in edges]
        expected = [edges[0].sum(), (edges[0] & wide[1]).sum(), edges[1].sum(), (edges[1] & wide[0]).sum()]
        found = [getattr(counts, name)[number] for name in ("predicted", "predicted_met", "true", "true_met")]
        assert found == expected
        bands = [near_contour(mask, band_width(*size)) & counted for mask in masks]
        assert counts.band_intersect[number] == (bands[0] & bands[1]).sum()
        assert counts.band_union[number] == (bands[0] | bands[1]).sum()


def _filled(truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same choice among equally near pixels; that they are the nearest is for the test to see."""
    return truth[tuple(distance_transform_edt(truth < 0, return_indices=True)[1])]


@pytest.mark.parametrize("case", range(4))
def test_boundaries_equal_published_implementations(case: int) -> None:
    """`tests/data/boundary/README.md` says how the numbers were made."""
    record = {name: REFERENCE[f"{case}/{name}"] for name in REFERENCE_NAMES}
    counts = boundary_counts(record["truth"].astype(int), record["prediction"].astype(int), 4)
    found = np.stack([counts.band_intersect, counts.band_union], axis=1)
    np.testing.assert_array_equal(found, record["boundary_iou"])
    framed = boundary_counts(record["framed_truth"].astype(int), record["framed_prediction"].astype(int), 4)
    met, all_pixels = framed.predicted_met + framed.true_met, framed.predicted + framed.true
    np.testing.assert_allclose((met / all_pixels)[1:], record["surface_dice"], rtol=1e-6)


def test_equal_maps_meet_everywhere_and_what_is_absent_has_no_figure() -> None:
    truth = blobs(np.random.default_rng(1), 3, (40, 50))
    score, iou = boundary_scores(boundary_counts(truth, truth, 4))
    assert score[:3].tolist() == iou[:3].tolist() == [1, 1, 1]
    assert np.isnan([score[3], iou[3]]).all()
    nothing = boundary_scores(boundary_counts(np.full((5, 5), -1), np.zeros((5, 5), int), 2))
    assert np.isnan(nothing).all()


def test_a_void_band_hides_the_boundary_in_its_middle() -> None:
    """A prediction whose boundary runs inside the band of PASCAL VOC is right."""
    truth = np.zeros((40, 40), int)
    truth[:, 20:] = 1
    prediction = truth.copy()
    truth[:, 18:23] = -1
    score, _ = boundary_scores(boundary_counts(truth, prediction, 2))
    assert score.tolist() == [1, 1]
    moved = np.roll(prediction, 6, axis=1)
    moved[:, :6] = 0
    assert boundary_scores(boundary_counts(truth, moved, 2))[0].tolist() == [0, 0]
