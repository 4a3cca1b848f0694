from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score

from tcl_core.evaluation import MeanIoU
from tcl_core.evaluation.playground import (
    VARIANTS,
    EvaluationRow,
    evaluate_playground,
    format_rows,
    rows_to_json,
    variants_of,
)

REPOSITORY = Path(__file__).parents[2]
TABLE = REPOSITORY / "training" / "playground" / "results" / "table.json"


@pytest.mark.slow
@given(st.integers(2, 6), st.integers(0, 2**31))
def test_mean_iou_equals_scikit_learn(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    metric = MeanIoU(classes)
    truths, predictions = rng.integers(0, classes + 1, (2, 3, 7, 5))
    for ground_truth, prediction in zip(truths, predictions, strict=True):
        metric.update(ground_truth, prediction)
    counted = truths > 0
    for value in range(1, classes + 1):
        if not ((truths == value) | (predictions == value))[counted].any():
            assert np.isnan(metric.per_class()[value - 1])
            continue
        expected = jaccard_score(truths[counted] == value, predictions[counted] == value, zero_division=0)
        assert metric.per_class()[value - 1] == pytest.approx(expected)
    present = [v - 1 for v in range(1, classes + 1) if (truths == v).any()]
    assert metric.compute() == pytest.approx(np.mean(metric.per_class()[present]))


def test_dataset_level_is_not_the_mean_of_images() -> None:
    metric = MeanIoU(1, ignore=9)
    metric.update(np.array([[1, 1, 1, 1]]), np.array([[1, 1, 1, 1]]))
    metric.update(np.array([[1, 1]]), np.array([[0, 0]]))
    assert metric.compute() == pytest.approx(4 / 6)


def test_nothing_counted_is_nan_and_bad_input_is_refused() -> None:
    metric = MeanIoU(2)
    assert np.isnan(metric.compute())
    with pytest.raises(ValueError, match="shape"):
        metric.update(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="prediction has values"):
        metric.update(np.ones((1, 1), int), np.full((1, 1), 3))
    with pytest.raises(ValueError, match="at least 1"):
        MeanIoU(0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_embedded_model_is_the_one_of_the_recorded_table() -> None:
    """The table is of `tcl-annotate playground evaluate`, 500 scenes; here on fewer, with room for chance."""
    from tcl_core.models import load_model

    model = load_model("playground")
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))
    assert recorded["weights_sha256"] == model.weights_sha256
    rows = evaluate_playground(model, scenes=16)
    assert [row.variant for row in rows] == [entry["variant"] for entry in recorded["rows"]] == list(VARIANTS)
    for row, entry in zip(rows, recorded["rows"], strict=True):
        assert row.seen == pytest.approx(entry["seen"], abs=8)
        assert row.held_out == pytest.approx(entry["held_out"], abs=8)
    assert rows[-1].seen > rows[0].seen
    assert format_rows(rows).count("|") == (len(rows) + 2) * 9
    assert json.loads(rows_to_json(rows))[0]["lost"] == pytest.approx(rows[0].loss)


def test_the_recorded_table_meets_the_bars() -> None:
    rows = {row["variant"]: row for row in json.loads(TABLE.read_text(encoding="utf-8"))["rows"]}
    tcl, baseline = rows["TCL + PAMR"], rows["dense baseline: CLIP's value path"]
    assert tcl["seen"] >= 60 and tcl["seen"] >= baseline["seen"] + 15
    assert tcl["lost"] <= 10


@pytest.mark.slow
def test_a_model_that_debiases_nothing_has_no_row_for_it() -> None:
    from tcl_core.models import load_model

    model = load_model("playground", device="cpu")
    rows = {row.variant: row for row in evaluate_playground(model, scenes=1)}
    plain = evaluate_playground(replace(model, debiasing=None), scenes=1)
    assert [row.variant for row in plain] == [name for name, variant in VARIANTS.items() if variant.debias]
    only = {"TCL + PAMR": variants_of(model)["TCL + PAMR"]}
    (alone,) = evaluate_playground(model, scenes=1, variants=only)
    assert alone == rows["TCL + PAMR"]
    (other,) = evaluate_playground(model, scenes=1, split="test", variants=only)
    assert other != alone
    assert plain[3].seen_stuff == rows["TCL + PAMR, prompts not debiased"].seen_stuff


def test_the_documents_table_is_the_recorded_one() -> None:
    page = (REPOSITORY / "docs" / "playground.md").read_text(encoding="utf-8")
    rows = [
        EvaluationRow(**{key: value for key, value in entry.items() if key != "lost"})
        for entry in json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    ]
    assert format_rows(rows) in page
