"""What ``tcl-annotate train`` does once its options are read."""

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
from training.config import Recipe, TrainPhase
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import Order
from training.data.shards import Filters, ShardSource
from training.data.source import JoinedSource, Source
from training.data.tables import coco_captions, table
from training.distributed import process_rank, wait_for_first, world_size
from training.engine import Options, to_device
from training.model import build
from training.step import Stepper

__all__ = ["changed", "dry_run", "open_data", "process_device"]

_DRY_STEPS = 3


def process_device(name: str) -> torch.device:
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
                f"--set {change}: is not KEY=VALUE with a setting of the recipe, such as phases.0.batch=64"
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
                    raise SettingsError(
                        f"{place}: contains no tar files; pass a folder of shards, a tar file or a table"
                    )
                shards += found
            elif ending == ".tar":
                shards.append(place)
            elif ending in (".csv", ".tsv"):
                sources.append(table(place, image_column, caption_column))
            elif ending == ".json":
                if images is None:
                    raise SettingsError(f"{place}: COCO captions require --images DIR, the folder of their images")
                sources.append(coco_captions(place, images))
            else:
                raise SettingsError(
                    f"{place}: is not training data; pass a folder of tar files, or a .tar, .csv, .tsv or .json file"
                )
        if shards:
            sources.insert(0, ShardSource(shards, filters, index, max(1, workers)))
        return sources[0] if len(sources) == 1 else JoinedSource(sources)

    # The first process makes indexes, the others read them.
    return wait_for_first(opened)


def dry_run(recipe: Recipe, source: Source, options: Options) -> None:
    """Take a few steps of each stage with real batches, and throw them away."""
    say = click.echo if process_rank() == 0 else (lambda text: None)
    phases = [phase for phase in recipe.phases if isinstance(phase, TrainPhase)]
    if not phases:
        raise SettingsError(f"the recipe {recipe.name} has no training phase; add one of kind train")
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
            f"{'process' if world_size() == 1 else 'processes'}, {phase.batch // parts} pairs per forward pass; "
            f"{phase.precision}"
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
                f"  {stage.stage}: {stage.steps:,} steps, {count:,} parameters, {min(seconds):.2f} s per step, "
                f"{batches.waited / (batches.waited + sum(seconds)):.0%} of the time waiting for data, "
                f"peak memory {_peak(options.device):.1f} GiB"
            )
            first += stage.steps
    say(f"estimated total: {total / 3600:.1f} hours, without evaluations")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
