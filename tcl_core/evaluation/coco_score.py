"""Average precision and recall of detections by COCOeval of ``pycocotools``, the reference of the field.

What its reader ``loadRes`` would add is left out: it gives masks the area of their boxes where a result has both, and
makes rectangles of boxes that have no mask. Annotations get ids from 1, because COCOeval takes a match with id 0 for no
match.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tcl_core.errors import CocoError
from tcl_core.evaluation.coco_pairs import GroundTruth, Objects, read_detections, read_ground_truth

__all__ = ["METRICS", "CocoScore", "CocoScores", "format_scores", "score_coco"]

ScoreKind = Literal["box", "segm"]

METRICS: dict[str, str] = {
    "AP": "mean over IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "AP small": "objects under 32 x 32 pixels",
    "AP medium": "up to 96 x 96",
    "AP large": "above",
    "AR 1": "recall with 1 detection of a category in an image",
    "AR 10": "with 10",
    "AR 100": "with 100",
    "AR small": "with 100, objects under 32 x 32 pixels",
    "AR medium": "up to 96 x 96",
    "AR large": "above",
}
"""COCO's twelve figures in its own order, and what each is."""
_MOST_DETECTIONS = 100


@dataclass(frozen=True)
class CocoScore:
    """Figures by one kind of overlap.

    Attributes:
        kind: ``"box"`` or ``"segm"``.
        figures: by the names of `METRICS`, each in ``[0, 1]``; ``None`` where the ground truth has no such object.
        categories: AP by the category's name, in the order of the ground truth; likewise.
    """

    kind: ScoreKind
    figures: Mapping[str, float | None]
    categories: Mapping[str, float | None]


@dataclass(frozen=True)
class CocoScores:
    """What detections score.

    Attributes:
        scores: by boxes, by masks, or both.
        images: of the ground truth.
        annotations: of the ground truth, crowds included.
        detections: those that were scored.
        notes: what the figures do not say by themselves, in sentences.
    """

    scores: tuple[CocoScore, ...]
    images: int
    annotations: int
    detections: int
    notes: tuple[str, ...]


def score_coco(
    ground_truth: str | os.PathLike[str],
    detections: str | os.PathLike[str],
    kinds: Sequence[ScoreKind] | None = None,
) -> CocoScores:
    """Score detections against ground truth.

    Args:
        ground_truth: a COCO file of boxes or instances.
        detections: a list of results with the same ids, or a COCO file with scores and the same names.
        kinds: of overlap; ``None`` takes boxes, and masks where every object has one.

    Raises:
        CocoError: see `tcl_core.evaluation.coco_pairs`; also if masks are asked for and an object has none.
    """
    truth = read_ground_truth(ground_truth)
    found = read_detections(detections, truth)
    notes = [*truth.notes, *found.notes]
    bare = next(
        (f"{objects.path}: {place}" for objects in (truth, found) if (place := objects.without("segmentation"))), None
    )
    chosen: Sequence[ScoreKind] = kinds or (("box",) if bare else ("box", "segm"))
    if kinds is None:
        if bare:
            notes.append(f"masks are not scored: {bare} has no segmentation")
    elif "segm" in kinds and bare:
        raise CocoError(f"{bare}: has no segmentation, so masks cannot be scored; score boxes (--type box)")
    counts = Counter((entry["image_id"], entry["category_id"]) for entry in found.entries)
    beyond = sum(max(0, count - _MOST_DETECTIONS) for count in counts.values())
    if beyond:
        notes.append(
            f"{beyond:,} detections do not count, for COCO takes the {_MOST_DETECTIONS} best of a category in an image"
        )
    scores = tuple(_score(truth, found, kind) for kind in chosen)
    return CocoScores(scores, len(truth.names), len(truth.entries), len(found.entries), tuple(notes))


def format_scores(scores: CocoScores, *, per_category: bool = False) -> str:
    """The figures as a plain table: a row for each, a column for boxes and for masks; ``-`` where there are none.

    Args:
        scores: of `score_coco`.
        per_category: the AP of each category below.
    """
    rows = [(name, [score.figures[name] for score in scores.scores], what) for name, what in METRICS.items()]
    if per_category:
        names = scores.scores[0].categories
        rows += [(f"AP {name}", [score.categories[name] for score in scores.scores], "") for name in names]
    width = max(len(name) for name, *_ in rows)
    lines = [" " * width + "".join(f"  {score.kind:>6}" for score in scores.scores)]
    for name, values, what in rows:
        shown = "".join(f"  {'-' if value is None else format(value, '.3f'):>6}" for value in values)
        lines.append(f"{name:<{width}}{shown}  {what}".rstrip())
    return "\n".join(lines)


def _score(truth: GroundTruth, found: Objects, kind: ScoreKind) -> CocoScore:
    annotations = [_for_kind(entry, kind) | {"area": entry["area"]} for entry in truth.entries]
    evaluation = COCOeval(
        _coco(truth, annotations),
        _coco(truth, [_for_kind(entry, kind) for entry in found.entries]),
        "bbox" if kind == "box" else "segm",
    )
    # It prints its progress and a table.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = {name: _figure(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}
    # Over IoU, recall, category, range of areas and number of detections.
    precision = evaluation.eval["precision"][..., 0, -1]
    categories: dict[str, float | None] = {}
    for place, identity in enumerate(evaluation.params.catIds):
        own = precision[:, :, place]
        own = own[own > -1]
        name = truth.categories[identity]
        categories[name if name not in categories else f"{name} (id {identity})"] = (
            _figure(own.mean()) if own.size else None
        )
    return CocoScore(kind, figures, categories)


def _for_kind(entry: Mapping[str, Any], kind: ScoreKind) -> dict[str, Any]:
    """The part of an object that a kind of overlap needs, with the area by which COCO calls it small or large."""
    common = {key: entry[key] for key in ("image_id", "category_id")}
    common["iscrowd"] = entry.get("iscrowd", 0)
    if "score" in entry:
        common["score"] = entry["score"]
    if kind == "box":
        return {**common, "bbox": entry["bbox"], "area": entry["bbox"][2] * entry["bbox"][3]}
    segmentation = entry["segmentation"]
    return {**common, "segmentation": segmentation, "area": float(coco_mask.area(segmentation))}


def _coco(truth: GroundTruth, entries: Sequence[Mapping[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": identity, "height": size[0] if size else 0, "width": size[1] if size else 0}
            for identity, size in truth.sizes.items()
        ],
        "categories": [{"id": identity, "name": name} for identity, name in truth.categories.items()],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _figure(value: float) -> float | None:
    """COCOeval writes -1 where there is nothing to score."""
    return None if value < 0 else float(value)
