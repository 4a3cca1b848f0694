"""Publish a comparison of methods: ``python -m training.playground.publish_methods --work build/methods``.

Writes the scores that `training.playground.compare_methods` left in its folder, with machine, versions and settings, to
``training/playground/results/methods.json``, and the parts of the documents that show them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcl_core.errors import SettingsError, TclError
from tcl_core.evaluation.playground import SEEDS, Split
from tcl_core.models.modelfile import read_model_file
from training.journal import origin
from training.playground.method_tables import scores_folder
from training.playground.pages import write_pages

__all__ = ["joined", "main", "record"]

_REPOSITORY = Path(__file__).parents[2]
_RESULTS = Path("training/playground/results")
_LAST_LINES = 4
_OTHER_MEANS = ("total", "mask", "neg_mask")


def record(work: Path, split: Split = "validation") -> dict[str, Any]:
    """What is published of a comparison.

    Args:
        work: folder of `training.playground.compare_methods`.
        split: of the scores.

    Returns:
        ``clip_of`` (the weights whose CLIP it is), ``split``, ``seeds`` and ``runs``.

    Raises:
        SettingsError: there are no scores, or the model of one is not there.
    """
    here = origin(_REPOSITORY, ("tcl_core", "training"))
    runs = []
    for path in sorted(scores_folder(work, split).glob("*.json")):
        run, steps, seed = path.stem.rsplit("-", 2)
        content = json.loads(path.read_text(encoding="utf-8"))
        name = content.get("model", path.stem)
        model = read_model_file(work / name / f"{name}.safetensors")
        recipe = model.metadata.extra["recipe"]
        (phase,) = recipe["phases"]
        runs.append(
            {
                "run": run,
                "steps": int(steps),
                "seed": int(seed),
                "weights_sha256": model.sha256,
                "precision": phase["precision"],
                "batch": phase["batch"],
                "config": recipe["model"]["config"],
                "scenes": content["scenes"],
                "losses": _last_losses(work / name / f"{phase['name']}.jsonl"),
                "recorded": here,
                "rows": content["rows"],
            }
        )
    folder = scores_folder(work, split)
    if not runs:
        raise SettingsError(f"{folder}: has no scores; run training.playground.compare_methods first")
    clip = read_model_file(work / "clip.safetensors").metadata
    return {
        "clip_of": clip.extra.get("clip_of"),
        "split": split,
        "seeds": {which: SEEDS[split][which] for which in ("seen", "held-out")},
        "runs": runs,
    }


def _last_losses(log: Path) -> dict[str, float]:
    """The means of the last lines of a training's log; nothing where it was removed."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    # Other lines are of evaluations.
    entries = [entry for entry in map(json.loads, lines) if "total" in entry][-_LAST_LINES:]
    # Stages differ in their losses.
    entries = [entry for entry in entries if entry["stage"] == entries[-1]["stage"]]
    names = [name for name in (entries[-1] if entries else ()) if name.endswith("_loss") or name in _OTHER_MEANS]
    found = {name: [entry[name] for entry in entries if entry[name] is not None] for name in names}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def joined(former: Mapping[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """A comparison with the runs of a former one on the same CLIP and scenes; those that were run again are replaced.

    Args:
        former: of `record`, or empty.
        methods: of `record`.

    Example:
        >>> one = {"clip_of": "a", "runs": [{"run": "tcl", "steps": 375, "seed": 0}]}
        >>> two = {"clip_of": "a", "runs": [{"run": "code", "steps": 375, "seed": 0}]}
        >>> [run["run"] for run in joined(one, two)["runs"]]
        ['code', 'tcl']
        >>> len(joined(one | {"clip_of": "b"}, two)["runs"])
        1
    """
    if any(former.get(key) != value for key, value in methods.items() if key != "runs"):
        return methods
    runs = {_key(run): run for run in former["runs"]}
    for run in methods["runs"]:
        before = runs.get(_key(run), {})
        if before and all(run.get(key) == before.get(key) for key in ("weights_sha256", "rows")):
            # Published again, and not run again: machine and commit stay those of the run.
            continue
        # The log may be gone since.
        same = not run.get("losses") and before.get("weights_sha256") == run.get("weights_sha256")
        kept = {"losses": before["losses"]} if same and "losses" in before else {}
        runs[_key(run)] = {**run, **kept}
    return methods | {"runs": [runs[key] for key in sorted(runs)]}


def _key(run: Mapping[str, Any]) -> tuple[str, int, int]:
    return run["run"], run["steps"], run["seed"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, and write."""
    parser = argparse.ArgumentParser(prog="python -m training.playground.publish_methods", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/methods"), help="folder of the comparison")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="which scores")
    parser.add_argument("--repository", type=Path, default=_REPOSITORY, help="checkout to write into")
    options = parser.parse_args(arguments)
    folder = options.repository / _RESULTS
    try:
        if not (folder / "table.json").is_file():
            raise SettingsError(f"--repository {options.repository}: is no checkout; name the folder of one")
        methods = record(options.work, options.split)
        table = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        path = folder / "methods.json"
        if path.is_file():
            methods = joined(json.loads(path.read_text(encoding="utf-8")), methods)
        path.write_text(json.dumps(methods, indent=1) + "\n", encoding="utf-8")
        written = [path, *write_pages(options.repository, {"table": table, "methods": methods})]
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
