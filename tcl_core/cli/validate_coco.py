"""``tcl-annotate validate-coco``: is this COCO file sound?"""

from __future__ import annotations

from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINDINGS, EXIT_FINE

__all__ = ["command"]


@click.command(
    "validate-coco",
    short_help="Check a COCO file and print each fault with its place.",
    epilog="""\b
Examples:
  tcl-annotate validate-coco labels.json
  tcl-annotate validate-coco labels.json --images photos""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that the file names are relative to: check that the pictures are there and of the stated size.",
)
def command(file: Path, images: Path | None) -> int:
    """Check any COCO instance FILE: ids, references, sizes, boxes, areas, polygons and RLE.

    Prints each finding with its place; the exit code is 1 if there is any.
    """
    from tcl_core.coco.validate import validate_coco

    findings = validate_coco(file, images)
    for finding in findings:
        click.echo(str(finding))
    if not findings:
        click.echo(f"{file}: no fault found", err=True)
        return EXIT_FINE
    click.echo(f"{file}: {len(findings):,} finding{'s' if len(findings) > 1 else ''}", err=True)
    return EXIT_FINDINGS
