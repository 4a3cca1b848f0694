"""Scores of a model while it is trained."""

from __future__ import annotations

import torch

from tcl_core.evaluation.playground import evaluate_playground
from training.config import EvaluationSettings
from training.model import Trained

__all__ = ["evaluate"]


def evaluate(trained: Trained, settings: EvaluationSettings, device: torch.device) -> dict[str, float]:
    """Score the weights as they are now.

    Args:
        trained: on ``device``.
        settings: what is scored.
        device: where the model is.

    Returns:
        Mean IoU in percent, by what it is of.
    """
    found: dict[str, float] = {}
    if settings.playground:
        for row in evaluate_playground(trained.model(device), settings.playground):
            found[f"playground seen ({row.variant})"] = round(row.seen, 2)
            found[f"playground held out ({row.variant})"] = round(row.held_out, 2)
    return found
