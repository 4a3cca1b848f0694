"""From the journal to results: a JSON file with everything, and tables as CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ExportError, SettingsError, reason_of, remedy_of
from tcl_core.evaluation.boundary import BoundaryCounts, boundary_scores
from tcl_core.evaluation.confusion import scores_of
from tcl_core.evaluation.effort import GOAL, Effort
from tcl_core.evaluation.records import ImageRecord, JournalIndex
from tcl_core.evaluation.run import Evaluation

__all__ = ["build_result", "format_result", "image_row", "summary_table", "write_result", "write_summary"]

_IMAGE_FIELDS = (
    "image",
    "width",
    "height",
    "mean_iou",
    "pixel_accuracy",
    "boundary_f",
    "boundary_iou",
    "worst_class",
    "worst_iou",
    *(field.name for field in fields(Effort)),
    "steps",
    "steps_anew",
)


def build_result(evaluation: Evaluation, more: Sequence[str] = ()) -> dict[str, Any]:
    """The results of an evaluation whose journal is complete.

    Args:
        evaluation: the evaluation.
        more: lines of journals of other machines.

    Returns:
        JSON values, which depend only on the records: ``scores`` of the whole data set, ``classes``, ``effort``,
        ``confusion`` (one row per true class, one column per predicted class, the last for no class), and everything
        that they depend on. Shares are in ``[0, 1]``, or ``None`` if there was nothing to count.

    Raises:
        SettingsError: an image is missing.
    """
    index = JournalIndex(evaluation.folder, evaluation.identity(), more)
    images = evaluation.images
    missing = [name for name in images if name not in index]
    if missing:
        raise SettingsError(
            f"{evaluation.folder}: {len(missing):,} of {len(images):,} images are not evaluated yet, such as "
            f"{missing[0]}; to continue, run the command again"
        )
    names = evaluation.competing.names
    confusion = np.zeros((len(names), len(names) + 1), np.int64)
    boundary = np.zeros((len(fields(BoundaryCounts)), len(names)), np.int64)
    effort = Effort()
    for record in index.records(images):
        confusion += record.confusion(len(names))
        boundary += _stacked(record.boundary_counts(len(names)))
        effort += Effort(**record.effort)
    scores = scores_of(confusion)
    boundary_f, boundary_iou = boundary_scores(BoundaryCounts(*boundary))
    figures = {
        "mean_iou": scores.mean_iou,
        "mean_iou_over_classes_in_truth": _mean(scores.iou[scores.labeled > 0]),
        "mean_accuracy": scores.mean_accuracy,
        "pixel_accuracy": scores.pixel_accuracy,
        "frequency_weighted_iou": scores.frequency_weighted_iou,
        "boundary_f": _mean(boundary_f),
        "boundary_iou": _mean(boundary_iou),
    }
    columns = {
        "iou": scores.iou,
        "accuracy": scores.accuracy,
        "boundary_f": boundary_f,
        "boundary_iou": boundary_iou,
        "intersect": scores.intersect,
        "union": scores.union,
        "predicted": scores.predicted,
        "labeled": scores.labeled,
    }
    return {
        **evaluation.identity(),
        "scores": {name: _plain(value) for name, value in figures.items()},
        "classes": [
            {"name": name, **{key: _plain(values[place]) for key, values in columns.items()}}
            for place, name in enumerate(names)
        ],
        "effort": _effort(effort) if evaluation.effort else None,
        "confusion": confusion.tolist(),
    }


def write_result(evaluation: Evaluation, more: Sequence[str] = ()) -> dict[str, Any]:
    """Write ``result.json``, ``classes.csv``, ``images.csv`` and ``confusion.csv`` into the evaluation's folder.

    Args:
        evaluation: the evaluation.
        more: lines of journals of other machines.

    Returns:
        The result of `build_result`.

    Raises:
        SettingsError: an image is missing.
        ExportError: a file cannot be written.
    """
    result = build_result(evaluation, more)
    folder, names = evaluation.folder, evaluation.competing.names
    index = JournalIndex(folder, evaluation.identity(), more)
    with _replaced(folder / "classes.csv") as file:
        rows = csv.DictWriter(file, result["classes"][0], lineterminator="\n")
        rows.writeheader()
        rows.writerows(result["classes"])
    with _replaced(folder / "images.csv") as file:
        table = csv.DictWriter(file, _IMAGE_FIELDS, lineterminator="\n", restval="")
        table.writeheader()
        table.writerows(image_row(record, names) for record in index.records(evaluation.images))
    with _replaced(folder / "confusion.csv") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["true", *names, "(none)"])
        lines.writerows([name, *row] for name, row in zip(names, result["confusion"], strict=True))
    with _replaced(folder / "result.json") as file:
        _write_json(file, result)
    return result


def image_row(record: ImageRecord, names: Sequence[str]) -> dict[str, Any]:
    """The row of an image in the table of images; means are over the classes in its truth or prediction."""
    scores = scores_of(record.confusion(len(names)))
    boundary_f, boundary_iou = boundary_scores(record.boundary_counts(len(names)))
    row: dict[str, Any] = {
        "image": record.name,
        "width": record.size[1],
        "height": record.size[0],
        "mean_iou": _plain(scores.mean_iou),
        "pixel_accuracy": _plain(scores.pixel_accuracy),
        "boundary_f": _plain(_mean(boundary_f)),
        "boundary_iou": _plain(_mean(boundary_iou)),
    }
    if (scores.labeled > 0).any():
        worst = int(np.argmin(np.where(scores.labeled > 0, scores.iou, np.inf)))
        row |= {"worst_class": names[worst], "worst_iou": _plain(scores.iou[worst])}
    return {**row, **(_effort(Effort(**record.effort)) if record.effort else {})}


def format_result(result: Mapping[str, Any], worst: int = 5) -> str:
    """A summary as text: the whole data set, and the classes with the lowest and highest IoU."""
    scores, data = result["scores"], result["data"]
    lines = [
        f"{data['name']} {data['split']}, {data['images']:,} images, {len(result['classes'])} classes",
        f"mIoU {_percent(scores['mean_iou'])}, pixel accuracy {_percent(scores['pixel_accuracy'])}, mean accuracy "
        f"{_percent(scores['mean_accuracy'])}",
        f"boundary F {_percent(scores['boundary_f'])}, boundary IoU {_percent(scores['boundary_iou'])}",
    ]
    if effort := result["effort"]:
        share = f" ({100 * effort['steps'] / effort['steps_anew']:.0f} %)" if effort["steps_anew"] else ""
        lines.append(
            f"correction effort (IoU {GOAL} per region): {effort['steps']:,} edits, instead of "
            f"{effort['steps_anew']:,} from scratch{share}"
        )
    known = sorted((row for row in result["classes"] if row["iou"] is not None), key=lambda row: row["iou"])
    for what, rows in (("lowest", known[:worst]), ("highest", known[::-1][:worst])):
        lines.append(f"{what} IoU: " + ", ".join(f"{row['name'].strip()} {_percent(row['iou'])}" for row in rows))
    return "\n".join(lines)


def write_summary(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write several results side by side: ``summary.json``, ``summary.csv``, and ``summary.md`` with a Markdown table.

    Args:
        folder: the parent of the evaluations' folders.
        results: of `write_result`, at least one.

    Raises:
        ExportError: a file cannot be written.
    """
    with _replaced(folder / "summary.json") as file:
        kept = ("version", "data", "model", "scores", "effort")
        json.dump([{key: result[key] for key in kept} for result in results], file, indent=1, ensure_ascii=False)
        file.write("\n")
    with _replaced(folder / "summary.csv") as file:
        rows = [_summary_row(result) for result in results]
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    with _replaced(folder / "summary.md") as file:
        file.write(summary_table(results) + "\n")


