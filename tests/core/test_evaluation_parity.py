"""Evaluation against numbers that mmsegmentation and TCL's own code produced; see `evaluation_records`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tcl_core.evaluation.datasets import BENCHMARKS, open_benchmark
from tcl_core.evaluation.jobs import ModelSpec
from tcl_core.evaluation.records import JournalIndex
from tcl_core.evaluation.report import build_result
from tcl_core.evaluation.run import Evaluation
from tcl_core.images import resize_bilinear, working_size
from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.segmentation.segmenter import Segmenter
from tests.core.evaluation_records import EXPECTED, FOLDER, SETTINGS, label_maps, recorded_model

SETS = [name for name in BENCHMARKS if any(key.startswith(f"{name}/") for key in SETTINGS)]


def test_the_record_is_complete() -> None:
    """A record that lost its settings must not pass for want of comparisons."""
    assert len({key.split("/")[0] for key in SETTINGS}) == len(SETS) > 0
    if "EVAL_PARITY_DIR" not in os.environ:
        assert len(SETS) == 8 and len(SETTINGS) == 34
        assert {entry["pamr"] for entry in EXPECTED["results"].values()} == {False, True}


@pytest.mark.parametrize("key", SETTINGS)
def test_label_maps_and_figures(key: str, tmp_path: Path) -> None:
    name, protocol, _ = key.split("/")
    recorded = EXPECTED["results"][key]
    model = recorded_model(name, protocol)
    segmenter = Segmenter(model, refine=recorded["pamr"], options={"kp_weight": recorded["kp_w"], **PIXELS})
    data = open_benchmark(name, FOLDER / "data")
    height = recorded["bg_thresh"]
    if height is not None and "EVAL_PARITY_DIR" not in os.environ:
        assert segmenter.background_threshold == height, "the papers' heights are the method's own"
    classes = ModelSpec("record", background_threshold=height).applied_to(data.classes)
    assert len(data.classes.names) == recorded["classes"]
    evaluation = Evaluation(data, segmenter, tmp_path, effort=False, classes=classes)
    evaluation.work()

    images = recorded["pictures"]
    assert [Path(each).name for each in data.images] == [Path(each).name for each in images]
    records = JournalIndex(tmp_path, evaluation.identity()).records(data.images)
    near_ties = 0
    for index, (own, (image, counts)) in enumerate(zip(records, images.items(), strict=True)):
        expected = label_maps()[f"{key}/{image}"].astype(int)
        allowed = counts["margin_below_1e5"]
        near_ties += allowed
        assert (evaluation.prediction(index) != expected).sum() <= allowed, image
        confusion = own.confusion(recorded["classes"])
        assert list(own.size) == counts["ori_shape"]
        preprocess = model.preprocess
        assert [*working_size(*own.size, preprocess.short_side, preprocess.max_long_side)] == counts["img_shape"]
        np.testing.assert_array_equal(confusion.sum(axis=1), counts["label"])
        assert np.abs(np.diag(confusion) - counts["intersect"]).max() <= allowed
        union = confusion.sum(axis=1) + confusion[:, :-1].sum(axis=0) - np.diag(confusion)
        assert np.abs(union - counts["union"]).max() <= allowed

    result = build_result(evaluation)
    intersect, union = np.array(recorded["intersect"]), np.array(recorded["union"])
    rows = result["classes"]
    assert np.abs([row["intersect"] for row in rows] - intersect).max() <= near_ties
    assert np.abs([row["union"] for row in rows] - union).max() <= near_ties
    slack = []
    for row, iou, size in zip(rows, recorded["IoU"], union, strict=True):
        assert (row["iou"] is None) == (iou is None) or near_ties
        if iou is not None and row["iou"] is not None:
            # So many pixels may have gone to or come from the class.
            slack.append(2 * near_ties / max(size - near_ties, 1) + 1e-12)
            assert row["iou"] == pytest.approx(iou, abs=slack[-1])
    scores = result["scores"]
    assert scores["mean_iou"] == pytest.approx(recorded["mIoU"], abs=np.mean(slack))
    assert scores["pixel_accuracy"] == pytest.approx(
        recorded["aAcc_rounded"], abs=5.1e-5 + near_ties / sum(recorded["label"])
    )


@pytest.mark.skipif(not (FOLDER / "resized_small.npz").is_file(), reason="the record holds no resized images")
def test_images_are_resized_as_recorded() -> None:
    checked = 0
    with np.load(FOLDER / "resized_small.npz") as record:
        for name in SETS:
            data = open_benchmark(name, FOLDER / "data")
            for index, image in enumerate(data.images):
                for key in (f"{name}/{image}", f"{name}/{Path(image).name}"):
                    if key in record:
                        expected = record[key]
                        own = resize_bilinear(data.image(index), expected.shape[:2])
                        np.testing.assert_array_equal(own, expected)
                        checked += 1
    assert checked
