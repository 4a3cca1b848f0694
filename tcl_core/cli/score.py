"""``tcl-annotate score``: detections against ground truth, by COCO's metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.places import INPUT_PATH, OUTPUT_PATH, check_outputs
from tcl_core.errors import SettingsError, reason_of

__all__ = ["command"]


@click.command(
    "score",
    short_help="Score detections against ground truth with COCO's metric.",
    epilog="""\b
Examples:
  tcl-annotate score --gt annotations.json --dt labels.json
  tcl-annotate score --gt annotations.json --dt results.json --type segm --per-category""",
)
@click.option("--gt", "truth", required=True, type=INPUT_PATH, metavar="FILE", help="Ground truth: a COCO file.")
@click.option(
    "--dt",
    "detections",
    required=True,
    type=INPUT_PATH,
    metavar="FILE",
    help="Detections: a COCO file with scores, matched by names, or a list of results with the ground truth's ids.",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["auto", "box", "segm"]),
    default="auto",
    show_default=True,
    help="Score boxes or masks; auto scores both, or only boxes if an object has no mask.",
)
@click.option("--per-category", is_flag=True, help="Also print the average precision of each category.")
@click.option("--json", "json_file", type=OUTPUT_PATH, metavar="FILE", help="Also write the figures to FILE.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --json if it exists.")
def command(
    truth: Path, detections: Path, kind: str, per_category: bool, json_file: Path | None, overwrite: bool
) -> int:
    """Compute COCO's average precision and recall of detections (COCOeval of pycocotools).

    Ids and names are checked first, and anything that is left out of the scores is reported.
    """
    check_outputs({"--json": json_file}, [truth, detections], overwrite)

    from tcl_core.evaluation.coco_score import ScoreKind, format_scores, score_coco

    kinds: dict[str, tuple[ScoreKind, ...] | None] = {"auto": None, "box": ("box",), "segm": ("segm",)}
    scores = score_coco(truth, detections, kinds[kind])
    click.echo(f"{scores.images:,} images, {scores.annotations:,} annotations, {scores.detections:,} detections")
    click.echo(format_scores(scores, per_category=per_category))
    for note in scores.notes:
        click.echo(f"note: {note}", err=True)
    if json_file is not None:
        figures: dict[str, Any] = {
            score.kind: {"figures": dict(score.figures), "categories": dict(score.categories)}
            for score in scores.scores
        }
        content = {"ground_truth": str(truth), "detections": str(detections), **figures, "notes": scores.notes}
        try:
            json_file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json {json_file}: cannot be written ({reason_of(error)})") from error
    return EXIT_FINE
