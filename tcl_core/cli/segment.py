"""``tcl-annotate segment``: one image, and what is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcl_core.cli.explain import choose_names, explain_names, explain_option, explain_shares
from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import (
    bit_depth_option,
    make_segmenter,
    make_vocabulary,
    max_pixels_option,
    min_area_option,
    model_options,
    vocabulary_options,
)
from tcl_core.cli.places import INPUT_PATH, OUTPUT_PATH, check_outputs
from tcl_core.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.types import Region, Segmentation

__all__ = ["command"]


@click.command(
    "segment",
    short_help="Segment one image and print a summary.",
    epilog="""\b
Examples:
  tcl-annotate segment room.jpg --label "Sofa=sofa,couch" --label Lamp
  tcl-annotate segment room.jpg --labels labels.yaml --out overlay.png --json room.json
  tcl-annotate segment room.jpg --label Lamp --explain""",
)
@click.argument("path", metavar="IMAGE", type=INPUT_PATH)
@vocabulary_options
@model_options
@click.option("--out", type=OUTPUT_PATH, metavar="FILE", help="Write the image with its masks and a legend.")
@click.option("--json", "json_file", type=OUTPUT_PATH, metavar="FILE", help="Write the regions as a COCO file.")
@click.option(
    "--groups",
    "groups_file",
    type=OUTPUT_PATH,
    metavar="FILE",
    help="Write the image with the groups that the model makes before it sees a label (GroupViT).",
)
@explain_option
@min_area_option
@click.option("--overwrite", is_flag=True, help="Replace the files of --out and --json if they exist.")
@max_pixels_option("Reject images with more pixels.")
@bit_depth_option
def command(
    path: Path,
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
    out: Path | None,
    json_file: Path | None,
    groups_file: Path | None,
    explain: bool,
    min_area: Any,
    overwrite: bool,
    max_pixels: int,
    bit_depth: int | None,
) -> int:
    """Segment IMAGE and print the number of regions, the share of the image and the mean score of each label."""
    vocabulary = make_vocabulary(
        labels_file, label_options, background, background_threshold, background_names, templates
    )
    _check_ending("--out", out)
    _check_ending("--groups", groups_file)
    outputs = {"--out": out, "--json": json_file, "--groups": groups_file}
    check_outputs(outputs, [path, labels_file, model], overwrite)

    from tcl_core.images import load_image
    from tcl_core.regions import label_map_to_regions

    image = load_image(path, max_pixels=max_pixels, bit_depth=bit_depth, on_warning=_warn)
    segmenter = make_segmenter(model, refine, option_values, device, precision, batch_size, backend)
    if groups_file is not None:
        _draw_groups(segmenter, image, groups_file)
    # Wrong words are found in a moment, the image takes seconds.
    choice = choose_names(segmenter, vocabulary)
    segmentation, unlabeled = segmenter.explain(segmenter.encode(image), vocabulary)
    least = segmenter.speck_area(segmentation.size) if min_area == "auto" else min_area
    regions = label_map_to_regions(segmentation, min_area=least, small="merge")
    click.echo(f"{path}: {image.shape[1]} x {image.shape[0]} pixels, model {segmenter.model.name}")
    click.echo(_table(segmentation, regions))
    if explain:
        click.echo(explain_names(choice))
        click.echo(explain_shares(unlabeled))
    if json_file is not None:
        from tcl_core.export.coco import ImageResult, coco_file_name, regions_to_annotations, write_coco_file

        annotations = regions_to_annotations(regions, segmentation.size)
        result = ImageResult(coco_file_name(path.name), *segmentation.size, annotations)
        write_coco_file(json_file, [result], vocabulary, segmenter.settings(), overwrite=True)
        click.echo(f"regions: {json_file}")
    if out is not None:
        from tcl_core.preview.drawing import draw_overlay
        from tcl_core.specks import absorb_small

        try:
            merged = replace(segmentation, label_map=absorb_small(segmentation.label_map, least))
            draw_overlay(image, merged).save(out)
        except OSError as error:
            raise SettingsError(f"--out {out}: cannot be written ({error.strerror or error})") from error
        click.echo(f"overlay: {out}")
    return EXIT_FINE


def _warn(message: str) -> None:
    click.echo(f"warning: {message}", err=True)


def _check_ending(option: str, out: Path | None) -> None:
    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise SettingsError(f"{option} {out}: the overlay is an image; use the extension .png, .jpg or .webp")


def _draw_groups(segmenter: Segmenter, image: NDArray[np.uint8], path: Path) -> None:
    from tcl_core.preview.drawing import draw_overlay
    from tcl_core.segmentation.groups import image_groups, named_groups
    from tcl_core.types import Segmentation
    from tcl_core.vocabulary import Label, Vocabulary

    groups = image_groups(segmenter, image)
    vocabulary = Vocabulary(tuple(Label(name) for name in named_groups(groups).names))
    try:
        draw_overlay(image, Segmentation(groups, groups.astype("float32"), vocabulary)).save(path)
    except OSError as error:
        raise SettingsError(f"--groups {path}: cannot be written ({error.strerror or error})") from error
    click.echo(f"groups: {path}")


def _table(segmentation: Segmentation, regions: list[Region]) -> str:
    from tcl_core.api.summary import label_shares

    shares = label_shares(segmentation.vocabulary, regions, segmentation.label_map.size)
    rows = [
        (entry.name, str(entry.regions), f"{entry.share:.1%}", "-" if entry.score is None else f"{entry.score:.2f}")
        for entry in shares
    ]
    pixels = segmentation.label_map.size
    free = pixels - sum(region.area for region in regions)
    rows.append(("(background)", "", f"{free / pixels:.1%}", ""))
    heads = ("label", "regions", "share", "score")
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(4)]
    lines = [
        f"  {row[0]:<{widths[0]}}  " + "  ".join(f"{row[column]:>{widths[column]}}" for column in range(1, 4))
        for row in [heads, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
