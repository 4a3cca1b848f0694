"""How long the recipe takes on this machine: a few steps of each phase, and some of its images."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tcl_core.methods.tcl import TCL
from tcl_core.playground import caption_words
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary.templates import get_templates
from training.config import TrainPhase
from training.cpu import Precision, fast_attention
from training.playground.clip import ClipTraining, build_clip, clip_batches
from training.playground.data import WORKERS, Images, ImageSet, captions_of, draw_image
from training.playground.recipe import Recipe, clip_config
from training.playground.run import CAPTION_TEMPLATES
from training.playground.tcl import tcl_batches
from training.playground.words import Reader, find_words
from training.step import Stepper

__all__ = ["Estimate", "estimate"]

_DRAWN = 400
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


def estimate(recipe: Recipe, precision: Precision, seconds: float = _SECONDS) -> Iterator[Estimate]:
    """Time each part of a recipe for a moment; nothing is written.

    Words, whitening, directions, checkpoints and logs are left out; they take few hundredths of the time.

    Args:
        recipe: what would be done.
        precision: of towers and decoder.
        seconds: least time spent on each phase.

    Yields:
        One estimate for each set of images and each phase, as soon as it is known.
    """
    templates = get_templates(CAPTION_TEMPLATES)
    tokenizer = WordTokenizer(caption_words(templates), recipe.context_length)
    clip = build_clip(clip_config(tokenizer.vocab_size, recipe.context_length), recipe.seed)
    sets = {wanted: [draw_image(wanted, index) for index in range(_DRAWN)] for wanted in recipe.image_sets()}
    said = {
        wanted: [captions_of(wanted, index, scene) for index, (_, scene) in enumerate(drawn)]
        for wanted, drawn in sets.items()
    }
    reader = Reader(find_words(captions for texts in said.values() for captions in texts))
    few: dict[ImageSet, Images] = {}
    for number, (wanted, drawn) in enumerate(sets.items(), start=1):
        things = [reader.colored(texts) for texts in said[wanted]]
        few[wanted] = Images(np.stack([pixels for pixels, _ in drawn]), [scene for _, scene in drawn], things, reader)
        began = time.perf_counter()
        for index in range(_DRAWN // 4):
            reader.colored(captions_of(wanted, index, draw_image(wanted, index)[1]))
        each = (time.perf_counter() - began) / (_DRAWN // 4) / WORKERS
        yield Estimate(f"images {number}", wanted.count, wanted.count * each)
    with fast_attention(precision):
        for number, phase in enumerate(recipe.clip_phases):
            patch = clip.visual.patch_size[0]
            make = clip_batches(phase, few.__getitem__, tokenizer, templates, recipe.seed + number, patch)
            train = phase.train_phase(precision)
            yield _phase(train, ClipTraining(clip), make, range(train.steps), len(phase.views), seconds)
        stage = recipe.tcl_stage
        tcl = TCL(FrozenClip(clip), recipe.tcl)
        tcl.masker.to(memory_format=torch.channels_last)
        tcl.clip.recompute = False
        for name, brief in stage.copies().items():
            batches = tcl_batches(stage, brief, few.__getitem__, tokenizer, templates, recipe.seed)
            train = stage.train_phase(name, precision)
            yield _phase(train, tcl, batches, range(stage.ust_steps, train.steps), 1, seconds)


def _phase(
    phase: TrainPhase, method: Any, make: Callable[[int], Any], steps: range, views: int, least: float
) -> Estimate:
    """The mean over whole cycles of the views, after one that warms up, stands for all steps."""
    stepper = Stepper(method, phase, torch.device("cpu"))
    taken = itertools.cycle(steps)

    def take() -> None:
        for _ in range(views):
            step = next(taken)
            stepper.step(step, make(step))

    take()
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < least or not done:
        take()
        done += views
    return Estimate(phase.name, phase.steps, phase.steps * spent / done)
