"""``tcl-annotate archive``: embed a folder of unlabeled images, and find references of words in it."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import (
    DEFAULT_MODEL,
    batch_size_option,
    device_option,
    make_vocabulary,
    max_pixels_option,
    precision_option,
)
from tcl_core.cli.places import INPUT_PATH, OUTPUT_PATH, check_outputs
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.group(
    "archive",
    short_help="Find references of labels in your own unlabeled images.",
    epilog="""\b
Examples:
  tcl-annotate archive build photos --model ViT-B-16-quickgelu/openai
  tcl-annotate archive fit photos-archive --labels labels.yaml --out references.safetensors --page retrieved
  tcl-annotate prelabel photos --labels labels.yaml --model references.safetensors --out labels.json""",
)
def command() -> None:
    """Embed a folder of your own unlabeled images once, and find references of labels in it (ReCo-style)."""


@command.command(
    "build",
    epilog="""\b
Examples:
  tcl-annotate archive build photos
  tcl-annotate archive build photos more/photos --out archive --model ViT-B-16-quickgelu/openai""",
)
@click.argument("inputs", nargs=-1, required=True, metavar="DIR...")
@click.option(
    "--out", type=OUTPUT_PATH, metavar="DIR", help="Folder of the archive. Default: DIR-archive beside the first DIR."
)
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    metavar="NAME",
    help="Model whose CLIP embeds the images, or a CLIP of open_clip such as ViT-B-16-quickgelu/openai.",
)
@device_option
@precision_option
@batch_size_option("Images per forward pass.")
@max_pixels_option("Reject images with more pixels.")
@click.option("--quiet", is_flag=True, help="Print only the summary.")
def build_command(
    inputs: tuple[str, ...],
    out: Path | None,
    model: str,
    device: str,
    precision: str,
    batch_size: int,
    max_pixels: int,
    quiet: bool,
) -> int:
    """Embed the images in DIR (searched recursively).

    Run the command again to continue after an interruption, or to add new and changed images; all others are not
    embedded again. The images stay where they are. Unreadable images are skipped, and the exit code is then 1.
    """
    from tcl_core.archive.base import load_base
    from tcl_core.archive.building import build_archive, check_archive_folder
    from tcl_core.jobs.inputs import find_images
    from tcl_core.jobs.progress import Progress

    folder = _beside(inputs[0]) if out is None else out
    check_archive_folder(folder)
    images = find_images(inputs, exclude=[folder])
    if images.left_out and not quiet:
        click.echo(images.left_out_message(), err=True)
    base = load_base(model, device, precision)
    progress = Progress(len(images), quiet=quiet)

    def report(name: str, reason: str | None) -> None:
        if reason is None:
            progress.advance()
        else:
            progress.skip(reason)

    try:
        summary = build_archive(base, images, folder, batch_size=batch_size, max_pixels=max_pixels, on_image=report)
    finally:
        progress.close()
    click.echo(f"{folder}: {summary.total:,} images, {summary.added:,} of them new")
    if summary.failed:
        click.echo(f"skipped: {len(summary.failed):,} of {len(images):,} images", err=True)
    for reason in list(summary.failed.values())[:20] if quiet else ():
        click.echo(f"  {reason}", err=True)
    return EXIT_ISSUES if summary.failed else EXIT_FINE


def _beside(first: str) -> Path:
    """The folder of an archive whose place nobody says.

    Raises:
        SettingsError: nothing lies beside the first folder of images.
    """
    path = Path(first)
    if path.name in ("", ".."):
        path = Path(os.path.abspath(first))
    if not path.name:
        raise SettingsError(f"{first}: has no folder beside it for the archive; pass --out DIR")
    return path.with_name(f"{path.name}-archive")


@command.command(
    "fit",
    epilog="""\b
