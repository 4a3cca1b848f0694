"""``tcl-annotate label-studio setup``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from labelstudio_backend.cli.options import read_token, server_options
from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import make_vocabulary, vocabulary_options
from tcl_core.cli.places import INPUT_PATH

__all__ = ["command"]

_BACKEND_TITLE = "tcl-annotate"


@click.command(
    "setup",
    short_help="Create a project with labels and connect the backend.",
    epilog="""\b
Examples:
  tcl-annotate label-studio setup --token-file token.txt --labels labels.yaml --upload photos
  tcl-annotate label-studio setup --token-file token.txt --label "Sofa=sofa,couch" --label Lamp --no-backend""",
)
@vocabulary_options
@server_options
@click.option(
    "--title", default="Pre-labeled with tcl-annotate", show_default=True, metavar="TEXT", help="Title of the project."
)
@click.option(
    "--shape",
    type=click.Choice(["polygon", "brush", "box"]),
    default="polygon",
    show_default=True,
    help="Shape of predictions; polygon draws regions with holes as brush masks.",
)
@click.option(
    "--backend-url",
    default="http://localhost:9090",
    show_default=True,
    metavar="URL",
    help="URL at which Label Studio reaches the backend.",
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
    title: str,
    shape: Any,
    backend_url: str,
    no_backend: bool,
    auth_file: Path | None,
    upload: tuple[Path, ...],
    local_files: str | None,
) -> int:
    """Create a project with labels, connect the backend to it, and print its URL."""
    from labelstudio_backend.client import LabelStudioClient
    from labelstudio_backend.config_writer import labeling_config_xml
    from labelstudio_backend.middleware import read_auth_file
    from tcl_core.jobs.inputs import find_images

    vocabulary = make_vocabulary(
        labels_file, label_options, background, background_threshold, background_names, templates
    )
    xml = labeling_config_xml(vocabulary, shape)
    credentials = read_auth_file(auth_file)[0] if auth_file is not None else None
    images = find_images([str(path) for path in upload]) if upload else None
    if images is not None and images.left_out:
        click.echo(images.left_out_message(), err=True)
    token = read_token(token_file)
    with LabelStudioClient(url, str(token)) as client:
        project = client.create_project(title, xml)
        click.echo(f"project {project.id}: {client.url}/projects/{project.id}")
        if images is not None:
            client.upload(project.id, [images.path(index) for index in range(len(images))])
            click.echo(f"{len(images):,} images uploaded")
        if local_files is not None:
            client.add_local_storage(project.id, local_files)
            click.echo(f"tasks imported from {local_files}")
        # Last, because it fails most easily, and can then be done in the project's settings.
        if not no_backend:
            client.connect_backend(project.id, backend_url, _BACKEND_TITLE, credentials)
            client.use_model(project.id, _BACKEND_TITLE)
            click.echo(f"connected to backend {backend_url}")
    return EXIT_FINE
