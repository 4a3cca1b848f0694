"""Stage two: TCL's grounder on top of the frozen CLIP, from the same kind of images and captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
import torch
from torch import Tensor

from tcl_core.methods.tcl.training import Batch
from tcl_core.towers.tokenizer import Tokenizer
from training.config import TrainPhase
from training.cpu import Precision
from training.playground.data import Captions, Images, ImageSet
from training.playground.schedule import Schedule

__all__ = ["TclStage", "mean_of_states", "tcl_batches"]


@dataclass(frozen=True)
class TclStage:
    """How the grounder is trained.

    Several copies of it start from the same weights and see the same images; they differ in how brief their captions
    are, and a weighted mean of their weights is the result ("model soup", arXiv 2203.05482).

    Attributes:
        images: what is shown.
        batch: images per step.
        briefs: share of captions that name one object and say nothing else, for each copy.
        shares: weight of each copy in the mean; they add up to one.
        balanced: whether negatives are weighted, see ``training.playground.negatives``.
        ust_steps: first steps, in which the copied block stays frozen.
        schedule: optimizer settings of each copy; its ``steps`` count both parts.
    """

    images: ImageSet
    batch: int
    briefs: tuple[float, ...]
    shares: tuple[float, ...]
    balanced: bool
    ust_steps: int
    schedule: Schedule

    def __post_init__(self) -> None:
        """Notice before hours of work what could not be averaged after them.

        Raises:
            ValueError: not one share for each copy, or they do not add up to one.
        """
        if len(self.shares) != len(self.briefs) or not math.isclose(sum(self.shares), 1):
            raise ValueError(f"shares {self.shares} must be one for each of briefs {self.briefs} and add up to one")

    def copies(self) -> dict[str, float]:
        """Name and share of brief captions of each copy."""
        return {f"tcl-{letter}": brief for letter, brief in zip(ascii_lowercase, self.briefs, strict=False)}

    def train_phase(self, name: str, precision: Precision) -> TrainPhase:
        """What the training engine does for a copy."""
        stages = [("ust", self.ust_steps), ("full", self.schedule.steps - self.ust_steps)]
        return self.schedule.phase(name, stages, self.batch, precision)


def tcl_batches(
    stage: TclStage,
    brief: float,
    images: Callable[[ImageSet], Images],
    tokenizer: Tokenizer,
    templates: Sequence[str],
    seed: int,
) -> Callable[[int], Batch]:
    """What makes the batch of a step of a copy.

    Args:
        stage: how the grounder is trained.
        brief: share of brief captions.
        images: draws a set, when a step first needs it.
        tokenizer: turns captions into ids.
        templates: that captions use now and then.
        seed: of batches and captions; the noise is drawn by the step.
    """
    how = Captions(tuple(templates), brief=brief, balanced=stage.balanced)

    def make(step: int) -> Batch:
        batch = images(stage.images).batch(np.random.default_rng([seed, step]), stage.batch, tokenizer, how)
        negatives = None if batch.negatives is None else batch.negatives[0]
        return Batch(batch.images, batch.captions[0], negatives=negatives)

    return make


def mean_of_states(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean of tensors of the same names; what is no floating-point number is the first one's.

    Args:
        states: at least one.
        shares: weight of each; they add up to one.

    Example:
        >>> mean_of_states([{"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}], [0.5, 0.5])
        {'w': tensor(2.)}
    """
    return {
        name: sum((share * state[name] for share, state in zip(shares, states, strict=True)), torch.zeros_like(tensor))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
