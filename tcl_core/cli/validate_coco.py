"""``tcl-annotate validate-coco``: is this COCO file sound?"""

from __future__ import annotations

from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.places import INPUT_PATH

__all__ = ["command"]


@click.command(
    "validate-coco",
    short_help="Check a COCO file and print each fault with its place.",
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
    help="Folder that the file names are relative to: check that the images are there and of the stated size.",
)
def command(file: Path, images: Path | None) -> int:
    """Check any COCO instance FILE: ids, references, sizes, boxes, areas, polygons and RLE.

    Prints each issue with its location; the exit code is 1 if there is any.
    """
    from tcl_core.export.coco.validate.validate import validate_coco

    issues = validate_coco(file, images)
    for issue in issues:
        click.echo(str(issue))
    if not issues:
        click.echo(f"{file}: no issues found", err=True)
        return EXIT_FINE
    click.echo(f"{file}: {len(issues):,} issue{'s' if len(issues) > 1 else ''}", err=True)
    return EXIT_ISSUES
