"""``tcl-annotate benchmark``: figures measured on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import DEFAULT_MODEL, batch_size_option, device_option, precision_option
from tcl_core.cli.places import OUTPUT_PATH, check_file
from tcl_core.errors import SettingsError

__all__ = ["command"]


@click.group(
    "benchmark",
    short_help="Measure polygons and speed on this machine.",
    epilog="\b\nExamples:\n  tcl-annotate benchmark polygons\n  tcl-annotate benchmark segment\n"
    "  tcl-annotate benchmark large-images",
)
def command() -> None:
    """Measure polygons and speed on this machine."""


@command.command(
    "polygons",
    epilog="""\b
Examples:
  tcl-annotate benchmark polygons
  tcl-annotate benchmark polygons --maps 40 --tolerance fine --image polygons.png
  tcl-annotate benchmark polygons --against 56cd0a1""",
)
@click.option(
    "--maps", type=click.IntRange(min=1), default=200, show_default=True, metavar="N", help="Number of label maps."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed; the same seed gives the same maps.",
)
@click.option(
    "--tolerance",
    default="default",
    show_default=True,
    metavar="D",
    help="Tolerance of the polygons, as for 'tcl-annotate prelabel'.",
)
@click.option(
    "--image", type=OUTPUT_PATH, metavar="FILE", help="Also draw some of the maps with their polygons to FILE."
)
@click.option(
    "--part",
    "parts",
    type=click.Choice(["quality", "speed", "curve"]),
    multiple=True,
    help="Measure only this part; repeatable.  [default: all three]",
)
@click.option(
    "--against",
    metavar="REVISION",
    help="Also time another revision; needs a checkout of the project, and takes many minutes for an old revision.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def polygons_command(
    maps: int,
    seed: int,
    tolerance: str,
    image: Path | None,
    parts: tuple[str, ...],
    against: str | None,
    quiet: bool,
) -> int:
    """Measure the accuracy, vertex count and speed of polygons.

    There are three parts: the quality of polygons on label maps of many kinds, the speed of regions and polygons, and
    vertices and IoU over the tolerance. The exit code is 1 if a target is missed.
    """
    from tcl_core.benchmarks import polygon_speed, polygons

    parts = parts or ("quality", "speed", "curve")
    missed = False
    if "quality" in parts:
        figures = polygons.run(maps, seed, tolerance, progress=not quiet)
        click.echo(polygons.format_table(figures))
        missed = not figures.passed
    if image is not None:
        try:
            polygons.image(image, min(maps, 6), seed, tolerance)
        except (OSError, ValueError) as error:
            raise SettingsError(f"--image {image}: cannot be written ({error})") from error
        click.echo(f"image: {image}")
    if "speed" in parts:
        speed = polygon_speed.run_speed(seed, against, progress=not quiet)
        click.echo(polygon_speed.format_speed(speed, against))
        missed |= not all(row.met for row in speed)
    if "curve" in parts:
        curve = polygon_speed.run_curve(seed=seed, progress=not quiet)
        click.echo(polygon_speed.format_curve(curve))
        missed |= not all(row.met for row in curve)
    return int(missed)


@command.command(
    "segment",
    epilog="""\b
