"""``tcl-annotate prelabel``: the main job."""

from __future__ import annotations

import csv
import os
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tcl_core.cli.explain import choose_names, explain_names, explain_option
from tcl_core.cli.main import EXIT_FINE, EXIT_INTERRUPTED, EXIT_ISSUES
from tcl_core.cli.options import (
    WorkersType,
    bit_depth_option,
    geometry_option,
    make_segmenter,
    make_vocabulary,
    max_pixels_option,
    min_area_option,
    model_options,
    vocabulary_options,
    workers_option,
)
from tcl_core.cli.places import OUTPUT_PATH, check_file, check_folder, check_holds_nothing, check_outputs
from tcl_core.errors import SettingsError, reason_of
from tcl_core.export.names import printable

if TYPE_CHECKING:
    from tcl_core.jobs.job import PrelabelSummary

__all__ = ["command"]

_MANY = 32
"""Where the stages of so many images went is worth a line."""
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
  tcl-annotate prelabel photos --labels labels.yaml --format yolo-seg --out dataset

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
@click.option("--out", required=True, type=OUTPUT_PATH, metavar="FILE", help="File or folder to write.")
@click.option("--preview", type=OUTPUT_PATH, metavar="DIR", help="Folder for preview pages that work offline.")
@click.option(
    "--root",
    metavar="DIR",
    help="Folder or address that file names in FILE are relative to. Default: the deepest that contains every INPUT.",
)
@geometry_option
@click.option(
    "--tolerance",
    default="default",
    show_default=True,
    metavar="D",
    help="Maximum deviation of polygons from the masks: exact (every pixel edge), fine, default, easy-to-edit, or a "
    "number of pixels.",
)
@click.option("--merge", is_flag=True, help="One annotation per label and image instead of one per region.")
@min_area_option
@click.option(
    "--small",
    type=click.Choice(["merge", "drop"]),
    default="merge",
    show_default=True,
    help="What to do with regions smaller than --min-area: merge them into their surroundings, or drop them.",
)
@max_pixels_option("Skip images with more pixels.")
@bit_depth_option
@click.option(
    "--format",
    "format_name",
    default="coco",
    show_default=True,
    metavar="NAME",
    help="coco writes a file; yolo-seg and semantic-png write a folder; installed packages can add formats.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue a stopped run; images that failed or have changed since are labeled again.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE and the preview if they exist.")
@click.option("--failures", type=OUTPUT_PATH, metavar="FILE", help="Write skipped images and the reasons as CSV.")
@explain_option
@workers_option
@click.option(
    "--ray",
    "ray_address",
    metavar="ADDRESS",
    help="Label the images on a Ray cluster (extra 'ray'): local (processes on this machine), auto (the cluster that "
    "this machine belongs to), HOST:PORT or ray://HOST:PORT. --workers then counts processes of each worker of Ray.",
)
@click.option(
    "--ray-workers",
    type=WorkersType(),
    default="auto",
    show_default=True,
    metavar="N",
    help="Workers of Ray, each with a model. auto: one per GPU, or else one per OMP_NUM_THREADS cores.",
)
@click.option("--quiet", is_flag=True, help="Print only the summary.")
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
    backend: str,
    batch_size: int,
    out: Path,
    preview: Path | None,
    root: str | None,
    geometry: Any,
    tolerance: str,
    merge: bool,
    min_area: Any,
    small: Any,
    max_pixels: int,
    bit_depth: int | None,
    format_name: str,
    resume: bool,
    overwrite: bool,
    failures: Path | None,
    explain: bool,
    workers: int | Literal["auto"],
    ray_address: str | None,
    ray_workers: int | Literal["auto"],
    quiet: bool,
) -> int:
    """Label images from text and write a COCO file.

    INPUT is an image, a folder (searched recursively), a pattern such as 'photos/*.jpg', or an address in object
    storage (s3://BUCKET/PREFIX, gs://BUCKET/PREFIX). Unreadable images are reported and skipped, and the exit code is
    then 1. Files in folders without an image extension are counted. If the run is stopped, by Ctrl-C or otherwise,
    --resume continues it to an identical file.
    """
    vocabulary = make_vocabulary(
        labels_file, label_options, background, background_threshold, background_names, templates
    )
    from tcl_core.export.base import create_exporter

    # These two are COCO's own.
    exporter = create_exporter(format_name, **({"geometry": geometry, "merge": merge} if format_name == "coco" else {}))
    _check_own_options(format_name)
    if exporter.writes_folder:
        exporter.check_target(out)
    _check_places(out, failures, preview, resume, overwrite, folder=exporter.writes_folder)

    from tcl_core.export.base import journal_path
    from tcl_core.jobs.remote_inputs import find_job_images

    own = [path for path in (preview, labels_file, out, journal_path(out), failures) if path is not None]
    images = find_job_images(inputs, root, exclude=own)
    if images.left_out:
        click.echo(images.left_out_message(), err=True)
    read = [labels_file, model, *images.local_paths()]
    check_outputs({"--failures": failures}, [*read, out], resume or overwrite)
    if exporter.writes_folder:
        check_holds_nothing("--out", out, read)
    elif out.parent.is_dir():
        # Whether it may exist was judged above, with --resume in mind.
        check_outputs({"--out": out}, read, True)
    if failures is not None and failures.exists():
        _check_own_failures(failures)

    from tcl_core.jobs.interrupt import InterruptGuard
    from tcl_core.jobs.job import PrelabelSettings, run_prelabel
    from tcl_core.jobs.processes import check_workers
    from tcl_core.jobs.ray_cluster import RayCluster

    _check_ray_options(ray_address)
    if workers != "auto" and ray_address in (None, "local"):
        # The machines of a cluster may have more cores, and check it themselves.
        check_workers(workers)
    settings = PrelabelSettings(tolerance, min_area, small, max_pixels, bit_depth)
    # From here on a polite kill (SIGTERM) ends like Ctrl-C.
    with InterruptGuard(), ExitStack() as stack:
        cluster = None
        chosen = (device, precision, backend)
        if ray_address is not None:
            there = partial(make_segmenter, model, refine, option_values, device, precision, batch_size, backend)
            cluster = stack.enter_context(RayCluster(ray_address, there, ray_workers, workers, device))
            # Here it only checks the words, and devices are for those who label.
            chosen = ("cpu", "auto", "torch")
        segmenter = make_segmenter(model, refine, option_values, chosen[0], chosen[1], batch_size, chosen[2])
        if not quiet:
            click.echo(
                f"{_count(len(images), 'image')}, {_count(len(vocabulary.labels), 'label')}, "
                f"model {segmenter.model.name} on "
                f"{segmenter.model.device if cluster is None else _count(cluster.count, 'worker') + ' of Ray'}",
                err=True,
            )
        choice = choose_names(segmenter, vocabulary, quiet)
        if explain:
            click.echo(explain_names(choice))
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
            workers=workers,
            cluster=cluster,
        )
    code = _report(summary, out, quiet)
    if failures is not None:
        # Last, because nothing else may be lost with it.
        _write_failures(failures, summary.failed, out)
    return code


