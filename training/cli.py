"""The command ``tcl-annotate train``, which is ``python -m training`` too."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import click
import torch
import yaml
from torch import nn

from tcl_core.devices import select_device
from tcl_core.errors import SettingsError
from tcl_core.validation import validated
from training.config import Recipe, TrainPhase, list_recipes, read_recipe
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import Order
from training.data.shards import Filters, ShardSource
from training.data.source import JoinedSource, Source
from training.data.tables import coco_captions, table
from training.distributed import process_group, process_rank, wait_for_first, world_size
from training.engine import Interruption, Options, StoppedError, run_recipe, to_device
from training.log import LOGGERS
from training.model import build
from training.step import Stepper

__all__ = ["changed", "command", "open_data"]

_DRY_STEPS = 3


@click.command()
@click.argument("recipe")
@click.option(
    "--data",
    "places",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of tar shards, a tar file, a table (.csv, .tsv) or COCO captions (.json); may be given several times.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images of COCO captions.")
@click.option("--image-column", help="Column of a table that names the image file.")
@click.option("--caption-column", help="Column of a table with the caption.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder of checkpoints, logs and the model."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--workers", type=click.IntRange(0), default=4, show_default=True, help="Processes that decode images.")
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Parts in which each process works through its batch: less memory, a forward pass more.",
)
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@click.option("--log", "loggers", multiple=True, type=click.Choice(sorted(LOGGERS)), help="Beside the JSON lines.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting, as phases.0.batch=64.")
@click.option("--accept-changes", is_flag=True, help="Go on from a checkpoint of other settings or other data.")
@click.option("--index", type=click.Path(path_type=Path), help="Folder where indexes of shards are kept.")
@click.option("--min-side", type=click.IntRange(1), default=16, show_default=True, help="Shortest side of an image.")
@click.option(
    "--max-aspect", type=click.FloatRange(1), default=20.0, show_default=True, help="Longest side by shortest."
)
@click.option("--dry-run", is_flag=True, help="Say what would be trained, how long and with how much memory.")
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
    index: Path | None,
    min_side: int,
    max_aspect: float,
    dry_run: bool,
) -> int:
    r"""Train a model on images and captions.

    RECIPE is a YAML file, or one that comes with the package. An interrupted run goes on when the same command is run
    again.

    \b
    tcl-annotate train tcl-one-gpu --data pairs.csv --out runs/mine
    torchrun --nproc-per-node 8 --no-python tcl-annotate train tcl-cc3m-cc12m --data shards --out runs/paper
    """
    chosen = _device(device)
    settings = changed(read_recipe(recipe), changes)
    with process_group(chosen), Interruption().listening() as interruption:
        if chosen.type == "cuda":
            torch.set_float32_matmul_precision("high")
        source = open_data(places, images, image_column, caption_column, index, Filters(min_side, max_aspect), workers)
        if process_rank() == 0:
            for line in source.report.lines():
                click.echo(line, err=True)
        options = Options(out, chosen, workers, accumulate, compiled, loggers, accept_changes)
        if dry_run:
            _dry_run(settings, source, options)
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


def _device(name: str) -> torch.device:
    """The device of this process among those of its machine."""
    local = os.environ.get("LOCAL_RANK")
    if local is not None and name in ("auto", "cuda") and torch.cuda.is_available():
        device = select_device(f"cuda:{local}")
        torch.cuda.set_device(device)
        return device
    return select_device(name)


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """A recipe with other values.

    Args:
        recipe: what is changed.
        changes: ``KEY=VALUE`` each, with dots in the key and a YAML value.

    Raises:
        SettingsError: a key is not there, or a value is not valid.
    """
    content = recipe.model_dump(mode="json")
    for change in changes:
        key, equals, value = change.partition("=")
        place: Any = content
        *parents, last = key.split(".")
        try:
            for name in parents:
                place = place[int(name)] if isinstance(place, list) else place[name]
            number = int(last) if isinstance(place, list) else last
            # Settings of a method are checked by the method.
            if not equals or (place is not content["model"]["config"] and number not in _keys(place)):
                raise KeyError(last)
            place[number] = yaml.safe_load(value)
        except (KeyError, IndexError, ValueError, TypeError, yaml.YAMLError):
            raise SettingsError(
                f"--set {change}: is not KEY=VALUE with a setting of the recipe, such as phases.0.batch=64."
            ) from None
    return validated(Recipe, content, "--set", SettingsError)


def _keys(place: Any) -> Any:
    return range(len(place)) if isinstance(place, list) else place


def open_data(
    places: Sequence[Path],
    images: Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    index: Path | None = None,
    filters: Filters | None = None,
    workers: int = 1,
) -> Source:
    """Open all data that was named, as one source.

    Args:
        places: folders of tar files, tar files, tables or COCO captions.
        images: folder of the images of COCO captions.
        image_column: of tables.
        caption_column: of tables.
        index: folder where indexes of shards are kept.
        filters: images of shards that are left out.
        workers: processes that index.

    Raises:
        SettingsError: something cannot be read, or is no data.
    """

    def opened() -> Source:
        shards: list[Path] = []
        sources: list[Source] = []
        for place in places:
            ending = place.suffix.lower()
            if place.is_dir():
                found = sorted(place.glob("*.tar"))
                if not found:
                    raise SettingsError(f"{place}: has no tar files; name a folder of shards, a table or a tar file.")
                shards += found
            elif ending == ".tar":
                shards.append(place)
            elif ending in (".csv", ".tsv"):
                sources.append(table(place, image_column, caption_column))
            elif ending == ".json":
                if images is None:
                    raise SettingsError(
                        f"{place}: COCO captions need the folder of their images; name it with --images."
                    )
                sources.append(coco_captions(place, images))
            else:
                raise SettingsError(f"{place}: is no data; name a folder of tar files, or a .tar, .csv, .tsv or .json.")
        if shards:
            sources.insert(0, ShardSource(shards, filters, index, max(1, workers)))
        return sources[0] if len(sources) == 1 else JoinedSource(sources)

    # The first process makes indexes, the others read them.
    return wait_for_first(opened)


def _dry_run(recipe: Recipe, source: Source, options: Options) -> None:
    """Take a few steps of each stage with real batches, and throw them away."""
    say = click.echo if process_rank() == 0 else (lambda text: None)
    phases = [phase for phase in recipe.phases if isinstance(phase, TrainPhase)]
    if not phases:
        raise SettingsError(f"The recipe {recipe.name} has no phase that trains; give it one of kind train.")
    trained = build(recipe, phases[-1].augmentation)
    cast(nn.Module, trained.method).to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if options.compile:
        trained.trainable.compile_training()
    total = 0.0
    for phase in phases:
        order = Order(source.groups, phase.batch, recipe.seed)
        dataset = PairDataset(source, order, Transform(phase.augmentation), trained.trainable, recipe.seed)
        epochs, parts = phase.steps / order.steps_per_epoch, world_size() * options.accumulate
        say(
            f"{phase.name}: {phase.steps:,} steps of {phase.batch} pairs ({epochs:.1f} epochs); {world_size()} "
            f"processes, {options.accumulate} parts, {phase.batch // parts} pairs at a time; {phase.precision}"
        )
        first = 0
        for stage in phase.stages:
            stepper = Stepper(trained.trainable, phase, options.device, options.accumulate, recipe.seed)
            stop = first + _DRY_STEPS
            batches = Batches(
                dataset, trained.trainable, phase.batch, process_rank(), world_size(), first, stop, options.workers
            )
            seconds: list[float] = []
            for number, batch in enumerate(batches):
                began = time.perf_counter()
                stepper.step(first + number, to_device(batch, options.device))
                seconds.append(time.perf_counter() - began)
            count = sum(p.numel() for p in trained.trainable.trainable(stage.stage))
            total += stage.steps * min(seconds)
            say(
                f"  {stage.stage}: {stage.steps:,} steps, {count:,} parameters, {min(seconds):.2f} s a step, waiting "
                f"for data {batches.waited / (batches.waited + sum(seconds)):.0%} of the first steps, "
                f"peak memory {_peak(options.device):.1f} GiB"
            )
            first += stage.steps
    say(f"about {total / 3600:.1f} hours in all, evaluations left out")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def _recipes(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        for name in list_recipes():
            click.echo(f"{name:<20} {read_recipe(name).description}")
        ctx.exit()


command.params.append(
    click.Option(
        ["--recipes"], is_flag=True, is_eager=True, expose_value=False, callback=_recipes, help="List the recipes."
    )
)
