"""``tcl-annotate convert``: annotations from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import geometry_option
from tcl_core.cli.places import check_folder, check_holds_nothing, check_outputs
from tcl_core.errors import SettingsError
from tcl_core.vocabulary import Vocabulary

__all__ = ["command"]


@click.command(
    "convert",
    short_help="Convert annotations or masks to COCO, YOLO or semantic masks.",
    epilog="""\b
Examples:
  tcl-annotate convert annotations.json --to yolo-seg --out dataset
  tcl-annotate convert masks --labels labels.yaml --to coco --out annotations.json
  tcl-annotate convert annotations.json --labels labels.yaml --to semantic-png --out masks

\b
A label's pixel value in masks is its position in the label file, starting at 1, unless value is set:
  labels:
    - {name: road, value: 7}
    - {name: car, value: 26}""",
)
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option("--to", "format_name", required=True, metavar="FORMAT", help="coco, yolo-seg or semantic-png.")
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Label file (YAML); required for masks. For a COCO file, selects and orders the categories.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="PATH", help="File or folder to write.")
@geometry_option
@click.option(
    "--tolerance",
    default="default",
    show_default=True,
    metavar="D",
    help="Tolerance of polygons created from masks, as for prelabel.",
)
@click.option(
    "--min-area",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Merge regions of masks with fewer pixels into their surroundings; 0 keeps all.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing output.")
def command(
    source: Path,
    format_name: str,
    labels_file: Path | None,
    out: Path,
    geometry: Any,
    tolerance: str,
    min_area: int,
    overwrite: bool,
) -> int:
    """Convert INPUT, a COCO file or a folder of semantic PNG masks, to another format.

    Small regions are kept, and COCO annotations are copied unchanged to COCO unless --geometry is given. Anything that
    cannot be converted is counted, and the exit code is then 1.
    """
    from tcl_core.export.base import create_exporter

    given = click.get_current_context().get_parameter_source("geometry") is not click.core.ParameterSource.DEFAULT
    if given and format_name != "coco":
        raise SettingsError(f"--geometry: only applies to COCO, not to {format_name}; remove it")
    exporter = create_exporter(format_name)
    exporter.check_target(out)
    if out.exists() and not overwrite and (out.is_file() or any(out.iterdir())):
        raise SettingsError(f"--out {out}: already exists; add --overwrite, or choose another name")
    read = [source, labels_file]
    if exporter.writes_folder:
        check_folder("--out", out.absolute().parent)
        check_holds_nothing("--out", out, read)
    else:
        check_outputs({"--out": out}, read, overwrite)
    vocabulary = None if labels_file is None else Vocabulary.from_file(labels_file)

    from tcl_core.export.convert import convert
    from tcl_core.export.sources import open_source
    from tcl_core.polygons import tolerance_in_pixels

    tolerance_in_pixels(tolerance)
    chosen = geometry if given else None
    found = open_source(source, vocabulary)
    summary = convert(found, exporter, out, geometry=chosen, tolerance=tolerance, min_area=min_area)
    click.echo(f"{out}: {summary.images:,} images, {summary.annotations:,} annotations")
    what = "annotations" if source.is_file() else "masks"
    for reason, number in sorted(summary.left_out.items()):
        click.echo(f"left out: {number:,} {what} {reason}", err=True)
    for change, number in sorted(summary.changed.items()):
        click.echo(f"note: {change}: {number:,}", err=True)
    return EXIT_ISSUES if summary.left_out else EXIT_FINE
