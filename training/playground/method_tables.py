"""Tables of compared methods, see `training.playground.compare_methods`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcl_core.evaluation.playground import Split
from tcl_core.methods.semantic_unit import PIXELS

__all__ = ["comparison", "gains_of", "key_of", "scores_folder", "summary", "table", "unit_gains"]

_FIGURES = ("seen", "seen_kinds", "seen_stuff", "held_out")


def scores_folder(work: Path, split: Split) -> Path:
    """Where the scores of a comparison are."""
    return work / ("scores" if split == "validation" else f"scores-{split}")


def table(work: Path, split: Split = "validation") -> str:
    """All scores of a split as Markdown."""
    lines = [
        "| run | steps | seed | PAMR | seen: all | kinds | stuff | held out: all |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(scores_folder(work, split).glob("*.json")):
        run, steps, seed = path.stem.rsplit("-", 2)
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            figures = " | ".join(f"{row[key]:.1f}" for key in _FIGURES)
            lines.append(f"| {run} | {steps} | {seed} | {'yes' if _is_refined(row) else 'no'} | {figures} |")
    return "\n".join(lines)


def _is_refined(row: Mapping[str, Any]) -> bool:
    return "PAMR" in row["variant"]


def summary(runs: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Means over seeds as Markdown, in the order of the names.

    Args:
        runs: ``run``, ``steps``, ``seed``, ``scenes`` and ``rows`` of each.
        names: what is shown, and what it is called in the table; other runs are left out.

    Example:
        >>> row = {"seen": 50.0, "seen_kinds": 40.0, "seen_stuff": 60.0, "held_out": 45.0}
        >>> rows = [row | {"variant": "TCL"}, row | {"variant": "TCL + PAMR", "seen": 52.0}]
        >>> again = [each | {"seen": each["seen"] + 1} for each in rows]
        >>> run = {"run": "tcl", "steps": 375, "scenes": 500}
        >>> print(summary([run | {"seed": 0, "rows": rows}, run | {"seed": 1, "rows": again}], {"tcl": "TCL"}))
        | | steps | seeds | scenes | seen, PAMR | kinds | stuff | held out | seen, without PAMR |
        |---|---|---|---|---|---|---|---|---|
        | TCL | 375 | 2 | 500 | 52.5 ± 0.7 | 40.0 ± 0.0 | 60.0 ± 0.0 | 45.0 ± 0.0 | 50.5 ± 0.7 |
    """
    lines = [
        "| | steps | seeds | scenes | seen, PAMR | kinds | stuff | held out | seen, without PAMR |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[int, int, int], list[Mapping[str, Any]]] = {}
    order = list(names)
    for one in runs:
        if one["run"] in names:
            found.setdefault((one["steps"], order.index(one["run"]), one["scenes"]), []).append(one)
    for (steps, place, scenes), seeds in sorted(found.items()):
        figures = []
        for one in seeds:
            plain, refined = sorted(one["rows"], key=_is_refined)
            figures.append([*(refined[key] for key in _FIGURES), plain["seen"]])
        cells = [names[order[place]], f"{steps:,}", str(len(seeds)), str(scenes), *_spread(figures)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(figures: Sequence[Sequence[float]]) -> list[str]:
    values = np.array(figures)
    if len(values) == 1:
        return [f"{value:.1f}" for value in values[0]]
    pairs = zip(values.mean(axis=0), values.std(axis=0, ddof=1), strict=True)
    return [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in pairs]


def comparison(methods: Mapping[str, Any], weights_sha256: str, names: Mapping[str, str]) -> str:
    """A table with what it was measured on.

    Args:
        methods: of `training.playground.publish_methods.record`.
        weights_sha256: of the embedded weights.
        names: see `summary`.
    """
    seeds = methods["seeds"]
    shown = [run for run in methods["runs"] if run["run"] in names]
    if all(run["run"].startswith("tcl") for run in shown):
        return (
            "**The comparison has not been run at length, so there is no table here.** Whether the method is better "
            "than\nTCL is not known yet."
        )
    machines = [(run["precision"], run["recorded"]["machine"]) for run in shown]
    trained = sorted(
        {f"{precision} on {one['cores']} cores ({one['processor']}, {one['vectors']})" for precision, one in machines}
    )
    clip = "the embedded weights" if methods["clip_of"] == weights_sha256 else "former embedded weights"
    about = (
        f"Mean IoU in percent on {methods['split']} scenes of each set (seeds {seeds['seen']}, seen, and "
        f"{seeds['held-out']}, held out), mean ± deviation where there are several seeds. The CLIP is that "
        f"of {clip}; trained in {' and in '.join(trained)}. "
        "[`methods.json`](../training/playground/results/methods.json) has every run."
    )
    return f"{summary(shown, names)}\n\n{textwrap.fill(about, 120, break_long_words=False, break_on_hyphens=False)}"


def unit_gains(found: Sequence[Mapping[str, Any]]) -> str:
    """What the unit gains, as Markdown: a column for each choice of options.

    Args:
        found: ``model``, ``options`` and ``rows`` of each; those without the unit come before those with it.

    Example:
        >>> rows = [{"variant": name, "seen": 50.0, "held_out": 40.0} for name in ("as it is", "+ PAMR")]
        >>> better = [row | {"held_out": 41.0} for row in rows]
        >>> unit = {"unit_points": 64, "unit_threshold": 0.5}
        >>> print(unit_gains([{"model": "a", "options": {"unit_points": 0}, "rows": rows},
        ...                   {"model": "a", "options": unit, "rows": better}]))
        | | PAMR | without the unit | 64 points, 0.5 |
        |---|---|---|---|
        | `a` | no | 45.0 | +0.5 |
        | `a` | yes | 45.0 | +0.5 |
    """
    options = {key_of(entry["options"]): entry["options"] for entry in found}
    chosen = [each for each in options.values() if each != PIXELS]
    titles = [f"{each['unit_points']} points, {each['unit_threshold']:g}" for each in chosen]
    lines = [f"| | PAMR | without the unit | {' | '.join(titles)} |", f"|{'---|' * (len(titles) + 3)}"]
    for model in dict.fromkeys(entry["model"] for entry in found):
        plain = _means_of(found, model)[key_of(PIXELS)]
        gains = gains_of(found, model)
        for which, refined in enumerate(("no", "yes")):
            cells = [
                f"{round(gains[key][which], 1) + 0.0:+.1f}" if (key := key_of(each)) in gains else "" for each in chosen
            ]
            lines.append(f"| `{model}` | {refined} | {plain[which]:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gains_of(found: Sequence[Mapping[str, Any]], model: str) -> dict[str, tuple[float, float]]:
    """What the unit gains a model without and with refinement, by `key_of` its options; see `unit_gains`."""
    means = _means_of(found, model)
    plain = means.pop(key_of(PIXELS))
    return {key: (one[0] - plain[0], one[1] - plain[1]) for key, one in means.items()}


def key_of(options: Mapping[str, Any]) -> str:
    """Options of a method as one text, equal for equal options."""
    return json.dumps(options, sort_keys=True)


def _means_of(found: Sequence[Mapping[str, Any]], model: str) -> dict[str, list[float]]:
    return {key_of(entry["options"]): _means(entry["rows"]) for entry in found if entry["model"] == model}


def _means(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean over both sets, without and with refinement."""
    return [(row["seen"] + row["held_out"]) / 2 for row in sorted(rows, key=_is_refined)]
