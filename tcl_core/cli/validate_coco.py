"""``tcl-annotate validate-coco``: is this COCO file sound?"""

from __future__ import annotations

from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.places import INPUT_PATH

__all__ = ["command"]


@click.command(
    "validate-coco",
    short_help="Check a COCO file and print each issue with its location.",
    epilog="""\b
Examples:
  tcl-annotate validate-coco labels.json
  tcl-annotate validate-coco labels.json --images photos""",
)
@click.argument("file", type=INPUT_PATH)
@click.option(
    "--images",
    type=INPUT_PATH,
    metavar="DIR",
    help="Folder that file names are relative to; also check that the images exist and have the stated size.",
)
@click.option("--strict", is_flag=True, help="Exit with code 1 if there are warnings.")
@click.option("--all", "show_all", is_flag=True, help="Print every issue instead of counting similar ones.")
def command(file: Path, images: Path | None, strict: bool, show_all: bool) -> int:
    """Check any COCO FILE: ids, references, sizes, boxes, areas, polygons and RLE.

    The kind of file is detected: instances, boxes only, keypoints, panoptic segments or captions. Errors make a reader
    crash, lose data or misread it, or distort scores. Warnings are harmless to most readers. Similar issues are
    counted. The exit code is 1 if there are errors.
    """
    from tcl_core.export.coco.validate.issues import IssueGroup, group_issues
    from tcl_core.export.coco.validate.kinds import Kind
    from tcl_core.export.coco.validate.validate import check_coco

    check = check_coco(file, images)
    groups = group_issues(check.issues)
    if show_all:
        groups = [IssueGroup((issue,)) for group in groups for issue in group.issues]
    for group in groups:
        first, *more = group.lines()
        lines = [f"{group.severity}: {first}", *more]
        if len(lines) == len(group.issues):
            lines = [f"{group.severity}: {issue}" for issue in group.issues]
        click.echo("\n".join(lines))
    errors = sum(issue.severity == "error" for issue in check.issues)
    warnings = len(check.issues) - errors
    counts = [_count(number, word) for number, word in ((errors, "error"), (warnings, "warning")) if number]
    kind = f" ({check.kind})" if check.kind not in (None, Kind.INSTANCES) else ""
    click.echo(f"{file}: {', '.join(counts) or 'no issues found'}{kind}", err=True)
    return EXIT_ISSUES if errors or (strict and warnings) else EXIT_FINE


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
