"""The playground's recipe at a size that takes seconds, and what its captions name."""

from __future__ import annotations

import dataclasses

from tcl_core.playground import COLORS, KINDS, PATTERNS, STUFF_NAMES, SYNONYMS
from training.playground.data import ImageSet
from training.playground.recipe import Recipe
from training.playground.schedule import Schedule
from training.playground.words import Reader, Words

__all__ = ["READER", "TINY", "TRUTH", "short"]

TRUTH = Words(
    things={kind: tuple(sorted(SYNONYMS.get(kind, ()))) for kind in KINDS},
    stuff=tuple(sorted(STUFF_NAMES)),
    colors=tuple(sorted(COLORS)),
    modifiers=tuple(sorted({*PATTERNS[1:], "small", "little", "tiny", "large", "big", "huge"})),
)
"""What captions name, from the program that makes them."""

READER = Reader(TRUTH)

TINY = ImageSet(count=40, size=32, objects=(1, 2), radius=(8, 12), plain=0.3, seed=1)


def short(recipe: Recipe) -> Recipe:
    """A recipe of three steps a phase and few images."""
    steps = Schedule(steps=3, lr=1e-4, min_lr=1e-5, warmup=1)
    many = dataclasses.replace(TINY, count=300)
    phases = tuple(
        dataclasses.replace(
            phase,
            views=tuple(
                dataclasses.replace(view, images=TINY if index else many, batch=2 * view.collage**2)
                for view in phase.views
            ),
            schedule=steps,
        )
        for index, phase in enumerate(recipe.clip_phases)
    )
    stage = dataclasses.replace(recipe.tcl_stage, images=many, batch=4, ust_steps=1, schedule=steps)
    return dataclasses.replace(
        recipe, clip_phases=phases, tcl_stage=stage, read_images=300, whitened=250, debias_images=200
    )
