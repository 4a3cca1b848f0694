"""Whether the adaptive semantic unit gains: ``python -m training.playground.units``.

Scores models with and without it on scenes that settings are chosen on, which no reported score is measured on. A
method whose gain is positive with the same options with and without refinement has the unit on by default.

Scores are written after each choice of options; the same command goes on behind the last one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tcl_core.errors import SettingsError, TclError, reason_of
from tcl_core.evaluation.playground import SEEDS, EvaluationRow, evaluate_playground, own_variants
from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.models import Model, load_model
from tcl_core.models.paths import write_atomically
from training.journal import origin
from training.playground.arguments import at_least
from training.playground.method_tables import key_of, unit_gains
from training.playground.pages import write_pages

__all__ = ["main", "scores", "settings_of"]

_REPOSITORY = Path(__file__).parents[2]
_RESULTS = _REPOSITORY / "training/playground/results"
_PUBLISHED = {"thresholds": "unit-thresholds.json", "gains": "units.json"}


def settings_of(points: Sequence[int], thresholds: Sequence[float]) -> list[dict[str, Any]]:
    """The options that are compared, the first of which is the method without the unit.

    Example:
        >>> settings_of([64], [0.5, 0.7])[1:]
        [{'unit_points': 64, 'unit_threshold': 0.5}, {'unit_points': 64, 'unit_threshold': 0.7}]
    """
    return [PIXELS, *({"unit_points": k, "unit_threshold": cosine} for k in points for cosine in thresholds)]


def scores(model: Model, options: Mapping[str, Any], scenes: int) -> list[EvaluationRow]:
    """Score a model with these options on scenes that settings are chosen on, without and with refinement."""
    chosen = dataclasses.replace(model, method=model.method.configured(options))
    with tqdm(total=2 * scenes, desc=f"{model.name} {options}", mininterval=5) as bar:
        return evaluate_playground(
            chosen, scenes, lambda done, _: bar.update(done - bar.n), "validation", own_variants(model)
        )


def _former(path: Path | None, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores of an earlier call of the same kind.

    Raises:
        SettingsError: the file or its folder cannot be used, or the file holds something else.
    """
    if path is None:
        return []
    if not path.parent.is_dir():
        raise SettingsError(f"--json {path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [dict(entry) for entry in content["scores"]]
        complete = all({"model", "method", "weights_sha256", "options", "rows"} <= set(entry) for entry in found)
    except OSError as error:
        raise SettingsError(f"--json {path}: cannot be read: {reason_of(error)}") from error
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise SettingsError(f"--json {path}: holds no scores of this command; name another file, or remove it")
    if any(content.get(key) != value for key, value in about.items()):
        raise SettingsError(f"--json {path}: its scores are of other scenes; name another file, or give its --scenes")
    return found


def _names(models: Sequence[str]) -> dict[str, str]:
    """What models are called in the table, by what was given; the place of a file says nothing to its readers.

    Raises:
        SettingsError: two have the same name.
    """
    found: dict[str, str] = {}
    for model in models:
        name = Path(model).stem if Path(model).is_file() else model
        if name in found:
            raise SettingsError(f"--models: {found[name]} and {model} are both called {name}; rename one of the files")
        found[name] = model
    return {model: name for name, model in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and score."""
    parser = argparse.ArgumentParser(prog="python -m training.playground.units", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["playground", "maskclip:playground"], help="names or files")
    parser.add_argument("--points", type=at_least(1), nargs="+", default=[64, 256], help="meta-points of each window")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.7, 0.9], help="cosines")
    parser.add_argument("--scenes", type=at_least(1), default=100, help="scenes of each of the two sets")
    parser.add_argument("--threads", type=at_least(1), default=2, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write all scores to this file, and go on behind those in it")
    parser.add_argument(
        "--publish",
        choices=sorted(_PUBLISHED),
        help="write the results of this name instead, and the tables of docs/mgca.md: thresholds to choose one, or the "
        "gains that decide about the default",
    )
    options = parser.parse_args(arguments)
    path: Path | None = _RESULTS / _PUBLISHED[options.publish] if options.publish else options.json
    torch.set_num_threads(options.threads)
    seeds = {which: SEEDS["validation"][which] for which in ("seen", "held-out")}
    about: dict[str, Any] = {"split": "validation", "seeds": seeds, "scenes": options.scenes}
    here = origin(_REPOSITORY, ("tcl_core", "training"))
    try:
        names, found = _names(options.models), _former(path, about)
        for given, name in names.items():
            model = load_model(given, device="cpu", precision="float32", backend="torch")
            found = [one for one in found if one["model"] != name or one["weights_sha256"] == model.weights_sha256]
            about_model = {"model": name, "method": model.method.name, "weights_sha256": model.weights_sha256}
            done = {key_of(one["options"]) for one in found if one["model"] == name}
            chosen = settings_of(options.points, options.thresholds)
            for each in chosen:
                # All of them before the first is scored.
                model.method.configured(each)
            for each in chosen:
                if key_of(each) in done:
                    continue
                rows = [dataclasses.asdict(row) for row in scores(model, each, options.scenes)]
                found.append({**about_model, "options": each, "recorded": here, "rows": rows})
                if path is not None:
                    text = json.dumps({**about, "scores": found}, indent=1) + "\n"
                    write_atomically(path, text.encode())
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(unit_gains(found))
    if options.publish:
        shown = ("table", *(Path(each).stem for each in _PUBLISHED.values()))
        write_pages(
            _REPOSITORY, {each: json.loads((_RESULTS / f"{each}.json").read_text(encoding="utf-8")) for each in shown}
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
