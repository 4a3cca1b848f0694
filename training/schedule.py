"""Learning rates over the steps of a phase."""

from __future__ import annotations

import math

from training.config import ScheduleSettings

__all__ = ["learning_rate"]


def learning_rate(schedule: ScheduleSettings, step: int, steps: int) -> float:
    r"""Linear warm-up, then half a cosine.

    The same numbers as PyTorch's ``LinearLR`` and ``CosineAnnealingLR`` in a row: step 0 has ``start_factor`` times the
    base, step ``warmup`` the base itself, and step ``steps``, which is never taken, ``min_lr``.

    Args:
        schedule: base and shape.
        step: from 0.
        steps: of the whole phase.

    Example:
        >>> s = ScheduleSettings(lr=1.0, min_lr=0.1, warmup=10, start_factor=0.1)
        >>> [round(learning_rate(s, step, 110), 3) for step in (0, 5, 10, 60, 110)]
        [0.1, 0.55, 1.0, 0.55, 0.1]
    """
    if step < schedule.warmup:
        return schedule.lr * (schedule.start_factor + (1 - schedule.start_factor) * step / schedule.warmup)
    progress = min(1.0, (step - schedule.warmup) / max(1, steps - schedule.warmup))
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * (1 + math.cos(math.pi * progress)) / 2