Examples:
  tcl-annotate benchmark segment
  tcl-annotate benchmark segment --model tcl-vit-b16 --device cuda --images 32 --batch-size 16
  tcl-annotate benchmark segment --model tcl-vit-b16 --backend torch --backend openvino --json speed.json""",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="Name or path of a model.")
@device_option
@precision_option
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=["auto"],
    show_default=True,
    metavar="NAME",
    help="What runs the network: auto, torch, compile or openvino; repeatable. The first is measured in full, and the "
    "others are compared with it.",
)
@click.option(
    "--images", type=click.IntRange(min=1), default=8, show_default=True, metavar="N", help="Number of images."
)
@click.option(
    "--size",
    type=(click.IntRange(min=1), click.IntRange(min=1)),
    default=(640, 480),
    show_default=True,
    metavar="WIDTH HEIGHT",
    help="Size of the images in pixels.",
)
@batch_size_option("Windows per batch.")
@click.option("--refine/--no-refine", default=True, help="Refine masks along image edges (PAMR).")
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of repeats; the shortest time counts.",
)
@click.option(
    "--json",
    "json_path",
    type=OUTPUT_PATH,
    metavar="FILE",
    help="Also write the figures to FILE, with the machine, the library versions and the commit.",
)
def segment_command(
    model: str,
    device: str,
    precision: str,
    backends: tuple[str, ...],
    images: int,
    size: tuple[int, int],
    batch_size: int,
    refine: bool,
    repeats: int,
    json_path: Path | None,
) -> int:
    """Measure the time per stage, and the speedup from encoding an image once, from batches, and from a backend."""
    if json_path is not None:
        check_file("--json", json_path)

    from tcl_core.benchmarks.machine import describe_machine, loaded_distributions, revision
    from tcl_core.benchmarks.segment import format_rows, format_stages, run, run_backends, run_stages
    from tcl_core.devices import precision_name
    from tcl_core.models import load_model

    models = {name: load_model(model, device=device, precision=precision, backend=name) for name in backends}
    loaded = models[backends[0]]
    if len({each.backend.name for each in models.values()}) < len(models):
        raise SettingsError(f"--backend {', '.join(models)}: two of them are the same for {model}; leave one out")
    rows = run(loaded, count=images, size=size[::-1], batch_size=batch_size, refine=refine, repeats=repeats)
    click.echo(
        f"model {loaded.name} on {loaded.device} with {loaded.backend.name}, {images} images of {size[0]} x {size[1]}"
    )
    click.echo(format_rows(rows))
    stages = run_stages(loaded, size=size[::-1], batch_size=batch_size, refine=refine, repeats=repeats)
    click.echo(f"\none new image, by stage\n{format_stages(stages)}")
    compared = (
        run_backends(list(models.values()), size=size[::-1], batch_size=batch_size, repeats=repeats)
        if len(models) > 1
        else []
    )
    if compared:
        click.echo(f"\none new image, by backend\n{format_rows(compared)}")
    if json_path is not None:
        record = {
            "commit": revision(),
            "machine": describe_machine(loaded.device),
            "versions": loaded_distributions(),
            "model": loaded.name,
            "weights_sha256": loaded.weights_sha256,
            "precision": precision_name(loaded.precision),
            "backend": loaded.backend.name,
            "images": images,
            "size": list(size),
            "batch_size": batch_size,
            "refine": refine,
            "repeats": repeats,
            "rows": [asdict(row) for row in rows],
            "stages": [asdict(row) for row in stages],
            "backends": [asdict(row) for row in compared],
        }
        try:
            json_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--json {json_path}: cannot be written ({error.strerror})") from error
    return EXIT_FINE


@command.command(
    "large-images",
    epilog="""\b
Examples:
  tcl-annotate benchmark large-images
  tcl-annotate benchmark large-images --megapixels 12 --megapixels 48 --model tcl-vit-b16""",
)
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME", help="Name or path of a model.")
@click.option(
    "--megapixels",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=[12.0, 50.0, 100.0, 200.0],
    show_default=True,
    metavar="N",
    help="Size of an image in millions of pixels; repeatable.",
)
@click.option("--quiet", is_flag=True, help="Show no progress.")
def large_images_command(model: str, megapixels: tuple[float, ...], quiet: bool) -> int:
    """Measure the memory and time of prelabel on images of several sizes, on the CPU.

    The peak is the highest resident memory of a prelabel process; times are seconds of processor time per stage. The
    ratio compares the time per megapixel with that of the first size: near 1 or below, time is linear.
    """
    from tcl_core.benchmarks.large_images import format_sizes, run_sizes

    progress = None if quiet else lambda what: click.echo(f"measuring {what}", err=True)
    click.echo(format_sizes(run_sizes(model, megapixels, progress=progress)))
    return EXIT_FINE
