"""``tcl-annotate label-studio export``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from labelstudio_backend.cli.options import image_options, read_token, server_options
from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import geometry_option
from tcl_core.cli.places import OUTPUT_PATH, check_outputs

__all__ = ["command"]


@click.command(
    "export",
    short_help="Write a project's annotations as COCO.",
    epilog="""\b
Examples:
  tcl-annotate label-studio export --token-file token.txt --project 1 --out coco.json
  tcl-annotate label-studio export --token-file token.txt --project 1 --out coco.json --annotators consensus""",
)
@server_options
@click.option("--project", type=click.IntRange(min=1), required=True, metavar="N", help="Project id.")
@click.option("--out", type=OUTPUT_PATH, required=True, metavar="FILE", help="COCO file to write.")
@click.option(
    "--annotators",
    type=click.Choice(["latest", "all", "consensus"]),
    default="latest",
    show_default=True,
    help="Which annotations to use: the latest of each task, all, or the pixels on which more than half agree.",
)
@geometry_option
@click.option("--all-tasks", is_flag=True, help="Include tasks that nobody has annotated, as images without regions.")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
@image_options
def command(
    url: str,
    token_file: Path | None,
    project: int,
    out: Path,
    annotators: Any,
    geometry: Any,
    all_tasks: bool,
    overwrite: bool,
    allow_hosts: tuple[str, ...],
    allow_addresses: tuple[str, ...],
    local_root: Path | None,
) -> int:
    """Export the annotations of a project as COCO: polygons, brush masks and boxes, each image once.

    Only annotated tasks are written, and skipped annotations are ignored; --all-tasks adds the others. The sizes of
    images without regions are read from the image files.
    """
    from anyio.from_thread import start_blocking_portal

    from labelstudio_backend.client import LabelStudioClient
    from labelstudio_backend.export import export_tasks, is_annotated
    from labelstudio_backend.image_fetch.locations import Owner
    from labelstudio_backend.labeling_config import parse_project_config
    from labelstudio_backend.settings import ImageSettings
    from tcl_core.images import image_size

    check_outputs({"--out": out}, [], overwrite)
    token = str(read_token(token_file))
    fetcher = ImageSettings(url, (), allow_hosts, allow_addresses, local_root).fetcher(token)
    with (
        LabelStudioClient(url, token) as client,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(fetcher),
    ):
        config = parse_project_config(client.project(project).label_config)

        def size_of(task: Mapping[str, Any]) -> tuple[int, int]:
            image = portal.call(fetcher.fetch, task["image_url"], Owner(task.get("id")))
            return image_size(image, name="the image")

        left = 0

        def wanted() -> Iterator[Mapping[str, Any]]:
            nonlocal left
            for page in client.tasks(project, full=True):
                for task in page:
                    if all_tasks or is_annotated(task):
                        yield task
                    else:
                        left += 1

        summary = export_tasks(
            wanted(), config, out, annotators=annotators, geometry=geometry, size_of=size_of, overwrite=overwrite
        )
    click.echo(f"{out}: {summary.images:,} images, {summary.annotations:,} annotations")
    if left:
        click.echo(f"{left:,} tasks without annotations were left out; --all-tasks adds them")
    for task, reason in sorted(summary.failed.items()):
        click.echo(f"failed: task {task}: {reason}", err=True)
    for task, reasons in sorted(summary.left_out.items()):
        for reason in reasons:
            click.echo(f"left out: task {task}: {reason}", err=True)
    return EXIT_ISSUES if summary.failed or summary.left_out else EXIT_FINE
