"""The figures in the text of CoDe's page are those of the recorded runs."""

from __future__ import annotations

import json
from typing import Any

from tests.docs.pages import REPOSITORY

RUNS = json.loads((REPOSITORY / "training/playground/results/methods.json").read_text(encoding="utf-8"))["runs"]


def page() -> str:
    return " ".join((REPOSITORY / "docs" / "code.md").read_text(encoding="utf-8").split())


def run(name: str) -> dict[str, Any]:
    """A run of full length."""
    (found,) = (one for one in RUNS if (one["run"], one["steps"], one["seed"]) == (name, 1500, 0))
    return found


def quarter(name: str, which: str = "seen") -> float:
    """The mean over the seeds of a quarter of the steps."""
    found = [one["rows"] for one in RUNS if (one["run"], one["steps"], one["scenes"]) == (name, 375, 500)]
    assert len(found) == 3
    return sum(row[which] for rows in found for row in rows if row["variant"].endswith(" + PAMR")) / len(found)


def score(name: str, which: str = "seen") -> float:
    (row,) = (row for row in run(name)["rows"] if row["variant"].endswith(" + PAMR"))
    return row[which]


def test_how_far_it_is_above() -> None:
    names, sets = ("code-regions-only", "tcl"), ("seen", "held_out")
    gains = [mean(names[0], which) - mean(names[1], which) for mean in (quarter, score) for which in sets]
    text = (
        "by {:.1f} points of seen and {:.1f} of held-out combinations (three seeds). At full length it is level with "
        "TCL on seen and {:.1f} points above it on held-out combinations (one seed)"
    )
    assert text.format(gains[0], gains[1], gains[3]) in page()
    assert min(gains) > 0 and gains[2] < 0.5


def test_what_the_contrast_costs() -> None:
    own, brief = (score(f"{name}-regions-only") - score(name) for name in ("code", "code-brief"))
    assert f"gains {own:.1f} points of seen combinations with CoDe's captions and {brief:.1f} with TCL's" in page()
    assert f"cost TCL {score('tcl') - score('tcl-two'):.1f} points at full length" in page()
    assert f"({score('tcl', 'seen_stuff'):.1f} and {score('tcl-two', 'seen_stuff'):.1f})" in page()
    more, less = score("code-brief") - score("code"), score("code-regions-only") - score("code-brief-regions-only")
    assert f"CoDe gains {more:.1f} points, and without the contrast it loses {less:.1f}" in page()
    # What the heading says.
    assert score("code") < score("tcl") and score("code-brief") < score("code-brief-regions-only") < score("tcl")
    assert abs(score("code-regions-only") - score("tcl")) < 0.5
    assert score("code-regions-only", "held_out") > score("tcl", "held_out") + 1


def test_what_the_contrast_does() -> None:
    with_it, without = (run(name)["losses"] for name in ("code-brief", "code-brief-regions-only"))
    pairs = {name: (with_it[name], without[name]) for name in with_it}
    regions, pixels, other = (pairs[name] for name in ("hli_noun_loss", "hlf_noun_loss", "neg_mask"))
    assert f"highlighted regions and nouns of {regions[0]:.3f} and {regions[1]:.3f}" in page()
    assert f"pooled pixels and nouns of {pixels[0]:.3f} and {pixels[1]:.3f}" in page()
    assert f"({with_it['mask']:.3f} of the image)" in page() and round(without["mask"], 3) == round(with_it["mask"], 3)
    assert f"({other[0]:.3f} instead of {other[1]:.3f})" in page()
    edges = pairs["tv_mask_loss"]
    assert f"(a variation of {edges[0]:.4f} instead of {edges[1]:.4f})" in page()