def _check_own_options(format_name: str) -> None:
    """What another format would pass over in silence."""
    context = click.get_current_context()
    for option in ("geometry", "merge"):
        given = context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT
        if given and format_name != "coco":
            raise SettingsError(f"--{option}: only applies to COCO, not to {format_name}; remove it")


def _check_ray_options(address: str | None) -> None:
    """What would otherwise be passed over in silence."""
    given = click.get_current_context().get_parameter_source("ray_workers")
    if address is None and given is not click.core.ParameterSource.DEFAULT:
        raise SettingsError("--ray-workers: only applies with --ray ADDRESS; add --ray local, or remove this")


def _check_places(
    out: Path, failures: Path | None, preview: Path | None, resume: bool, overwrite: bool, *, folder: bool
) -> None:
    """What would otherwise be found only after the model was loaded, or after hours of work."""
    from tcl_core.jobs.journal import LONGEST_SUFFIX, is_in_use, journal_path

    if resume and overwrite:
        raise SettingsError("--resume and --overwrite cannot be combined; use one of them")
    check_file("--out", out, suffix=LONGEST_SUFFIX, make_folders=True, folder_is_fine=folder)
    if is_in_use(out):
        raise SettingsError(f"--out {out}: another run is writing to it; wait for it to finish, or choose another file")
    if not (resume or overwrite):
        for path, what in ((out, "already exists"), (journal_path(out), "is left over from a stopped run")):
            if path.is_file() or (folder and path.is_dir()):
                raise SettingsError(
                    f"{path}: {what}; add --resume to continue, --overwrite to start over, or choose another name"
                )
    if failures is not None:
        check_file("--failures", failures)
    if failures is not None and failures.absolute() == out.absolute():
        raise SettingsError(f"--failures {failures}: is the same file as --out; choose another name")
    if preview is not None and out.absolute() == preview.absolute():
        raise SettingsError(f"--preview {preview}: is the same path as --out; choose another folder")
    if preview is not None:
        above = preview.absolute()
        while not os.path.lexists(above):
            above = above.parent
        check_folder("--preview", above)


def _check_own_failures(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.readline(100).strip()
    if head and head != ",".join(_FAILURES_HEAD).encode():
        raise SettingsError(f"--failures {path}: is not a list of failures, so it is not replaced; choose another file")


def _write_failures(path: Path, failed: Mapping[str, str], out: Path) -> None:
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_FAILURES_HEAD)
            writer.writerows((printable(name), printable(reason)) for name, reason in sorted(failed.items()))
    except OSError as error:
        raise SettingsError(
            f"--failures {path}: cannot be written ({reason_of(error)}); fix this and run again with --resume to get "
            f"the list ({out} is written)"
        ) from error


def _report(summary: PrelabelSummary, out: Path, quiet: bool) -> int:
    click.echo(f"{out}: {summary.done:,} of {_count(summary.total, 'image')}")
    if summary.preview is not None:
        click.echo(f"preview: {summary.preview}")
    done = summary.stages
    if not quiet and summary.total >= _MANY and done.elapsed:
        click.echo(f"stages: {done}", err=True)
    if quiet and summary.changed:
        click.echo(f"changed since the last run and labeled again: {_count(len(summary.changed), 'image')}", err=True)
    for name, warning in sorted(summary.warnings.items())[:20] if quiet else ():
        click.echo(f"warning: {name}: {warning}", err=True)
    if summary.failed:
        blame = f", {summary.internal:,} because of internal errors; please report them"
        click.echo(f"skipped: {_count(len(summary.failed), 'image')}{blame if summary.internal else ''}", err=True)
    # With progress shown, each was named when it was met.
    for name, reason in sorted(summary.failed.items())[:20] if quiet else ():
        click.echo(f"  {name}: {reason}", err=True)
    if summary.interrupted:
        click.echo(f"interrupted; to continue, run: {_resume_command()}", err=True)
        return EXIT_INTERRUPTED
    return EXIT_ISSUES if summary.failed else EXIT_FINE


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _resume_command() -> str:
    words = [word for word in click.get_current_context().find_root().obj if word != "--overwrite"]
    if "--resume" not in words:
        words.append("--resume")
    return shlex.join(["tcl-annotate", *words])
