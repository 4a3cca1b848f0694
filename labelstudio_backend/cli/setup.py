"""``tcl-annotate label-studio setup``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labelstudio_backend.cli.options import read_token, server_options
from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import make_vocabulary, vocabulary_options
from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError

__all__ = ["command"]

_BACKEND_TITLE = "tcl-annotate"


@click.command(
    "setup",
    short_help="Create a project with labels and connect the backend.",
    epilog="""\b
Examples:
  tcl-annotate label-studio setup --token-file token.txt --labels labels.yaml --upload photos
  tcl-annotate label-studio setup --token-file token.txt --project 3
  tcl-annotate label-studio setup --token-file token.txt --label "Sofa=sofa,couch" --label Lamp --no-backend""",
)
@vocabulary_options
@server_options
@click.option(
    "--project",
    "number",
    type=click.IntRange(min=1),
    metavar="N",
    help="Connect this project instead of creating one; its labels and tasks stay as they are.",
)
@click.option(
    "--title", default="Pre-labeled with tcl-annotate", show_default=True, metavar="TEXT", help="Title of the project."
)
@click.option(
    "--shape",
    type=click.Choice(["polygon", "brush", "box"]),
    default="polygon",
    show_default=True,
    help="Shape of predictions.",
)
@click.option(
    "--backend-url",
    default="http://localhost:9090",
    show_default=True,
    metavar="URL",
    help="URL at which Label Studio reaches the backend.",
)
@click.option(
    "--wait",
    type=click.IntRange(min=0),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the backend to listen.",
)
@click.option("--no-backend", is_flag=True, help="Do not connect a backend; predict only with 'label-studio prelabel'.")
@click.option("--auth-file", type=INPUT_PATH, metavar="FILE", help="The backend's file with name:password lines.")
@click.option("--upload", type=INPUT_PATH, multiple=True, metavar="PATH", help="Images or folders to upload.")
@click.option("--local-files", metavar="DIR", help="Folder on the server to import tasks from, as seen by the server.")
def command(
    labels_file: Path | None,
    label_options: tuple[str, ...],
    background: bool | None,
    background_threshold: float | None,
    background_names: str | None,
    templates: str | None,
    url: str,
    token_file: Path | None,
    number: int | None,
    title: str,
    shape: Any,
    backend_url: str,
    wait: int,
    no_backend: bool,
    auth_file: Path | None,
    upload: tuple[Path, ...],
    local_files: str | None,
) -> int:
    """Create a project with labels, connect the backend to it, and print its URL.

    Run again, the command goes on with the project of the same title and labels: the backend is not connected twice,
    and images that the project has already are not uploaded again.
    """
    from labelstudio_backend.client import LabelStudioClient, uploaded_name
    from labelstudio_backend.config_writer import labeling_config_xml
    from labelstudio_backend.labeling_config import parse_project_config
    from labelstudio_backend.middleware import read_auth_file
    from labelstudio_backend.waiting import wait_for_backend
    from tcl_core.jobs.inputs import find_images

    xml = ""
    if number is None:
        vocabulary = make_vocabulary(
            labels_file, label_options, background, background_threshold, background_names, templates
        )
        xml = labeling_config_xml(vocabulary, shape)
    elif labels_file is not None or label_options:
        raise SettingsError("--project keeps the project's own labels; leave out --labels and --label")
    refused: dict[Path, str] = {}
    credentials = read_auth_file(auth_file)[0] if auth_file is not None else None
    # The labels often lie beside the images; nobody has to be told that they are not one.
    exclude = [labels_file] if labels_file is not None else []
    images = find_images([str(path) for path in upload], exclude=exclude) if upload else None
    if images is not None and images.left_out:
        click.echo(images.left_out_message(), err=True)
    token = read_token(token_file)
    with LabelStudioClient(url, str(token)) as client:
        known = client.project(number) if number is not None else client.find_project(title, xml)
        if known is not None:
            # A project whose labels cannot be predicted would only ever say so, task by task.
            parse_project_config(known.label_config)
        if not no_backend:
            wait_for_backend(backend_url, wait)
        project = known or client.create_project(title, xml)
        if known is None:
            client.add_uncertain_tab(project.id)
        click.echo(f"project {project.id}: {client.url}/projects/{project.id}")
        if images is not None:
            there = client.uploaded_names(project.id) if known is not None else frozenset()
            paths = [images.path(index) for index in range(len(images))]
            new = [path for path in paths if uploaded_name(path.name) not in there]
            refused = client.upload(project.id, new)
            kept = f", {len(paths) - len(new):,} were there already" if len(new) < len(paths) else ""
            click.echo(f"{len(new) - len(refused):,} images uploaded{kept}")
        if local_files is not None:
            client.add_local_storage(project.id, local_files)
            click.echo(f"tasks imported from {local_files}")
        # Last, because it fails most easily, and the command can be repeated.
        if not no_backend:
            if backend_url.rstrip("/") not in client.backend_urls(project.id):
                client.connect_backend(project.id, backend_url, _BACKEND_TITLE, credentials)
            client.use_model(project.id, _BACKEND_TITLE)
            click.echo(f"connected to backend {backend_url}")
    for path, reason in refused.items():
        click.echo(f"failed: {path}: Label Studio does not take it ({reason}); convert it to PNG or JPEG", err=True)
    return EXIT_ISSUES if refused else EXIT_FINE
