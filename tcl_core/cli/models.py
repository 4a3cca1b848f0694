"""``tcl-annotate models``: what there is, fetching it, importing checkpoints, quantizing."""

from __future__ import annotations

from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.places import INPUT_PATH, OUTPUT_PATH
from tcl_core.cli.quantize import command as quantize_command
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.group(
    "models",
    short_help="List, fetch, import and quantize models.",
    epilog="""\b
Examples:
  tcl-annotate models list
  tcl-annotate models options playground
  tcl-annotate models fetch tcl-vit-b16
  tcl-annotate models fetch naclip:ViT-B-16-quickgelu/openai
  tcl-annotate models import tcl.pth --name my-tcl
  tcl-annotate models quantize tcl-vit-b16 photos --labels labels.yaml""",
)
def command() -> None:
    """List, fetch, import and quantize models."""


command.add_command(quantize_command)


@command.command("list", epilog="\b\nExample:\n  tcl-annotate models list")
def list_command() -> int:
    """List the available models and their files."""
    from tcl_core.models.registry import list_models

    for row in list_models():
        size = f"{row.size / 1e6:,.1f} MB" if row.size is not None else "size unknown"
        state = "ready" if row.installed else "not fetched"
        click.echo(f"{row.name}  ({state}, {size}{', ' + row.license if row.license else ''})")
        for line in (row.description, f"source: {row.source}" if row.source else "", f"file: {row.path}"):
            if line:
                click.echo(f"    {line}")
    click.echo(
        "Any other plain ViT of open_clip works as METHOD:CONFIGURATION/TAG, and your own weights as "
        "METHOD:CONFIGURATION=FILE."
    )
    return EXIT_FINE


@command.command(
    "options",
    epilog="\b\nExamples:\n  tcl-annotate models options playground\n  tcl-annotate models options naclip",
)
@click.argument("name")
def options_command(name: str) -> int:
    """List the options of the model or method NAME and their values."""
    from tcl_core.models.loading import options_of

    method, options = options_of(name)
    rows = options.rows()
    click.echo(f"{name}: method {method}, {len(rows)} option{'' if len(rows) == 1 else 's'}")
    for row in rows:
        click.echo(f"    {row.name}={row.value}  ({row.range}; affects {row.affects})")
        click.echo(f"        {row.description}")
    return EXIT_FINE


@command.command(
    "fetch",
    epilog="\b\nExamples:\n  tcl-annotate models fetch tcl-vit-b16\n  tcl-annotate models fetch tcl-vit-b16 --quiet",
)
@click.argument("name")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def fetch_command(name: str, quiet: bool) -> int:
    """Download and prepare the model NAME; existing files are not downloaded again."""
    from tcl_core.models.registry import fetch_model

    click.echo(f"ready: {fetch_model(name, progress=not quiet)}")
    return EXIT_FINE


@command.command(
    "import",
    epilog="""\b
Examples:
  tcl-annotate models import tcl.pth --name my-tcl
  tcl-annotate models import training.pth --out my-tcl.safetensors""",
)
@click.argument("file", type=INPUT_PATH)
@click.option("--name", metavar="NAME", help="Name to load the model by. Default: the name of FILE.")
@click.option(
    "--out",
    type=OUTPUT_PATH,
    metavar="FILE",
    help="Model file to write (.safetensors). Default: NAME in the model folder.",
)
@click.option(
    "--clip",
    "clip_file",
    type=INPUT_PATH,
    metavar="FILE",
    help="Safetensors file with the frozen CLIP, to store in the model file. Required if the checkpoint lacks its CLIP "
    "and that is not OpenAI's ViT-B/16; otherwise it saves a download.",
)
@click.option("--license", default="", metavar="TEXT", help="License of the weights, stored in the model file.")
@click.option("--overwrite", is_flag=True, help="Replace the model if it exists.")
def import_command(
    file: Path, name: str | None, out: Path | None, clip_file: Path | None, license: str, overwrite: bool
) -> int:
    """Convert the published or training checkpoint FILE (.pth) to a model file, without running code from it."""
    from tcl_core.models.checkpoints import import_checkpoint
    from tcl_core.models.paths import models_folder

    target = out or models_folder() / f"{name or file.stem}.safetensors"
    if target.exists() and not overwrite:
        raise SettingsError(f"{target}: already exists; add --overwrite, or choose another --name")
    written = import_checkpoint(file, name=name, out=out, clip_file=clip_file, license=license)
    click.echo(f"ready: {written}")
    return EXIT_FINE
