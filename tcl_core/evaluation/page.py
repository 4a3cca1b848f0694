"""A page with the worst and best images of each class: image, ground truth and prediction side by side."""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from tcl_core.errors import ExportError, TclError, reason_of, remedy_of
from tcl_core.evaluation.confusion import scores_of
from tcl_core.evaluation.datasets.base import IGNORED, ClassList
from tcl_core.evaluation.records import JournalIndex
from tcl_core.evaluation.run import Evaluation
from tcl_core.preview.drawing import thumbnail
from tcl_core.vocabulary.colors import Color, default_colors

__all__ = ["write_page"]

_EACH = 3
_SIDE = 280
_OPACITY = 0.62
_LEAST_SHARE = 0.001
_NOT_COUNTED: Color = (128, 128, 128)


@dataclass(frozen=True)
class _Example:
    """An image of a class."""

    index: int
    name: str
    iou: float


def write_page(evaluation: Evaluation, result: Mapping[str, Any], more: Sequence[str] = (), each: int = _EACH) -> Path:
    """Write ``page/index.html`` and its images into the evaluation's folder.

    Args:
        evaluation: the evaluation, with stored predictions.
        result: its result.
        more: lines of journals of other machines.
        each: number of worst and of best images per class, among the images of which the class covers at least 0.1 %.

    Returns:
        The page.

    Raises:
        ExportError: the page cannot be written.
    """
    folder = evaluation.folder / "page"
    classes = evaluation.competing
    examples = _examples(evaluation, more, each)
    colors = _colors(classes)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "images").mkdir(parents=True)
        shown = {example.index for pair in examples for part in pair for example in part}
        drawn = {index: _draw(evaluation, index, colors, folder) for index in sorted(shown)}
        rows = [
            {
                **row,
                "color": "#{:02x}{:02x}{:02x}".format(*colors[place]),
                "worst": [example for example in worst if drawn[example.index]],
                "best": [example for example in best if drawn[example.index]],
            }
            for place, (row, (worst, best)) in enumerate(zip(result["classes"], examples, strict=True))
        ]
        rows.sort(key=lambda row: (row["iou"] is None, row["iou"]))
        page = _environment().get_template("page.html.j2").render(result=result, rows=rows, files=drawn)
        (folder / "index.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise ExportError(
            f"{folder}: cannot be written ({reason_of(error)}); {remedy_of(error)} and run the command again"
        ) from error
    return folder / "index.html"


def _examples(evaluation: Evaluation, more: Sequence[str], each: int) -> list[tuple[list[_Example], list[_Example]]]:
    """The worst and the best images of each class; no image is both, and a few images are split in the middle."""
    count = len(evaluation.competing.names)
    worst: list[list[tuple[float, int, str]]] = [[] for _ in range(count)]
    best: list[list[tuple[float, int, str]]] = [[] for _ in range(count)]
    known = [0] * count
    index = JournalIndex(evaluation.folder, evaluation.identity(), more)
    for place, record in enumerate(index.records(evaluation.images)):
        scores = scores_of(record.confusion(count))
        least = _LEAST_SHARE * record.size[0] * record.size[1]
        for number in np.flatnonzero(scores.labeled >= least).tolist():
            iou = float(scores.iou[number])
            known[number] += 1
            # Heaps remove their smallest entry and so keep the largest; among equals, earlier images stay.
            for heap, value in ((worst[number], -iou), (best[number], iou)):
                heapq.heappush(heap, (value, -place, record.name))
                if len(heap) > each:
                    heapq.heappop(heap)
    found = []
    for number in range(count):
        low = [_Example(-place, name, -value) for value, place, name in sorted(worst[number], reverse=True)]
        high = [_Example(-place, name, value) for value, place, name in sorted(best[number], reverse=True)]
        if known[number] < 2 * each:
            low = low[: (known[number] + 1) // 2]
        taken = {example.index for example in low}
        found.append((low, [example for example in high if example.index not in taken]))
    return found


def _draw(evaluation: Evaluation, index: int, colors: Sequence[Color], folder: Path) -> str | None:
    """Write an image's three panels; ``None`` if the prediction is on another machine or the image is gone."""
    try:
        prediction = evaluation.prediction(index)
        image, truth = evaluation.data.image(index), evaluation.data.truth(index)
    except (OSError, TclError):
        return None
    small = thumbnail(image, _SIDE)
    width, height = small.size
    panel = Image.new("RGB", (3 * width + 8, height), "white")
    panel.paste(small, (0, 0))
    for place, classes in enumerate((truth, prediction), start=1):
        panel.paste(_overlay(small, classes, colors), (place * (width + 4), 0))
    name = f"images/{index:06}.jpg"
    panel.save(folder / name, quality=82)
    return name


def _overlay(small: Image.Image, classes: NDArray[np.int16], colors: Sequence[Color]) -> Image.Image:
    width, height = small.size
    rows = np.arange(height) * classes.shape[0] // height
    columns = np.arange(width) * classes.shape[1] // width
    palette = np.array([*colors, _NOT_COUNTED], np.float32)
    gray = np.asarray(small.convert("L"), np.float32)[:, :, None]
    painted = (1 - _OPACITY) * gray + _OPACITY * palette[classes[rows][:, columns].clip(IGNORED)]
    return Image.fromarray(painted.astype(np.uint8))


def _colors(classes: ClassList) -> list[Color]:
    labels = list(islice(default_colors(), len(classes.vocabulary.labels)))
    return [(0, 0, 0), *labels] if classes.has_background else labels


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tcl_core.evaluation"), autoescape=True, undefined=StrictUndefined, auto_reload=False
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{100 * share:.1f}"
    return environment
