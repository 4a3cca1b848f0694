"""Stage two: TCL's grounder on top of the frozen CLIP, from the same kind of pictures and captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from tcl_core.methods.tcl import TCL
from tcl_core.tokenizer import Tokenizer
from training.loop import Schedule, attention_backends, step_generators, train
from training.playground.data import Captions, PictureSet, draw_pictures

__all__ = ["TclStage", "mean_of_states", "stage_losses", "train_tcl"]


@dataclass(frozen=True)
class TclStage:
    """A part of the grounder's training.

    Several copies of the grounder start from the same weights and see the same pictures; they differ in how brief their
    captions are, and the stage ends with a weighted mean of their weights ("model soup", arXiv 2203.05482).

    Attributes:
        name: of the stage; copies are told apart by letters.
        pictures: what is shown.
        batch: pictures per step.
        briefs: share of captions that name one object and say nothing else, for each copy.
        shares: weight of each copy in the mean.
        ust_steps: first steps, in which the copied block stays frozen.
        schedule: optimiser settings of each copy; its ``steps`` count both parts.
    """

    name: str
    pictures: PictureSet
    batch: int
    briefs: tuple[float, ...]
    shares: tuple[float, ...]
    ust_steps: int
    schedule: Schedule

    def copies(self) -> dict[str, float]:
        """Name and share of brief captions of each copy."""
        return {f"{self.name}{letter}": brief for letter, brief in zip(ascii_lowercase, self.briefs, strict=False)}


def stage_losses(
    tcl: TCL, stage: TclStage, brief: float, tokenizer: Tokenizer, templates: Sequence[str], seed: int
) -> tuple[Callable[[int], dict[str, Tensor]], list[nn.Parameter]]:
    """What computes TCL's losses of a copy's step (see ``tcl_core.methods.tcl``), and all that is ever trained."""
    # Convolutions on a CPU are several times faster with the channels last.
    tcl.masker.to(memory_format=torch.channels_last)
    parameters = tcl.set_stage("full")
    how = Captions(tuple(templates), brief=brief)

    def losses(step: int) -> dict[str, Tensor]:
        tcl.set_stage("ust" if step < stage.ust_steps else "full")
        rng, generator = step_generators(seed, step)
        images, captions = draw_pictures(stage.pictures).batch(rng, stage.batch, tokenizer, how)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(attention_backends(images.shape[-1])):
            return tcl.losses(images, captions[0], generator=generator)

    return losses, parameters


def train_tcl(
    tcl: TCL,
    stages: Sequence[TclStage],
    tokenizer: Tokenizer,
    templates: Sequence[str],
    seed: int,
    folder: Path,
    recipe: str,
) -> None:
    """Minimise TCL's losses (see ``tcl_core.methods.tcl``), stage by stage, copy by copy; resumes from ``folder``."""
    for number, stage in enumerate(stages):
        start = _copy(tcl.state_dict())
        ends = []
        for name, brief in stage.copies().items():
            tcl.load_state_dict(start)
            losses, parameters = stage_losses(tcl, stage, brief, tokenizer, templates, seed + number)
            train(name, tcl, parameters, stage.schedule, losses, folder, f"{name} of {recipe}")
            ends.append(_copy(tcl.state_dict()))
        tcl.load_state_dict(mean_of_states(ends, stage.shares))


def mean_of_states(states: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Weighted mean of tensors of the same names; what is no floating-point number is the first one's.

    Example:
        >>> mean_of_states([{"w": torch.tensor(1.0)}, {"w": torch.tensor(3.0)}], [0.5, 0.5])
        {'w': tensor(2.)}
    """
    weights = torch.tensor(shares) / sum(shares)
    return {
        name: torch.einsum("n,n...->...", weights, torch.stack([state[name] for state in states]))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
