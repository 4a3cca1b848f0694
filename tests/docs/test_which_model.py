"""What a page calls measured is what the recorded runs of this project say."""

from __future__ import annotations

import json
import re

from tests.docs.pages import REPOSITORY

RESULTS = REPOSITORY / "training" / "playground" / "results"


def test_measured_figures_are_those_of_the_recorded_runs() -> None:
    page = (REPOSITORY / "docs" / "which-model.md").read_text(encoding="utf-8")
    measured = page.partition("## Measured here")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?:TCL \()?`([\w:-]+)`\)? \| ([\d.]+) \| ([\d.]+) \|$", measured, re.MULTILINE)
    # As the models are used without options: with the adaptive semantic unit where it is on.
    recorded = {
        entry["model"]: row
        for entry in json.loads((RESULTS / "training-free.json").read_text())
        for row in entry["rows"]
        if row["variant"] == ("+ PAMR + unit" if entry["model"] == "maskclip:playground" else "+ PAMR")
    }
    table = json.loads((RESULTS / "table.json").read_text())
    recorded["playground"] = next(row for row in table["rows"] if row["variant"] == "TCL + PAMR + unit")
    assert {name for name, *_ in rows} == recorded.keys() - {"maskclip-refined:playground"}
    for name, seen, held_out in rows:
        assert (seen, held_out) == (f"{recorded[name]['seen']:.1f}", f"{recorded[name]['held_out']:.1f}")
    order = [float(seen) for _, seen, _ in rows]
    assert order == sorted(order, reverse=True)
