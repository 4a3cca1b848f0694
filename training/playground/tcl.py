"""Stage two: TCL's grounder on top of the frozen CLIP, from the same kind of pictures and captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from tcl_core.methods.tcl import TCL
from tcl_core.tokenizer import Tokenizer
from training.loop import Schedule, attention_backends, step_generators, train
from training.playground.data import Captions, PictureSet, draw_pictures

__all__ = ["TclStage", "stage_losses", "train_tcl"]


@dataclass(frozen=True)
class TclStage:
    """How the grounder is trained.

    Attributes:
        pictures: what is shown.
        batch: pictures per step.
        brief: share of captions that name one object and say nothing else.
        ust_steps: first steps, in which the copied block stays frozen.
        schedule: optimiser settings; its ``steps`` count both parts.
    """

    pictures: PictureSet
    batch: int
    brief: float
    ust_steps: int
    schedule: Schedule


def stage_losses(
    tcl: TCL, stage: TclStage, tokenizer: Tokenizer, templates: Sequence[str], seed: int
) -> tuple[Callable[[int], dict[str, Tensor]], list[nn.Parameter]]:
    """What computes TCL's losses of a step (see ``tcl_core.methods.tcl``), and all that is ever trained."""
    # Convolutions on a CPU are several times faster with the channels last.
    tcl.masker.to(memory_format=torch.channels_last)
    parameters = tcl.set_stage("full")
    how = Captions(tuple(templates), brief=stage.brief)

    def losses(step: int) -> dict[str, Tensor]:
        tcl.set_stage("ust" if step < stage.ust_steps else "full")
        rng, generator = step_generators(seed, step)
        images, captions = draw_pictures(stage.pictures).batch(rng, stage.batch, tokenizer, how)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(attention_backends(images.shape[-1])):
            return tcl.losses(images, captions[0], generator=generator)

    return losses, parameters


def train_tcl(
    tcl: TCL, stage: TclStage, tokenizer: Tokenizer, templates: Sequence[str], seed: int, folder: Path, recipe: str
) -> None:
    """Minimise TCL's losses (see ``tcl_core.methods.tcl``); resumes from ``folder``."""
    losses, parameters = stage_losses(tcl, stage, tokenizer, templates, seed)
    train("tcl", tcl, parameters, stage.schedule, losses, folder, f"tcl of {recipe}")
