"""``tcl-annotate label-studio compose``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError

__all__ = ["FILES", "FOLDERS", "command"]

FILES = ("docker-compose.yml", "Dockerfile")
FOLDERS = ("files", "wheels")
"""Images, mounted into both containers (Docker would make the folder as root), and packages to install."""


@click.command(
    "compose",
    short_help="Write a compose file and a Dockerfile.",
    epilog="""\b
Example:
  tcl-annotate label-studio compose --out label-studio && cd label-studio && docker compose up --build""",
)
@click.option("--out", type=INPUT_PATH, required=True, metavar="DIR", help="Folder for the files.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def command(out: Path, overwrite: bool) -> int:
    """Write a compose file that starts Label Studio and the backend, with the backend's Dockerfile."""
    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise SettingsError(f"{out / there[0]} exists already; pass --overwrite to replace it")
    try:
        for folder in FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        for name in FILES:
            text = files("labelstudio_backend").joinpath("container", name).read_text(encoding="utf-8")
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{out}: cannot be written ({error.strerror})") from error
    click.echo(f"{', '.join(str(out / name) for name in FILES)}")
    click.echo(f"next: cd {out} && docker compose up --build")
    return EXIT_FINE
