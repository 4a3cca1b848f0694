"""What ``tcl-annotate train`` does once its options are read."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from tqdm import tqdm

from tcl_core.devices import select_device
from tcl_core.errors import SettingsError
from tcl_core.validation import validated
from training.config import Recipe, TrainPhase, read_value
from training.data.augment import Transform
from training.data.loader import Batches, PairDataset
from training.data.order import Order
from training.data.shards import Filters, ShardSource
from training.data.source import JoinedSource, Source
from training.data.tables import coco_captions, table
from training.distributed import average_scalars, process_rank, wait_for_first, world_size
from training.engine import Options, built, check_batch, to_device
from training.evaluation import check_words, open_evaluations
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
            place[number] = read_value(value)
        except (KeyError, IndexError, ValueError, TypeError, yaml.YAMLError):
            near = difflib.get_close_matches(key, _all_keys(content), n=1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != key else ""
            raise SettingsError(
                f"--set {change}: is not KEY=VALUE with a setting of the recipe, such as phases.0.batch=64{hint or '.'}"
            ) from None
    return validated(Recipe, content, "--set", SettingsError)


def _keys(place: Any) -> Any:
    return range(len(place)) if isinstance(place, list) else place


def _all_keys(place: Any, prefix: str = "") -> list[str]:
    """Of everything in a recipe, with dots."""
    if not isinstance(place, dict | list):
        return []
    items = place.items() if isinstance(place, dict) else enumerate(place)
    return [name for key, part in items for name in (f"{prefix}{key}", *_all_keys(part, f"{prefix}{key}."))]


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
                    raise SettingsError(f"{place}: has no .tar files; give a folder of shards, a .tar file or a table.")
                shards += found
            elif ending == ".tar":
                shards.append(place)
            elif ending in (".csv", ".tsv"):
                sources.append(table(place, image_column, caption_column))
            elif ending == ".json":
                if images is None:
                    raise SettingsError(
                        f"{place}: COCO captions need the folder of their images; give it with --images."
                    )
                sources.append(coco_captions(place, images))
            else:
                raise SettingsError(
                    f"{place}: is not training data; give a folder of .tar shards, or a .tar, .csv, .tsv or .json file."
                )
        if shards:
            with tqdm(total=len(shards), desc="index", unit="shard", delay=2, disable=process_rank() > 0) as bar:
                source = ShardSource(shards, filters, index, max(1, workers), lambda done, _: bar.update(done - bar.n))
            sources.insert(0, source)
        return sources[0] if len(sources) == 1 else JoinedSource(sources)

    # The first process makes indexes, the others read them.
    return wait_for_first(opened)


def dry_run(recipe: Recipe, source: Source, options: Options) -> None:
    """Take a few steps of each stage with real batches, and throw them away.

    Whatever a real run would find wrong at its beginning is found here too.
    """
    say = click.echo if process_rank() == 0 else (lambda text: None)
    phases = [phase for phase in recipe.phases if isinstance(phase, TrainPhase)]
    if not phases:
        raise SettingsError(f"The recipe {recipe.name} has no phase that trains; give it one of kind train.")
    for phase in phases:
        check_batch(phase, options)
    trained = built(recipe, phases[-1], options)
    total = 0.0
    evaluations = {phase.name: open_evaluations(phase.evaluation, options.evaluation_data) for phase in phases}
    for phase in phases:
        check_words(trained, evaluations[phase.name], options.device)
        order = Order(source.groups, phase.batch, recipe.seed)
        dataset = PairDataset(source, order, Transform(phase.augmentation), trained.trainable, recipe.seed)
        epochs, processes, parts = phase.steps / order.steps_per_epoch, world_size(), options.accumulate
        say(
            f"{phase.name}: {phase.steps:,} steps of {phase.batch} pairs ({epochs:.1f} epochs); {processes} "
            f"process{'es' * (processes != 1)}, {parts} part{'s' * (parts != 1)}, {phase.batch // (processes * parts)} "
            f"pairs at a time; {phase.precision}"
        )
        if phase.evaluation is not None:
            for evaluated in evaluations[phase.name]:
                every = f"every {phase.evaluation.every:,} steps"
                say(f"  scored on {evaluated.images:,} images of {evaluated.name} {every}")
        first = 0
        for stage in phase.stages:
            stepper = Stepper(trained.trainable, phase, options.device, options.accumulate, recipe.seed)
            stop = first + min(_DRY_STEPS, stage.steps)
            batches = Batches(
                dataset, trained.trainable, phase.batch, process_rank(), world_size(), first, stop, options.workers
            )
            seconds: list[float] = []
            with closing(batches):
                for number, batch in enumerate(batches):
                    began = time.perf_counter()
                    stepper.step(first + number, to_device(batch, options.device))
                    seconds.append(time.perf_counter() - began)
            share = average_scalars({"replaced": float(batches.replaced)}, options.device)["replaced"]
            replaced = round(share * world_size())
            count = sum(p.numel() for p in trained.trainable.trainable(stage.stage))
            total += stage.steps * min(seconds)
            peak = _peak(options.device)
            say(
                f"  {stage.stage}: {stage.steps:,} steps, {count:,} parameters, {min(seconds):.2f} s per step, waiting "
                f"for data {batches.waited / (batches.waited + sum(seconds)):.0%} of the first steps, "
                f"peak memory {'unknown' if peak is None else f'{peak:.1f} GiB'}"
            )
            if replaced:
                say(
                    f"    {replaced:,} of {len(seconds) * phase.batch + replaced:,} pairs would be replaced by others: "
                    "their images are damaged, or the method cannot learn from their captions"
                )
            first += stage.steps
    say(f"about {_duration(total)} in all, without evaluations; nothing was written")


def _duration(seconds: float) -> str:
    for length, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if sys.platform == "win32":
        return None
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
