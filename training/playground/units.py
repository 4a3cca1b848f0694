"""Whether the adaptive semantic unit gains: ``python -m training.playground.units``.

Scores models with and without it on scenes that settings are chosen on, which no reported score is measured on. A model
whose gain is positive with the same options with and without refinement may have the unit on by default.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tcl_core.errors import TclError
from tcl_core.evaluation.playground import EvaluationRow, evaluate_playground
from tcl_core.models import Model, load_model

__all__ = ["main", "scores", "settings_of", "table"]

_PLAIN: dict[str, Any] = {"unit_points": 0}


def settings_of(points: Sequence[int], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """The options that are compared, the first of which is the method without the unit.

    Example:
        >>> settings_of([64], [0.5, 0.7])[1:]
        [{'unit_points': 64, 'unit_threshold': 0.5}, {'unit_points': 64, 'unit_threshold': 0.7}]
    """
    return [_PLAIN, *({"unit_points": k, "unit_threshold": cosine} for k in points for cosine in thresholds)]


def scores(model: Model, options: dict[str, Any], scenes: int) -> list[EvaluationRow]:
    """Score a model with these options on scenes that settings are chosen on."""
    chosen = dataclasses.replace(model, method=model.method.configured(options))
    with tqdm(total=2 * scenes, desc=f"{model.name} {options}", mininterval=5) as bar:
        return evaluate_playground(chosen, scenes, lambda done, _: bar.update(done - bar.n), "validation")


def table(found: Sequence[dict[str, Any]]) -> str:
    """All scores as Markdown, with what the unit gains.

    Args:
        found: ``model``, ``options`` and ``rows`` of each; those without the unit come before those with it.
    """
    lines = [
        "| model | variant | points | threshold | seen: all | held out: all | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    plain: dict[tuple[str, str], float] = {}
    for entry in found:
        for row in entry["rows"]:
            mean = (row["seen"] + row["held_out"]) / 2
            points = entry["options"]["unit_points"]
            before = plain.setdefault((entry["model"], row["variant"]), mean)
            cells = (
                f"`{entry['model']}`",
                row["variant"],
                str(points or ""),
                str(entry["options"].get("unit_threshold", "")),
                f"{row['seen']:.1f}",
                f"{row['held_out']:.1f}",
                f"{mean - before:+.2f}" if points else "",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and score."""
    parser = argparse.ArgumentParser(prog="python -m training.playground.units", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["playground", "maskclip:playground"], help="names or files")
    parser.add_argument("--points", type=int, nargs="+", default=[64, 256], help="meta-points of each window")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.7, 0.9], help="cosines")
    parser.add_argument("--scenes", type=int, default=100, help="scenes of each of the two sets")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write all scores to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: list[dict[str, Any]] = []
    try:
        for name in options.models:
            model = load_model(name, device="cpu", precision="float32", backend="torch")
            for each in settings_of(options.points, options.thresholds):
                rows = [dataclasses.asdict(row) for row in scores(model, each, options.scenes)]
                found.append({"model": name, "options": each, "scenes": options.scenes, "rows": rows})
                if options.json is not None:
                    # After each, for the next may be interrupted.
                    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
