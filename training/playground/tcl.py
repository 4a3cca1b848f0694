"""Stage two: TCL's grounder on top of the frozen CLIP, from the same kind of images and captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor, nn

from tcl_core.methods.tcl import TCL
from tcl_core.towers.tokenizer import Tokenizer
from training.loop import Schedule, half_precision, step_generators, train
from training.playground.data import Captions, ImageSet, draw_images

__all__ = ["TclStage", "mean_of_states", "stage_losses", "train_tcl"]


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


def stage_losses(
    tcl: TCL, stage: TclStage, brief: float, tokenizer: Tokenizer, templates: Sequence[str], seed: int
) -> tuple[Callable[[int], dict[str, Tensor]], list[nn.Parameter]]:
    """What computes TCL's losses of a copy's step (see ``tcl_core.methods.tcl``), and all that is ever trained."""
    # Convolutions on a CPU are several times faster with the channels last.
    tcl.masker.to(memory_format=torch.channels_last)
    # The tower is so small that memory does not matter, and time does.
    tcl.clip.recompute = False
    parameters = tcl.trainable("full")
    how = Captions(tuple(templates), brief=brief, balanced=stage.balanced)

    def losses(step: int) -> dict[str, Tensor]:
        tcl.trainable("ust" if step < stage.ust_steps else "full")
        rng, generator = step_generators(seed, step)
        batch = draw_images(stage.images).batch(rng, stage.batch, tokenizer, how)
        negatives = None if batch.negatives is None else batch.negatives[0]
        with half_precision():
            return tcl.losses(batch.images, batch.captions[0], generator=generator, negatives=negatives)

    return losses, parameters


def train_tcl(
    tcl: TCL,
    stage: TclStage,
    tokenizer: Tokenizer,
    templates: Sequence[str],
    seed: int,
    folder: Path,
    recipe: str,
) -> None:
    """Minimize TCL's losses (see ``tcl_core.methods.tcl``), copy by copy; resumes from ``folder``."""
    start = _copy(tcl.state_dict())
    ends = []
    for name, brief in stage.copies().items():
        tcl.load_state_dict(start)
        losses, parameters = stage_losses(tcl, stage, brief, tokenizer, templates, seed)
        train(name, tcl, parameters, stage.schedule, losses, folder, f"{name} of {recipe}")
        ends.append(_copy(tcl.state_dict()))
    tcl.load_state_dict(mean_of_states(ends, stage.shares))


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


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
