"""The terms of TCL's objective as pure functions (section 3.3 of the paper)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "EPSILON",
    "draw_noise",
    "gumbel_sigmoid",
    "info_nce",
    "pool_by_masks",
    "total_variation",
    "unit",
    "variations",
]

EPSILON = 1e-6
"""Smallest length by which a vector is divided, and what is added to the area of a mask."""


def unit(x: Tensor, dim: int) -> Tensor:
    """``x`` in float32, L2-normalized over ``dim``."""
    return F.normalize(x.float(), dim=dim, eps=EPSILON)


def draw_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise in the open interval (0, 1), float32 in the shape of ``like``.

    Args:
        like: gives shape and device.
        generator: source of randomness; ``None`` takes torch's default one. It may live on another device.
    """
    device = like.device if generator is None else generator.device
    noise = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float32)
    # torch.rand includes 0, whose logit is minus infinity.
    return noise.clamp_(min=2.0**-24).to(like.device)


def gumbel_sigmoid(logits: Tensor, noise: Tensor, tau: float = 1.0) -> Tensor:
    r"""Sample hard masks with a straight-through gradient.

    :math:`g = \sigma((\text{logits} + \log\frac{u}{1-u}) / \tau)`; the value is 1 where g > 0.5 and else 0, the
    gradient is that of g.

    Args:
        logits: float, any shape.
        noise: u, uniform in (0, 1), same shape.
        tau: temperature, positive.

    Returns:
        float in the shape of ``logits``; 0 or 1.
    """
    soft = torch.sigmoid((logits + torch.logit(noise)) / tau)
    return (soft > 0.5).to(soft.dtype) - soft.detach() + soft


def pool_by_masks(features: Tensor, masks: Tensor) -> Tensor:
    r"""Average features under soft masks: :math:`\sum V M / (\sum M + 10^{-6})`.

    Args:
        features: V, float ``[B, E, h, w]``.
        masks: M, float ``[B, N, h, w]``.

    Returns:
        float ``[B, N, E]``.
    """
    flat = masks.flatten(2)
    return flat @ features.flatten(2).transpose(1, 2) / (flat.sum(dim=2, keepdim=True) + EPSILON)


def info_nce(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    offset: int = 0,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Symmetric cross-entropy of matching pairs: the mean of both directions.

    Args:
        rows: cosines ``[B, N]`` of each image of this process with all texts.
        columns: cosines ``[B, N]`` of each text of this process with all images.
        scale: inverse temperature, a scalar.
        offset: position of this process' first pair among the N.
        weights: two of ``[B, N]``, how often each pair of ``rows`` and of ``columns`` counts, from 0 to 1 and 1 for
            those that match; ``None`` counts each once.

    Returns:
        A scalar.

    Example:
        >>> round(float(info_nce(torch.eye(2), torch.eye(2), torch.tensor(1.0))), 4)
        0.3133
    """
    target = torch.arange(offset, offset + rows.shape[0], device=rows.device)
    logits = [scale * rows, scale * columns]
    if weights is not None:
        logits = [each + weight.log() for each, weight in zip(logits, weights, strict=True)]
    return (F.cross_entropy(logits[0], target) + F.cross_entropy(logits[1], target)) / 2


class _Variations(torch.autograd.Function):
    """Keeps only its input for the backward pass: the differences of all masks are as large as the masks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        total = x.new_zeros(len(x))
        for axis in (-1, -2):
            if x.shape[axis] > 1:
                total = total + torch.diff(x, dim=axis).abs_().flatten(1).mean(dim=1)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad = torch.zeros_like(x)
        scale = grads[0].reshape(-1, *[1] * (x.ndim - 1))
        for axis in (-1, -2):
            length = x.shape[axis]
            if length > 1:
                sign = torch.diff(x, dim=axis).sign_()
                sign *= scale * (len(x) / sign.numel())
                grad.narrow(axis, 1, length - 1).add_(sign)
                grad.narrow(axis, 0, length - 1).sub_(sign)
        return grad


def variations(x: Tensor) -> Tensor:
    """The total variation of each image.

    Args:
        x: float ``[B, ..., h, w]``.

    Returns:
        ``[B]``, see `total_variation`; differentiable once.
    """
    return _Variations.apply(x)


def total_variation(x: Tensor) -> Tensor:
    """Anisotropic total variation: mean absolute horizontal plus mean absolute vertical difference.

    Args:
        x: float ``[..., h, w]``; an axis of length 1 contributes 0.

    Returns:
        A scalar; differentiable once.

    Example:
        >>> float(total_variation(torch.tensor([[0.0, 1.0], [0.0, 1.0]])))
        1.0
    """
    return variations(x[None])[0]