def _summary_row(result: Mapping[str, Any]) -> dict[str, Any]:
    data, model = result["data"], result["model"]
    return {
        "data": data["name"],
        "split": data["split"],
        "images": data["images"],
        "model": model["model"],
        "weights_sha256": model["weights_sha256"],
        "refiner": _refiner(result),
        **result["scores"],
        **(result["effort"] or {}),
    }


def _refiner(result: Mapping[str, Any]) -> str:
    refiner = result["model"]["refiner"]
    return refiner["name"] if refiner else "none"


def summary_table(results: Iterable[Mapping[str, Any]]) -> str:
    """Several results as one Markdown table."""
    lines = [
        "| data | model | refiner | mIoU | pixel acc. | boundary F | boundary IoU | effort |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        scores, effort = result["scores"], result["effort"]
        cells = [_percent(scores[key]) for key in ("mean_iou", "pixel_accuracy", "boundary_f", "boundary_iou")]
        work = "" if not effort or not effort["steps_anew"] else f"{effort['steps'] / effort['steps_anew']:.2f}"
        data = f"{result['data']['name']} {result['data']['split']}"
        lines.append(
            f"| {data} | {result['model']['model']} | {_refiner(result)} | " + " | ".join([*cells, work]) + " |"
        )
    return "\n".join(lines)


def _effort(effort: Effort) -> dict[str, int]:
    return {**effort.to_dict(), "steps": effort.steps, "steps_anew": effort.steps_anew}


def _stacked(counts: BoundaryCounts) -> NDArray[np.int64]:
    return np.stack([getattr(counts, field.name) for field in fields(counts)])


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _plain(value: Any) -> float | int | None:
    """A number for JSON and CSV."""
    if isinstance(value, (int, np.integer)):
        return int(value)
    return None if math.isnan(value) else float(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _write_json(file: TextIO, result: Mapping[str, Any]) -> None:
    """Indented, with one line for each row of the confusion matrix."""
    rest = {key: value for key, value in result.items() if key != "confusion"}
    text = json.dumps(rest, indent=1, ensure_ascii=False)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in result["confusion"])
    file.write(f'{text[:-2]},\n "confusion": [\n{rows}\n ]\n}}\n')


@contextmanager
def _replaced(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ExportError(
            f"{path}: cannot be written ({reason_of(error)}); {remedy_of(error)} and run the command again"
        ) from error
