"""AdamW over named parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from training.config import OptimizerSettings

__all__ = ["make_optimizer", "set_learning_rate", "split_by_decay"]


def split_by_decay(names: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names that weight decay acts on, and those that it leaves alone.

    Vectors and biases are left alone. Scalars (gates, temperatures) decay, as in the official training of TCL.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> layer.gate = nn.Parameter(torch.tensor(0.0))
        >>> split_by_decay(dict(layer.named_parameters()))
        (['weight', 'gate'], ['bias'])
    """
    alone = [name for name, parameter in names.items() if parameter.ndim == 1 or name.endswith(".bias")]
    return [name for name in names if name not in set(alone)], alone


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over all parameters that any stage trains.

    A parameter whose gradient is ``None`` in a step is left alone by it, and its moments begin with its first gradient.

    Args:
        parameters: names and parameters.
        settings: of the recipe.
    """
    named = dict(parameters)
    decayed, alone = split_by_decay(named)
    scalars = {name for name in decayed if named[name].ndim == 0}
    groups = [
        {"names": [n for n in decayed if n not in scalars], "weight_decay": settings.weight_decay, "scale": 1.0},
        {"names": alone, "weight_decay": 0.0, "scale": 1.0},
        {
            "names": [n for n in decayed if n in scalars],
            "weight_decay": settings.weight_decay if settings.decay_scalars else 0.0,
            "scale": settings.scalar_scale,
        },
    ]
    return torch.optim.AdamW(
        [{"params": [named[name] for name in group.pop("names")], **group} for group in groups],  # type: ignore[attr-defined]
        lr=0.0,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of the next step in every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
