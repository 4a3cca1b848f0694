"""``tcl-annotate models quantize``: int8, behind a measurement on the user's images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcl_core.cli.main import EXIT_FINE, EXIT_ISSUES
from tcl_core.cli.options import make_vocabulary, method_option, vocabulary_options
from tcl_core.cli.places import OUTPUT_PATH
from tcl_core.errors import SettingsError

if TYPE_CHECKING:
    from tcl_core.evaluation.quantization import Quantization

__all__ = ["command"]


@click.command(
    "quantize",
    short_help="Quantize a model to int8 if it gives the same labels on your images.",
    epilog="""\b
Examples:
  tcl-annotate models quantize tcl-vit-b16 photos --labels labels.yaml --preview quantized
  tcl-annotate models quantize tcl-vit-b16 "photos/*.jpg" --label "Sofa=sofa,couch" --label Lamp --agreement 0.99""",
)
@click.argument("model", metavar="MODEL")
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE...")
@vocabulary_options
@method_option(
    "Option of the model's method; repeatable. Options that affect features need a measurement of their own."
)
@click.option(
    "--agreement",
    type=click.FloatRange(0, 1),
    default=0.98,
    show_default=True,
    metavar="SHARE",
    help="Least share of pixels that must have the label of float32; below it nothing is kept.",
)
@click.option("--preview", type=OUTPUT_PATH, metavar="DIR", help="Write a page with float32 and int8 side by side.")
@click.option("--overwrite", is_flag=True, help="Replace the page if it exists.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(
    model: str,
    inputs: tuple[str, ...],
    labels_file: Path | None,
    label_options: tuple[str, ...],
    background: bool | None,
    background_threshold: float | None,
    background_names: str | None,
    templates: str | None,
    option_values: Mapping[str, str],
    agreement: float,
    preview: Path | None,
    overwrite: bool,
    quiet: bool,
) -> int:
    """Quantize MODEL to int8 for OpenVINO on the CPU, and allow --precision int8 if it labels like float32.

    IMAGE is an image, a folder (searched recursively) or a pattern such as 'photos/*.jpg'; give about 100 images of the
    kind that you label. Up to half of them calibrate the network, and the others measure it: the share of pixels with
    the label of float32, the IoU per label, and the processor time of both. Parts of the images are kept beside the
    exported networks, see docs/speed.md. Unreadable images are skipped, and the exit code is then 1.
    """
    vocabulary = make_vocabulary(
        labels_file, label_options, background, background_threshold, background_names, templates
    )

    from tcl_core.devices import select_precision
    from tcl_core.evaluation.quantization import quantize
    from tcl_core.jobs.inputs import find_images
    from tcl_core.models import load_model
    from tcl_core.models.paths import networks_folder
    from tcl_core.models.registry import check_options

    # Whether it is installed, before anything is read.
    select_precision("int8", "cpu")
    images = find_images(inputs, exclude=[path for path in (preview, labels_file) if path is not None])
    if images.left_out:
        click.echo(images.left_out_message(), err=True)
    if option_values:
        check_options(model, option_values)
    found = quantize(
        load_model(model, device="cpu", precision="float32", backend="openvino"),
        images,
        vocabulary,
        networks_folder(),
        options=option_values,
        agreement=agreement,
        preview=preview,
        overwrite=overwrite,
        quiet=quiet,
    )
    windows = found.calibration.windows
    click.echo(f"{model}: measured on {found.measured} images, calibrated on {found.calibrated} others")
    click.echo(_table(found, [label.name for label in vocabulary.labels]))
    if found.page is not None:
        click.echo(f"page: {found.page}")
    if found.failed:
        click.echo(f"skipped: {len(found.failed):,} of {len(images):,} images", err=True)
    for name, reason in sorted(found.failed.items())[:20] if quiet else ():
        click.echo(f"  {name}: {reason}", err=True)
    if not found.kept:
        raise SettingsError(
            f"int8 gives the label of float32 on {_floored(found.agreement)} of the pixels, which is less than "
            f"--agreement {agreement:g}, so nothing is kept; use float32, or calibrate on more images"
        )
    click.echo(
        f"kept: {len(windows)} windows of your images ({found.calibration.nbytes / 1e6:.1f} MB) in {networks_folder()}"
    )
    click.echo("use it with: --backend openvino --precision int8")
    return EXIT_ISSUES if found.failed else EXIT_FINE


def _floored(share: float) -> str:
    """A share in per cent that is not rounded up to a bar that it misses."""
    return f"{math.floor(share * 1e4) / 100:.2f} %"


def _table(found: Quantization, names: list[str]) -> str:
    rows = ["background", *names]
    width = max(len(name) for name in (*rows, "same label"))
    scores, total = found.scores, int(found.scores.labeled.sum())
    lines = [f"{'label':<{width}}  of the pixels  IoU with float32"]
    for place, name in enumerate(rows):
        iou = "not found" if math.isnan(scores.iou[place]) else f"{scores.iou[place]:.4f}"
        lines.append(f"{name:<{width}}  {scores.labeled[place] / total:>13.1%}  {iou:>16}")
    lines.append(f"{'mean':<{width}}  {'':>13}  {scores.mean_iou:>16.4f}")
    lines.append(f"same label: {_floored(found.agreement)} of the pixels")
    plain, int8 = (seconds / found.measured for seconds in found.seconds)
    lines.append(
        f"processor time of encoding an image: float32 {plain:.3f} s, int8 {int8:.3f} s ({plain / int8:.2f} times as "
        "fast)"
    )
    return "\n".join(lines)
