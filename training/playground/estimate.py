"""How long the recipe takes on this machine: a few steps of each stage, and some of its images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from tcl_core.methods.tcl import TCL
from tcl_core.playground import caption_words
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary.templates import get_templates
from training.playground.clip import build_clip, phase_losses
from training.playground.data import WORKERS, ImageSet, draw_image
from training.playground.recipe import Recipe, clip_config
from training.playground.tcl import stage_losses

__all__ = ["Estimate", "estimate"]

_IMAGES = 2000
_DRAWN = 200
_SECONDS = 20.0


@dataclass(frozen=True)
class Estimate:
    """What a part of the recipe will take.

    Attributes:
        name: of the part.
        count: steps, or images to draw.
        seconds: all of them together.
    """

    name: str
    count: int
    seconds: float


def estimate(recipe: Recipe, caption_templates: str, seconds: float = _SECONDS) -> Iterator[Estimate]:
    """Time each part of a recipe for a moment; nothing is learned and nothing is written.

    The first steps' whitening, the optimizer, checkpoints and logs are left out; they take few hundredths of the time.

    Args:
        recipe: what would be done.
        caption_templates: name of the templates that captions use.
        seconds: least time spent on each stage.

    Yields:
        One estimate for each set of images and each stage, as soon as it is known.
    """
    templates = get_templates(caption_templates)
    tokenizer = WordTokenizer(caption_words(templates), recipe.context_length)
    model = build_clip(clip_config(tokenizer.vocab_size, recipe.context_length), recipe.seed)
    sets = [view.images for phase in recipe.clip_phases for view in phase.views]
    sets.append(recipe.tcl_stage.images)
    small: dict[ImageSet, ImageSet] = {}
    for number, images in enumerate(dict.fromkeys(sets), start=1):
        small[images] = replace(images, count=min(images.count, _IMAGES))
        began = time.perf_counter()
        for index in range(_DRAWN):
            draw_image(images, index)
        each = (time.perf_counter() - began) / _DRAWN / WORKERS
        yield Estimate(f"drawing {number}", images.count, images.count * each)
    for number, phase in enumerate(recipe.clip_phases):
        views = tuple(replace(view, images=small[view.images]) for view in phase.views)
        losses = phase_losses(model, replace(phase, views=views), tokenizer, templates, recipe.seed + number)
        steps = phase.schedule.steps
        yield Estimate(phase.name, steps, steps * _seconds_per_step(losses, 0, len(views), seconds))
    tcl = TCL(FrozenClip(model), recipe.tcl)
    stage = recipe.tcl_stage
    shown = replace(stage, images=small[stage.images])
    for name, brief in stage.copies().items():
        losses, _ = stage_losses(tcl, shown, brief, tokenizer, templates, recipe.seed)
        steps = stage.schedule.steps
        yield Estimate(name, steps, steps * _seconds_per_step(losses, stage.ust_steps, 1, seconds))


def _seconds_per_step(losses: Callable[[int], dict[str, Tensor]], first: int, cycle: int, least: float) -> float:
    """Mean over whole cycles of the views, after one that warms up."""
    for step in range(first, first + cycle):
        losses(step)["total"].backward()
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < least or not done:
        for step in range(first + cycle + done, first + 2 * cycle + done):
            losses(step)["total"].backward()
        done += cycle
    return spent / done
