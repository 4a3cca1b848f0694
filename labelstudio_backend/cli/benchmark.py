"""``tcl-annotate label-studio benchmark``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import DEFAULT_MODEL
from tcl_core.errors import SettingsError

__all__ = ["command"]

# As many as a project has that is worth a tool, and as many as napari's benchmark.
_LABELS = ("cat", "sofa", "grass", "tree", "car", "cup", "house", "star", "sky", "sand")


@click.command(
    "benchmark",
    short_help="Measure the server under load on this machine.",
    epilog="""\b
Example:
  tcl-annotate label-studio benchmark --model playground --label cat --label sofa --label grass""",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="Name or path of a model.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="WORD",
    help=f"A word that the model knows; repeatable. Default: {', '.join(_LABELS)}.",
)
@click.option(
    "--size",
    type=(click.IntRange(min=32), click.IntRange(min=32)),
    default=(640, 480),
    show_default=True,
    metavar="WIDTH HEIGHT",
    help="Size of the images in pixels.",
)
def command(model: str, labels: tuple[str, ...], size: tuple[int, int]) -> int:
    """Run the server on a free port, and measure its responses under load and the time of a second prompt.

    The exit code is 1 if a figure misses its target.
    """
    from labelstudio_backend.benchmark import measure_server
    from labelstudio_backend.model_options import ModelOptions
    from labelstudio_backend.settings import ServerSettings

    if len(labels) == 1:
        raise SettingsError("--label: give at least two; all but the first are used for second prompts")
    options = ModelOptions(model)
    options.identity()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        settings = replace(ServerSettings(options), state_dir=Path(folder) / "state")
        measured = measure_server(settings, labels or _LABELS, size[::-1], images)
    width = max(len(one.name) for one in measured)
    for one in measured:
        target = "" if one.target is None else f" below {one.target:g}{one.unit}{'' if one.passes else '  missed'}"
        click.echo(f"{one.name:<{width}}  {one.value:7.3f}{one.unit:<2}{target}".rstrip())
    return EXIT_FINE if all(one.passes for one in measured) else EXIT_ISSUES