Examples:
  tcl-annotate archive fit photos-archive --labels labels.yaml --out references.safetensors --page retrieved
  tcl-annotate archive fit photos-archive --labels labels.yaml --out references.safetensors --without struck-out.json \\
      --overwrite""",
)
@click.argument("folder", type=INPUT_PATH, metavar="ARCHIVE")
@click.option("--labels", "labels_file", type=INPUT_PATH, metavar="FILE", help="Label file (YAML).")
@click.option(
    "--label",
    "label_options",
    multiple=True,
    metavar="NAME[=PROMPT,...]",
    help="A label and its prompts; repeatable. Each prompt gets a reference.",
)
@click.option(
    "--templates", metavar="NAME", help="Template set for the prompts. Default: from the label file or model."
)
@click.option("--out", type=OUTPUT_PATH, required=True, metavar="FILE", help="References file to write (.safetensors).")
@click.option("--page", type=OUTPUT_PATH, metavar="DIR", help="Folder for a page of the images that were retrieved.")
@click.option(
    "--without", type=INPUT_PATH, metavar="FILE", help="Images that are struck out, as the page saves them (JSON)."
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    metavar="N",
    help="Images retrieved per prompt. Default: a tenth of the archive, from 5 to 50.",
)
@click.option(
    "--contexts",
    default="tree,sky,building,road,person",
    show_default=True,
    metavar="NAME,NAME",
    help="Words whose pixels are left out, unless they are prompts; none for no words.",
)
@click.option(
    "--encoder",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="What finds correspondences between images: clip, dino, deit, or ARCHITECTURE=FILE for a vision transformer "
    "of timm. auto: DINO if its weights were fetched, else clip.",
)
@click.option(
    "--side",
    type=click.IntRange(min=16),
    metavar="PIXELS",
    help="Side to which images are resized. Default: the model's.",
)
@click.option(
    "--upstream-slice", is_flag=True, help="Compare images as the authors' program does, by a slip of an index."
)
@device_option
@precision_option
@click.option("--overwrite", is_flag=True, help="Replace the file of --out and the page if they exist.")
@click.option("--quiet", is_flag=True, help="Print only the summary.")
def fit_command(
    folder: Path,
    labels_file: Path | None,
    label_options: tuple[str, ...],
    templates: str | None,
    out: Path,
    page: Path | None,
    without: Path | None,
    images: int | None,
    contexts: str,
    encoder: str,
    side: int | None,
    upstream_slice: bool,
    device: str,
    precision: str,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Find a reference for each prompt in ARCHIVE and write a small model file that any command can use.

    The file holds one vector per prompt and refers to the model that built the archive; it can be shared without the
    images. Words that the archive does not seem to show are reported.
    """
    vocabulary = make_vocabulary(labels_file, label_options, None, None, None, templates)
    if out.suffix != ".safetensors":
        raise SettingsError(f"--out {out}: a references file's name must end in .safetensors")
    check_outputs({"--out": out}, [labels_file, without], overwrite)

    from tqdm import tqdm

    from tcl_core.archive.base import load_base
    from tcl_core.archive.page import check_page_folder, write_page
    from tcl_core.archive.references import find_references, read_struck, write_references
    from tcl_core.archive.store import ArchiveFolder

    if page is not None:
        check_page_folder(page, overwrite)
    struck = {} if without is None else read_struck(without)
    archive = ArchiveFolder(folder)
    base = load_base(archive.about.model, device, precision, encoder)
    names = () if contexts.strip() == "none" else tuple(name.strip() for name in contexts.split(",") if name.strip())
    with tqdm(total=0, unit="word", desc="finding references", disable=quiet or None, mininterval=1) as bar:

        def report(name: str, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = find_references(
            base,
            archive,
            vocabulary,
            images=images,
            contexts=names,
            side=side,
            without=struck,
            upstream_slice=upstream_slice,
            on_progress=report,
        )
        bar.update((bar.total or 0) - bar.n)
    write_references(out, base, found)
    if not quiet:
        click.echo(_table(found.fitting.words))
    settings = found.settings
    click.echo(
        f"{out}: {len(found.fitting.names):,} references from {settings['archive_images']:,} images, correspondences "
        f"by {settings['correspondences']} (ReCo-style)"
    )
    if archive.passed_over:
        number, first = len(archive.passed_over), next(iter(archive.passed_over.values()))
        click.echo(
            f"warning: {folder}: {number:,} image{'s' * (number != 1)} of the archive cannot be read any more and "
            f"{'were' if number != 1 else 'was'} passed over ({first})",
            err=True,
        )
    for name, reason in found.doubtful.items():
        click.echo(f"warning: {name}: {reason}", err=True)
    if page is not None:
        click.echo(f"page: {write_page(page, archive, found, struck)}")
    return EXIT_FINE


def _table(words: object) -> str:
    from tcl_core.methods.reco import WordFit

    rows = [("word", "images", "first", "last")]
    for word in words:  # type: ignore[attr-defined]
        assert isinstance(word, WordFit)
        name = f"{word.name} (context)" if word.context else word.name
        rows.append((name, str(len(word.images)), f"{word.images[0].similarity:.3f}", f"{word.last_similarity:.3f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"  {row[0]:<{widths[0]}}  " + "  ".join(f"{row[column]:>{widths[column]}}" for column in range(1, 4))
        for row in rows
    )
