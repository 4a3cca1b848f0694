"""Which pixels, parts and captions a step of MGCA-style training compares; nothing here has a gradient.

All choices are deterministic, so that they do not depend on how the images of a step are spread over processes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Foreground", "HardPixels", "farthest_points", "hard_pixels", "hardest", "pseudo_foreground"]


class Foreground(NamedTuple):
    """What a caption is taken to show of its own image.

    Attributes:
        pixels: bool ``[B, P]``, at least one of each image.
        guarded: bool ``[B]``, whether the mask had too few pixels, so that the most similar ones are taken.
    """

    pixels: Tensor
    guarded: Tensor


class HardPixels(NamedTuple):
    """Pixels of an image that are hard for its own caption.

    Attributes:
        positives: int64 ``[B, K]``, places of the least similar pixels of the foreground.
        positive: bool ``[B, K]``, false for what only fills up.
        negatives: int64 ``[B, K]``, places of the most similar pixels outside of the foreground.
        negative: bool ``[B, K]``, likewise.
    """

    positives: Tensor
    positive: Tensor
    negatives: Tensor
    negative: Tensor


@torch.no_grad()
def pseudo_foreground(masks: Tensor, similarities: Tensor, least: int, share: float) -> Foreground:
    """Pixels above one half; where they are too few, the most similar ones instead.

    Args:
        masks: float ``[B, P]`` in ``[0, 1]``, of each image for its own caption.
        similarities: float ``[B, P]``, from which the masks were made.
        least: pixels that a mask needs.
        share: of the pixels that are taken instead, ``least`` of them or more.

    Example:
        >>> masks = torch.tensor([[0.9, 0.8, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]])
        >>> pseudo_foreground(masks, masks, 2, 0.25).pixels.tolist()
        [[True, True, False, False], [True, True, False, False]]
    """
    pixels = masks > 0.5
    guarded = pixels.sum(dim=1) < least
    count = min(masks.shape[1], max(least, math.ceil(share * masks.shape[1])))
    nearest = torch.zeros_like(pixels).scatter_(1, similarities.topk(count, dim=1).indices, True)
    return Foreground(torch.where(guarded[:, None], nearest, pixels), guarded)


@torch.no_grad()
def farthest_points(pixels: Tensor, allowed: Tensor, first: Tensor, count: int) -> Tensor:
    """Points that are unlike each other: each next one is the least similar to its most similar predecessor.

    Args:
        pixels: float ``[B, E, P]``, L2-normalized over E.
        allowed: bool ``[B, P]``, at least one of each image; only these are chosen. Where they are fewer than
            ``count``, some are chosen again.
        first: int64 ``[B]``, the first point of each image.
        count: number of points, positive.

    Returns:
        int64 ``[B, count]``, places among the P.
    """
    chosen = [first]
    nearest = torch.full(allowed.shape, -torch.inf, device=pixels.device)
    for _ in range(count - 1):
        last = pixels.gather(2, chosen[-1][:, None, None].expand(-1, pixels.shape[1], 1))
        nearest = torch.maximum(nearest, (last * pixels).sum(dim=1))
        chosen.append(nearest.masked_fill(~allowed, torch.inf).argmin(dim=1))
    return torch.stack(chosen, dim=1)


@torch.no_grad()
def hardest(similarities: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most similar of the allowed candidates.

    Args:
        similarities: float ``[Q, C]``.
        allowed: bool ``[Q, C]``.
        count: how many are wanted of each row.

    Returns:
        int64 ``[Q, K]``, places among the C, and bool ``[Q, K]``, whether they are allowed, which they are not where
        there are fewer; K is the smaller one of ``count`` and C.

    Example:
        >>> places, valid = hardest(torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[True, False, True]]), 2)
        >>> places.tolist(), valid.tolist()
        ([[2, 0]], [[True, True]])
    """
    count = min(count, similarities.shape[1])
    places = similarities.masked_fill(~allowed, -torch.inf).topk(count, dim=1).indices
    return places, allowed.gather(1, places)


@torch.no_grad()
def hard_pixels(masks: Tensor, similarities: Tensor, foreground: Foreground, margin: float, count: int) -> HardPixels:
    """The least similar pixels of the foreground, and the most similar ones outside of it.

    Pixels whose mask is near one half have no label. The foreground of a guarded image does not end at one half, so
    that all of it counts.

    Args:
        masks: float ``[B, P]`` in ``[0, 1]``, of each image for its own caption.
        similarities: float ``[B, P]``.
        foreground: of `pseudo_foreground`.
        margin: least distance of a labeled mask from one half.
        count: pixels of each kind.
    """
    labeled = (masks - 0.5).abs() >= margin
    inside = foreground.pixels & (labeled | foreground.guarded[:, None])
    positives, positive = hardest(-similarities, inside, count)
    negatives, negative = hardest(similarities, ~foreground.pixels & labeled, count)
    return HardPixels(positives, positive, negatives, negative)
