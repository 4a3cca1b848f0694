"""Optimizer settings of the playground's phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.config import OptimizerSettings, ScheduleSettings, Stage, TrainPhase
from training.cpu import Precision

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Optimizer settings of one phase.

    Attributes:
        steps: number of steps.
        lr: highest learning rate.
        min_lr: learning rate at the end.
        warmup: steps of linear warm-up.
        weight_decay: AdamW's decoupled decay, for matrices and kernels only.
        betas: AdamW's moments.
        eps: AdamW's epsilon.
        clip_norm: largest norm of the gradient.
        scalar_scale: factor on the learning rate of scalars (gates, temperatures), which start far from where they end.
    """

    steps: int
    lr: float
    min_lr: float
    warmup: int
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip_norm: float = 1.0
    scalar_scale: float = 1.0

    def phase(self, name: str, stages: Sequence[tuple[str, int]], batch: int, precision: Precision) -> TrainPhase:
        """A phase of the training engine.

        Args:
            name: of the phase.
            stages: names of the method's stages and their steps, which add up to ``steps``; those of no step are
                left out.
            batch: images of a step, or their mean over the steps.
            precision: of towers and decoder.
        """
        return TrainPhase(
            name=name,
            stages=[Stage(stage=stage, steps=steps) for stage, steps in stages if steps],
            batch=batch,
            optimizer=OptimizerSettings(
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                decay_scalars=False,
                scalar_scale=self.scalar_scale,
            ),
            schedule=ScheduleSettings(lr=self.lr, min_lr=self.min_lr, warmup=self.warmup),
            clip_norm=self.clip_norm,
            precision=precision,
            log_every=50,
            save_every=200,
        )
