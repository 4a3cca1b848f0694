"""``tcl-annotate prelabel``: the main job."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_INTERRUPTED, EXIT_ISSUES
from tcl_core.cli.options import (
    check_folder,
    check_outputs,
    geometry_option,
    make_segmenter,
    make_vocabulary,
    model_options,
    vocabulary_options,
)
from tcl_core.errors import SettingsError

if TYPE_CHECKING:
    from tcl_core.prelabel.job import PrelabelSummary

__all__ = ["command"]

_FAILURES_HEAD = ("file_name", "reason")


@click.command(
    "prelabel",
    short_help="Label images from text and write a COCO file.",
    epilog="""\b
Examples:
  tcl-annotate prelabel photos --labels labels.yaml --model playground --out labels.json
  tcl-annotate prelabel 'photos/**/*.jpg' extra/one.png --label "Sofa=sofa,couch" --label Lamp \\
      --out labels.json --preview preview
  tcl-annotate prelabel photos --labels labels.yaml --out labels.json --resume

\b
A label file:
  labels:
    - Lamp
    - name: Sofa
      prompts: [sofa, couch]
      threshold: 0.5
      color: "#3a7bd5"
  background: true""",
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@vocabulary_options
@model_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="FILE", help="COCO file to write.")
@click.option(
    "--preview", type=click.Path(path_type=Path), metavar="DIR", help="Folder for a preview page that works offline."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that the file names in FILE are relative to; by default the deepest one that holds every INPUT.",
)
@geometry_option
@click.option(
    "--tolerance",
    default="default",
    show_default=True,
    metavar="D",
    help="How closely polygons follow the masks: exact (every pixel edge), fine, default, easy-to-edit, or a number of "
    "pixels that an edge may move.",
)
@click.option("--merge", is_flag=True, help="One annotation for each label of an image instead of each region.")
@click.option(
    "--min-area",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Leave out regions of fewer pixels.",
)
@click.option(
    "--small",
    type=click.Choice(["drop", "merge"]),
    default="drop",
    show_default=True,
    help="What becomes of regions under --min-area: dropped, or merged into their surroundings.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=200_000_000,
    show_default=True,
    metavar="N",
    help="Skip images of more pixels.",
)
@click.option(
    "--format",
    "format_name",
    default="coco",
    show_default=True,
    metavar="NAME",
    help="Format of FILE; installed packages can bring others.",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped; failed images are tried again.")
@click.option("--overwrite", is_flag=True, help="Replace FILE and the preview if they are there.")
@click.option(
    "--failures", type=click.Path(path_type=Path), metavar="FILE", help="Write skipped images and reasons as CSV."
)
@click.option("--quiet", is_flag=True, help="Show no progress, only the summary.")
def command(
    inputs: tuple[str, ...],
    labels_file: Path | None,
    label_options: tuple[str, ...],
    background: bool | None,
    background_threshold: float | None,
    background_names: str | None,
    templates: str | None,
    model: str,
    refine: bool,
    option_values: Mapping[str, str],
    device: str,
    precision: str,
    batch_size: int,
    out: Path,
    preview: Path | None,
    root: Path | None,
    geometry: Any,
    tolerance: str,
    merge: bool,
    min_area: int,
    small: Any,
    max_pixels: int,
    format_name: str,
    resume: bool,
    overwrite: bool,
    failures: Path | None,
    quiet: bool,
) -> int:
    """Label images from text and write a COCO file.

    INPUT is an image, a folder (searched through its sub-folders) or a pattern such as 'photos/*.jpg'. An image that
    cannot be read is reported and skipped, and the exit code is then 1. Stopped by Ctrl-C or in any other way, the job
    goes on with --resume and ends with the same file.
    """
    vocabulary = make_vocabulary(
        labels_file, label_options, background, background_threshold, background_names, templates
    )
    _check_places(out, failures, preview, resume, overwrite)

    from tcl_core.prelabel.inputs import find_images

    left_out = [path for path in (preview,) if path is not None]
    images = find_images(inputs, root, exclude=left_out)
    read = [labels_file, model, *(images.path(index) for index in range(len(images)))]
    check_outputs({"--failures": failures}, [*read, out], resume or overwrite)
    if out.parent.is_dir():
        # Whether it may exist was judged above, with --resume in mind.
        check_outputs({"--out": out}, read, True)
    if failures is not None and failures.exists():
        _check_own_failures(failures)

    from tcl_core.export.base import create_exporter
    from tcl_core.prelabel.interrupt import InterruptGuard
    from tcl_core.prelabel.job import PrelabelSettings, run_prelabel

    settings = PrelabelSettings(tolerance, min_area, small, max_pixels)
    # These two are COCO's own.
    exporter = create_exporter(format_name, **({"geometry": geometry, "merge": merge} if format_name == "coco" else {}))
    # From here on a polite kill (SIGTERM) ends like Ctrl-C.
    with InterruptGuard():
        segmenter = make_segmenter(model, refine, option_values, device, precision, batch_size)
        if not quiet:
            click.echo(
                f"{_count(len(images), 'image')}, {_count(len(vocabulary.labels), 'label')}, "
                f"model {segmenter.model.name} on {segmenter.model.device}",
                err=True,
            )
        summary = run_prelabel(
            images,
            segmenter,
            vocabulary,
            out,
            exporter,
            settings,
            preview=preview,
            preview_title=f"Pre-labels: {out.stem}",
            resume=resume,
            overwrite=overwrite,
            quiet=quiet,
        )
    if failures is not None:
        _write_failures(failures, summary.failed)
    return _report(summary, out, quiet)


def _check_places(out: Path, failures: Path | None, preview: Path | None, resume: bool, overwrite: bool) -> None:
    """What would otherwise be found only after the model was loaded, or after hours of work."""
    from tcl_core.prelabel.journal import journal_path

    if resume and overwrite:
        raise SettingsError("--resume and --overwrite exclude each other; give one of them")
    if not (resume or overwrite):
        for path, what in ((out, "is there already"), (journal_path(out), "is left from a run that was stopped")):
            if path.is_file():
                raise SettingsError(
                    f"{path}: {what}; add --resume to go on, --overwrite to begin anew, or name another"
                )
    places = [("--out", out), *([("--failures", failures)] if failures is not None else [])]
    for option, path in places:
        if path.is_dir():
            raise SettingsError(f"{option} {path}: is a folder; name a file")
        parent = path.absolute().parent
        if path is failures:
            check_folder(option, parent)
            continue
        while not parent.exists():
            parent = parent.parent
        check_folder(option, parent)
    if failures is not None and failures.absolute() == out.absolute():
        raise SettingsError(f"--failures {failures}: is the same file as --out; name another")
    if preview is not None and out.absolute() == preview.absolute():
        raise SettingsError(f"--preview {preview}: is the same path as --out; name another folder")


def _check_own_failures(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.readline(100).strip()
    if head and head != ",".join(_FAILURES_HEAD).encode():
        raise SettingsError(f"--failures {path}: is no list of failures that could be replaced; name another file")


def _write_failures(path: Path, failed: Mapping[str, str]) -> None:
    try:
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_FAILURES_HEAD)
            writer.writerows(sorted(failed.items()))
    except OSError as error:
        raise SettingsError(f"--failures {path}: cannot be written ({error.strerror})") from error


def _report(summary: PrelabelSummary, out: Path, quiet: bool) -> int:
    click.echo(f"{out}: {summary.done:,} of {_count(summary.total, 'image')}")
    if summary.preview is not None:
        click.echo(f"preview: {summary.preview}")
    if summary.failed:
        blame = f", {summary.internal:,} by internal errors of the program; please report them"
        click.echo(f"skipped: {_count(len(summary.failed), 'image')}{blame if summary.internal else ''}", err=True)
    # With progress shown, each was named when it was met.
    for name, reason in sorted(summary.failed.items())[:20] if quiet else ():
        click.echo(f"  {name}: {reason}", err=True)
    if summary.interrupted:
        click.echo(f"interrupted; to go on: {_resume_command()}", err=True)
        return EXIT_INTERRUPTED
    return EXIT_ISSUES if summary.failed else EXIT_FINE


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _resume_command() -> str:
    words = [word for word in click.get_current_context().find_root().obj if word != "--overwrite"]
    if "--resume" not in words:
        words.append("--resume")
    return shlex.join(["tcl-annotate", *words])
