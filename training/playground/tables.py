"""Score a finished run on the test scenes, once, and write what is published about it.

``python -m training.playground.tables --run build/playground --embed`` writes the results, the generated parts of the
documents and the embedded weights. Scores are kept in the run's folder: the same weights are not scored again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tcl_core.errors import SettingsError, TclError
from tcl_core.evaluation.playground import SEEDS, evaluate_playground, rows_to_json, variants_of
from tcl_core.evaluation.projects import PROJECT_SEED, evaluate_projects, projects_to_json, synonyms_and_others
from tcl_core.models import Model, load_model
from tcl_core.models.modelfile import read_model_file
from tcl_core.segmentation.segmenter import Segmenter
from training.journal import read_journal, spent
from training.playground.arguments import at_least
from training.playground.pages import MAIN, targets_of, write_pages

__all__ = ["main", "publish", "score"]

_REPOSITORY = Path(__file__).parents[2]
_RESULTS = Path("training/playground/results")
_ASSET = Path("tcl_core/assets/playground.safetensors")
_METHODS = ("maskclip", "maskclip-refined", "sclip", "clearclip", "naclip", "scclip")
_MODEL, _JOURNAL = "playground.safetensors", "run.jsonl"


def _finished(folder: Path) -> list[dict[str, Any]]:
    """The record of a run that made the model file in its folder.

    Raises:
        SettingsError: it did not.
    """
    entries = read_journal(folder / _JOURNAL)
    if not entries or entries[-1]["event"] != "finished":
        raise SettingsError(f"{folder / _JOURNAL}: the run is not finished; run make train-playground until it is")
    path = folder / _MODEL
    if not path.is_file() or read_model_file(path).sha256 != entries[-1]["sha256"]:
        raise SettingsError(f"{path}: is not the file that the run made; delete it and run make train-playground again")
    start = entries[0]
    if start["modified"]:
        raise SettingsError(
            f"{folder / _JOURNAL}: the run was made with code that no commit has (modified: "
            f"{', '.join(start['modified'])}); train with committed code to publish it"
        )
    return entries


def _once(path: Path, sha256: str, scenes: int, make: Any) -> Any:
    """What was scored before, or what is scored now and kept."""
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["weights_sha256"], found["scenes"]) != (sha256, scenes):
            raise SettingsError(
                f"{path}: holds scores of other weights or another number of scenes; move it away to score again"
            )
        return found
    found = {"weights_sha256": sha256, "scenes": scenes, **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _loaded(name: str) -> Model:
    """A model as what is published is scored, whatever else is installed."""
    return load_model(name, device="cpu", precision="float32", backend="torch")


def _rows(name: str, scenes: int, only: str | None = None) -> dict[str, Any]:
    model = _loaded(name)
    variants = variants_of(model) if only is None else {only: variants_of(model)[only]}
    with tqdm(total=2 * scenes, desc=f"scoring {model.name}", mininterval=5, disable=None) as bar:
        rows = evaluate_playground(model, scenes, lambda done, _: bar.update(done - bar.n), "test", variants)
    return {"rows": json.loads(rows_to_json(rows))}


def _projects(path: Path, scenes: int, draws: int) -> dict[str, Any]:
    segmenter = Segmenter(_loaded(str(path)))
    with tqdm(total=scenes, desc="scoring projects", mininterval=5, disable=None) as bar:
        rows = evaluate_projects(segmenter, scenes, draws, progress=lambda done, _: bar.update(done - bar.n))
    synonyms, others = synonyms_and_others(segmenter)
    return {
        "settings": segmenter.settings() | {"model": "playground"},
        "seed": PROJECT_SEED,
        "background_threshold": segmenter.background_threshold,
        "similarity": {"synonyms": synonyms, "others": others},
        "rows": json.loads(projects_to_json(rows)),
    }


def score(run: Path, scenes: int = 500, project_scenes: int = 300, draws: int = 10) -> dict[str, Any]:
    """Score everything that is published of a run, on the test scenes; what was scored before is read.

    Args:
        run: folder of a finished run.
        scenes: of each set.
        project_scenes: of the projects.
        draws: of labels for each kind of project.

    Returns:
        ``table``, ``projects`` and ``training-free``.

    Raises:
        SettingsError: the run is not finished, or other weights were scored in its folder.
    """
    entries = _finished(run)
    path, sha256, start = run / _MODEL, entries[-1]["sha256"], entries[0]
    about = {"weights_sha256": sha256, "bytes": path.stat().st_size, "scenes": scenes, "split": "test"}
    seeds = {which: SEEDS["test"][which] for which in ("seen", "held-out")}
    own = _once(run / "scores" / "table.json", sha256, scenes, lambda: _rows(str(path), scenes))
    spread = [_spread_row(start["about"]["recipe"]["seed"], own)]
    for folder in sorted(run.glob("ground-*")):
        last = _finished(folder)
        if last[0]["commit"] != start["commit"]:
            raise SettingsError(f"{folder}: was trained with another commit than {run}; train it again or move it away")
        other = folder / _MODEL
        found = _once(
            folder / "scores" / "table.json",
            last[-1]["sha256"],
            scenes,
            lambda at=other: _rows(str(at), scenes, MAIN),
        )
        spread.append(_spread_row(last[0]["about"]["ground_seed"], found))
    interruptions = sum(entry["event"] == "resume" for entry in entries)
    made = {key: start[key] for key in ("commit", "machine", "python", "packages")}
    made |= {"precision": start["about"]["precision"], "recipe": start["about"]["recipe"]}
    made |= {
        "times": {
            name: {"wall": round(found.wall, 1), "cpu": round(found.cpu, 1)} for name, found in spent(entries).items()
        }
    }
    made |= {"interruptions": interruptions}
    table = {"model": "playground", **about, "seeds": seeds, "rows": own["rows"], "spread": spread, "run": made}
    table["targets"] = [
        {"name": one.name, "bound": one.bound, "value": one.value, "met": one.met} for one in targets_of(table)
    ]
    projects = _once(
        run / "scores" / "projects.json", sha256, project_scenes, lambda: _projects(path, project_scenes, draws)
    )
    free = []
    for method in _METHODS:
        place = run / "scores" / f"{method}.json"
        found = _once(place, sha256, scenes, lambda name=f"{method}:{path}": _rows(name, scenes))
        free.append({"model": f"{method}:playground", **found})
    return {"table": table, "projects": projects, "training-free": free}


def _spread_row(seed: int, found: dict[str, Any]) -> dict[str, Any]:
    main = next(row for row in found["rows"] if row["variant"] == MAIN)
    figures = {key: main[key] for key in ("seen", "held_out", "lost")}
    return {"seed": seed, "weights_sha256": found["weights_sha256"], **figures}


def publish(run: Path, results: dict[str, Any], repository: Path, embed: bool) -> list[Path]:
    """Write results, records, generated parts of documents and, if asked, the embedded weights.

    Returns:
        What was written.
    """
    folder = repository / _RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # Records of former runs.
    for old in (*folder.glob("*.jsonl"), *folder.glob("former-table.json")):
        old.unlink()
    for name, content in results.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        written.append(path)
    for record in (run / _JOURNAL, *sorted(run.glob(f"ground-*/{_JOURNAL}"))):
        name = _JOURNAL if record.parent == run else f"{record.parent.name}.jsonl"
        written.append(Path(shutil.copyfile(record, folder / name)))
    written += write_pages(repository, results)
    if embed:
        written.append(Path(shutil.copyfile(run / _MODEL, repository / _ASSET)))
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, score and write."""
    parser = argparse.ArgumentParser(prog="python -m training.playground.tables", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("build/playground"), help="folder of the finished run")
    parser.add_argument("--embed", action="store_true", help="also make its model file the embedded one")
    parser.add_argument("--repository", type=Path, default=_REPOSITORY, help="checkout to write into")
    parser.add_argument("--scenes", type=at_least(1), default=500, help="scenes of each set")
    parser.add_argument("--project-scenes", type=at_least(1), default=300, help="scenes of the projects")
    parser.add_argument("--draws", type=at_least(1), default=10, help="draws of labels for each kind of project")
    parser.add_argument("--threads", type=at_least(1), default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        results = score(options.run, options.scenes, options.project_scenes, options.draws)
        written = publish(options.run, results, options.repository, options.embed)
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for target in targets_of(results["table"]):
        print(f"{'met   ' if target.met else 'MISSED'} {target.name}: {target.value:.1f} ({target.bound})")
    for path in written:
        print(f"wrote {path}")
    return 0 if all(target.met for target in targets_of(results["table"])) else 1


if __name__ == "__main__":
    raise SystemExit(main())
