"""``tcl-annotate label-studio prelabel``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from labelstudio_backend.cli.options import image_options, read_token, server_options
from tcl_core.cli.main import EXIT_FINE, EXIT_INTERRUPTED, EXIT_ISSUES
from tcl_core.cli.options import min_area_option, model_options, workers_option
from tcl_core.cli.places import INPUT_PATH

__all__ = ["command"]

_MANY = 32
"""Where the stages of so many tasks went is worth a line."""


@click.command(
    "prelabel",
    short_help="Predict all tasks of a project.",
    epilog="""\b
Examples:
  tcl-annotate label-studio prelabel --token-file token.txt --project 1
  tcl-annotate label-studio prelabel --token-file token.txt --project 1 --view 3 --only-unlabeled""",
)
@server_options
@click.option("--project", type=click.IntRange(min=1), required=True, metavar="N", help="Project id.")
@click.option("--view", type=click.IntRange(min=1), metavar="ID", help="Only tasks in this tab of the data manager.")
@click.option("--only-unlabeled", is_flag=True, help="Skip tasks that somebody has annotated.")
@model_options
@image_options
@min_area_option
@click.option(
    "--tolerance",
    default="easy-to-edit",
    show_default=True,
    metavar="D",
    help="Maximum deviation of polygons from the masks: exact (none), fine, default, easy-to-edit, or pixels.",
)
@click.option("--state-dir", type=INPUT_PATH, metavar="DIR", help="Folder for typed prompts.")
@workers_option
@click.option("--quiet", is_flag=True, help="Show no progress, only the summary.")
def command(
    url: str,
    token_file: Path | None,
    project: int,
    view: int | None,
    only_unlabeled: bool,
    model: str,
    refine: bool,
    option_values: Mapping[str, str],
    device: str,
    precision: str,
    backend: str,
    batch_size: int,
    allow_hosts: tuple[str, ...],
    allow_addresses: tuple[str, ...],
    local_root: Path | None,
    min_area: Any,
    tolerance: str,
    state_dir: Path | None,
    workers: int | Literal["auto"],
    quiet: bool,
) -> int:
    """Predict all tasks of a project and store the predictions in Label Studio.

    Tasks that already have a prediction of the same model, settings and labels are skipped, so you can resume a
    stopped run by starting it again. Failed tasks are reported, and the exit code is then 1.
    """
    from labelstudio_backend.batch import predict_project
    from labelstudio_backend.client import LabelStudioClient
    from labelstudio_backend.model_options import ModelOptions
    from labelstudio_backend.prompts import PromptStore
    from labelstudio_backend.settings import ImageSettings, default_state_dir

    token = str(read_token(token_file))
    options = ModelOptions(
        model, refine, dict(option_values), device, precision, batch_size, tolerance, min_area, backend=backend
    )
    # Reads the file once: a wrong name ends here.
    options.identity()
    images = ImageSettings(url, (), allow_hosts, allow_addresses, local_root)
    store = PromptStore((state_dir or default_state_dir()) / "prompts.json")
    with LabelStudioClient(url, token) as client:
        found = client.project(project)
        summary = predict_project(
            client,
            found,
            images.fetcher(token),
            options,
            store.get(found.key),
            view=view,
            only_unlabeled=only_unlabeled,
            workers=workers,
            quiet=quiet,
        )
    click.echo(
        f"project {project}: {summary.done:,} of {summary.total:,} tasks predicted as {summary.model_version}, "
        f"{summary.skipped:,} skipped"
        + (f", {summary.replaced:,} older predictions replaced" if summary.replaced else "")
    )
    if not quiet and summary.total - summary.skipped >= _MANY and summary.stages.elapsed:
        click.echo(f"stages: {summary.stages}", err=True)
    for reason, count in Counter(summary.empty.values()).most_common():
        click.echo(f"empty: {count:,} tasks: {reason}", err=True)
    for task, reason in sorted(summary.failed.items()):
        click.echo(f"failed: task {task}: {reason}", err=True)
    words = click.get_current_context().find_root().obj
    if summary.stopped:
        click.echo(f"stopped: {summary.stopped}", err=True)
        click.echo(f"to continue later, run: {shlex.join(['tcl-annotate', *words])}", err=True)
        return EXIT_ISSUES
    if summary.interrupted:
        click.echo(f"interrupted; to continue, run: {shlex.join(['tcl-annotate', *words])}", err=True)
        return EXIT_INTERRUPTED
    return EXIT_ISSUES if summary.failed else EXIT_FINE
