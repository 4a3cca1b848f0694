"""Stage two: TCL's grounder on top of the frozen CLIP, from the same kind of pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tcl_core.methods.tcl import TCL
from tcl_core.tokenizer import Tokenizer
from training.loop import Schedule, step_generators, train
from training.playground.data import Captions, PictureSet, draw_pictures

__all__ = ["TclStage", "train_tcl"]


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


def train_tcl(
    tcl: TCL, stage: TclStage, tokenizer: Tokenizer, templates: Sequence[str], seed: int, folder: Path, recipe: str
) -> None:
    """Minimise TCL's losses (see ``tcl_core.methods.tcl``); resumes from ``folder``."""
    # Convolutions on a CPU are several times faster with the channels last.
    tcl.masker.to(memory_format=torch.channels_last)
    parameters = tcl.set_stage("full")

    def losses(step: int) -> dict[str, Tensor]:
        tcl.set_stage("ust" if step < stage.ust_steps else "full")
        rng, generator = step_generators(seed, step)
        how = Captions(tuple(templates), brief=stage.brief)
        images, captions = draw_pictures(stage.pictures).batch(rng, stage.batch, tokenizer, how)
        few_tokens = images.shape[-1] < 100
        backends = [SDPBackend.MATH] if few_tokens else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(backends):
            return tcl.losses(images, captions[0], generator=generator)

    train("tcl", tcl, parameters, stage.schedule, losses, folder, f"tcl of {recipe}")
