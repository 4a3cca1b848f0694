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
@click.option("--images", type=click.Path(path_type=Path), help="Image folder of COCO captions.")
@click.option("--image-column", help="Column of a table with the image files.  [default: image, or one like it]")
@click.option("--caption-column", help="Column of a table with the captions.  [default: caption, or one like it]")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints, logs and the model."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Processes that decode images, for each process that trains.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Split each process' batch into this many parts: less memory, more time, the same gradients.",
)
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@click.option(
    "--keep-activations",
    is_flag=True,
    help="Keep CLIP's activations of masked images for the backward pass: more memory, less time, the same gradients.",
)
@click.option(
    "--log",
    "loggers",
    multiple=True,
    type=click.Choice(sorted(LOGGERS)),
    help="Also log here; JSON lines are always written. May be given several times.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the recipe, such as phases.0.batch=64. May be given several times.",
)
@click.option("--accept-changes", is_flag=True, help="Resume even though settings or data have changed.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="Folder of the recipe's evaluation data sets.")
@click.option(
    "--index", type=click.Path(path_type=Path), help="Folder for the indexes of shards.  [default: below the cache]"
)
@click.option(
    "--min-side",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Leave out images of shards with a shorter side.",
)
@click.option(
    "--max-aspect",
    type=click.FloatRange(1),
    default=20.0,
    show_default=True,
    help="Leave out images of shards whose longer side is more than this many times the shorter.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be trained, the time and the memory; write nothing.")
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
    keep_activations: bool,
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
    from training.failures import in_words
    from training.preparation import changed, open_data, process_device
    from training.preparation import dry_run as try_steps

    chosen = process_device(device)
    settings = changed(read_recipe(recipe), changes)
    with process_group(chosen), in_words():
        if chosen.type == "cuda":
            torch.set_float32_matmul_precision("high")
        source = open_data(places, images, image_column, caption_column, index, Filters(min_side, max_aspect), workers)
        if process_rank() == 0:
            for line in source.report.lines():
                click.echo(line, err=True)
        options = Options(
            out, chosen, workers, accumulate, compiled, keep_activations, loggers, accept_changes, eval_data
        )
        if dry_run:
            try_steps(settings, source, options)
            return 0
        try:
            with Interruption().listening() as interruption:
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
        names = list_recipes()
        width = max(map(len, names))
        for name in names:
            click.echo(f"{name:<{width}}  {read_recipe(name).description}")
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
