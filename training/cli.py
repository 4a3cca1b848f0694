"""The command ``tcl-annotate train``, which is ``python -m training`` too."""

from __future__ import annotations

from pathlib import Path

import click

from training.config import list_recipes, read_recipe
from training.log import LOGGERS

__all__ = ["command"]


@click.command(
    short_help="Train a model on images and captions.",
    epilog="""\b
Examples:
  tcl-annotate train tcl-one-gpu --data pairs.csv --out runs/mine
  torchrun --nproc-per-node 8 --no-python tcl-annotate train tcl-cc3m-cc12m --data shards --out runs/paper""",
)
@click.argument("recipe")
@click.option(
    "--data",
    "places",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of tar shards, a tar file, a table (.csv, .tsv) or COCO captions (.json); repeatable.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Image folder for COCO captions.")
@click.option("--image-column", metavar="NAME", help="Table column with the image file.")
@click.option("--caption-column", metavar="NAME", help="Table column with the caption.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints, logs and the model."
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--workers", type=click.IntRange(0), default=4, show_default=True, metavar="N", help="Processes that decode images."
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Split each process's batch into N parts: less memory, one more forward pass.",
    metavar="N",
)
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@click.option(
    "--log", "loggers", multiple=True, type=click.Choice(sorted(LOGGERS)), help="Also log to this service; repeatable."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a recipe setting, such as phases.0.batch=64; repeatable.",
)
@click.option("--accept-changes", is_flag=True, help="Resume from a checkpoint even if settings or data have changed.")
@click.option(
    "--eval-data", type=click.Path(path_type=Path), help="Folder with the benchmarks that a recipe evaluates on."
)
@click.option("--index", type=click.Path(path_type=Path), help="Folder for shard indexes. Default: the cache folder.")
@click.option(
    "--min-side",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    metavar="PIXELS",
    help="Skip images with a shorter side.",
)
@click.option(
    "--max-aspect",
    type=click.FloatRange(1),
    default=20.0,
    show_default=True,
    metavar="RATIO",
    help="Skip images that are more elongated.",
)
@click.option(
    "--dry-run", is_flag=True, help="Take a few steps, print the estimated time and memory, and write nothing."
)
def command(
    recipe: str,
    places: tuple[Path, ...],
    images: Path | None,
    image_column: str | None,
    caption_column: str | None,
    out: Path,
    device: str,
    workers: int,
    accumulate: int,
    compiled: bool,
    loggers: tuple[str, ...],
    changes: tuple[str, ...],
    accept_changes: bool,
    eval_data: Path | None,
    index: Path | None,
    min_side: int,
    max_aspect: float,
    dry_run: bool,
) -> int:
    """Train a model on images and captions.

    RECIPE is a YAML file or the name of a bundled recipe (see --recipes). To resume an interrupted run, run the same
    command again.
    """
    import torch

    from training.data.shards import Filters
    from training.distributed import process_group, process_rank
    from training.engine import Interruption, Options, StoppedError, run_recipe
    from training.preparation import changed, open_data, process_device
    from training.preparation import dry_run as try_steps

    chosen = process_device(device)
    settings = changed(read_recipe(recipe), changes)
    with process_group(chosen), Interruption().listening() as interruption:
        if chosen.type == "cuda":
            torch.set_float32_matmul_precision("high")
        source = open_data(places, images, image_column, caption_column, index, Filters(min_side, max_aspect), workers)
        if process_rank() == 0:
            for line in source.report.lines():
                click.echo(line, err=True)
        options = Options(out, chosen, workers, accumulate, compiled, loggers, accept_changes, eval_data)
        if dry_run:
            try_steps(settings, source, options)
            return 0
        try:
            file = run_recipe(settings, source, options, interruption)
        except StoppedError as error:
            if process_rank() == 0:
                click.echo(str(error), err=True)
            return 130
        if process_rank() == 0:
            click.echo(f"wrote {file}")
    return 0


def _recipes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        for name in list_recipes():
            click.echo(f"{name:<20} {read_recipe(name).description}")
        ctx.exit()


command.params.append(
    click.Option(
        ["--recipes"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_recipes,
        help="List the bundled recipes and exit.",
    )
)
