"""The figures of the page on references are those of the recorded runs."""

from __future__ import annotations

import json
from typing import Any

from tests.docs.pages import REPOSITORY

RESULTS = REPOSITORY / "training" / "playground" / "results"
COLUMNS = ("seen", "seen_kinds", "seen_stuff", "held_out", "held_out_kinds", "held_out_stuff")


def page() -> str:
    return (REPOSITORY / "docs" / "reco.md").read_text(encoding="utf-8")


def read(path: str) -> Any:
    return json.loads((REPOSITORY / path).read_text(encoding="utf-8"))


def test_the_table_is_that_of_the_recorded_runs() -> None:
    others = {entry["model"]: entry["rows"] for entry in json.loads((RESULTS / "training-free.json").read_text())}
    runs = {
        "MaskCLIP": others["maskclip:playground"],
        "ReCo-style": read("training/playground/results/reco.json")["rows"],
    }
    for name, rows in runs.items():
        # ReCo has no adaptive semantic unit, so MaskCLIP is shown without it.
        for row, ending in zip([row for row in rows if "unit" not in row["variant"]], ("", " + PAMR"), strict=True):
            figures = " | ".join(f"{row[column]:.1f}" for column in COLUMNS)
            assert f"| {name}{ending} | {figures} |" in page()


def test_the_figures_of_benchmarks() -> None:
    text = " ".join(page().split())
    doubt, memory = (read(f"benchmarks/results/{name}.json") for name in ("archive_doubt", "cosegmentation_memory"))
    shown, absent = doubt["shown"], doubt["not shown"]
    assert f"of {doubt['scenes']} scenes with {doubt['images']} images per word" in text
    assert f"{round(shown['words'] * shown['warned'])} of {shown['words']} words that enough scenes show" in text
    assert f"{absent['warned']:.0%}".replace("%", " %") + " of the words rightly" in text
    assert f"{memory['images']} images at {memory['side']} pixels took {memory['peak'] >> 20} MiB" in text.replace(
        ",", ""
    )
    assert f"more than {doubt['limit']:.0%}".replace("%", " %") in text
