"""``tcl-annotate compare``: the same images through several models, side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import (
    backend_option,
    device_option,
    make_segmenter,
    make_vocabulary,
    precision_option,
    vocabulary_options,
)
from tcl_core.cli.places import OUTPUT_PATH
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.command(
    "compare",
    short_help="Compare several models side by side on the same images.",
    epilog="""\b
Examples:
  tcl-annotate compare photos --labels labels.yaml --model tcl-vit-b16 \\
      --model naclip:ViT-B-16-quickgelu/openai --preview compared
  tcl-annotate compare room.jpg --label "Sofa=sofa,couch" --label Lamp --model playground \\
      --model maskclip:playground --preview compared""",
)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@vocabulary_options
@click.option(
    "--model",
    "models",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Name of a model (see 'tcl-annotate models list') or path of a model file; pass at least two.",
)
@click.option("--preview", required=True, type=OUTPUT_PATH, metavar="DIR", help="Folder for the page.")
@click.option("--refine/--no-refine", default=True, help="Refine masks along image edges (PAMR).")
@device_option
@precision_option
@backend_option
@click.option("--title", default="Models side by side", show_default=True, metavar="TEXT", help="Heading of the page.")
@click.option("--overwrite", is_flag=True, help="Replace the page if it exists.")
@click.option("--quiet", is_flag=True, help="Print only the summary.")
def command(
    inputs: tuple[str, ...],
    labels_file: Path | None,
    label_options: tuple[str, ...],
    background: bool | None,
    background_threshold: float | None,
    background_names: str | None,
    templates: str | None,
    models: tuple[str, ...],
    preview: Path,
    refine: bool,
    device: str,
    precision: str,
    backend: str,
    title: str,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Segment a few images with several models and write a page that shows the results side by side.

    INPUT is an image, a folder (searched recursively) or a pattern such as 'photos/*.jpg'. The page shows the masks,
    polygons and regions of each image for each model, and the share of pixels on which the models agree. No
    annotations are written; use 'prelabel' for that. Unreadable images are skipped, and the exit code is then 1.
    """
    vocabulary = make_vocabulary(
        labels_file, label_options, background, background_threshold, background_names, templates
    )
    twice = next((name for name in models if models.count(name) > 1), None)
    if twice is not None:
        raise SettingsError(f"--model {twice}: is given twice; pass each model once")
    if len(models) < 2:
        raise SettingsError("--model: pass at least two models, each with its own --model")

    from tcl_core.jobs.comparison import compare_models
    from tcl_core.jobs.inputs import find_images

    images = find_images(inputs, exclude=[path for path in (preview, labels_file) if path is not None])
    if images.left_out:
        click.echo(images.left_out_message(), err=True)
    # One image at a time is encoded; what goes through the network together are its windows.
    loaders = {
        name: partial(make_segmenter, name, refine, {}, device, precision, batch_size=8, backend=backend)
        for name in models
    }
    found = compare_models(images, loaders, vocabulary, preview, title=title, overwrite=overwrite, quiet=quiet)
    for name, share in found.agreement.items():
        click.echo(f"{name}: the same label as {models[0]} on {share:.1%} of the pixels")
    click.echo(f"page: {found.page}")
    if found.failed:
        click.echo(f"skipped: {len(found.failed):,} of {len(images):,} images", err=True)
    for name, reason in sorted(found.failed.items())[:20] if quiet else ():
        click.echo(f"  {name}: {reason}", err=True)
    return EXIT_ISSUES if found.failed else EXIT_FINE
