"""The table of the page on evaluation is that of the recorded run, which agrees with the playground's own table."""

from __future__ import annotations

import csv
import json

import pytest

from tcl_core.evaluation.report import summary_table
from tests.docs.pages import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "playground"
TABLE = REPOSITORY / "training" / "playground" / "results" / "table.json"


def test_the_table_is_that_of_the_recorded_run() -> None:
    results = json.loads((RESULTS / "summary.json").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert summary_table(results) in page
    assert (RESULTS / "summary.md").read_text(encoding="utf-8") == summary_table(results) + "\n"
    with (RESULTS / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_iou"]) for row in rows] == [result["scores"]["mean_iou"] for result in results]


def test_two_ways_to_the_same_figures() -> None:
    """`playground evaluate` scores in batches, and averages over the classes in the truth: here all of them."""
    results = json.loads((RESULTS / "summary.json").read_text(encoding="utf-8"))
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert {result["model"]["weights_sha256"] for result in results} == {table["weights_sha256"]}
    rows = {row["variant"]: row["seen"] for row in table["rows"]}
    own = {
        result["model"]["refine"]: result["scores"]["mean_iou"]
        for result in results
        if result["model"]["model"] == "playground"
    }
    assert set(own) == {False, True}
    assert 100 * own[True] == pytest.approx(rows["TCL + PAMR + unit"], abs=0.01)
