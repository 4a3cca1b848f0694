"""The terms of MGCA-style training beside those of TCL, as pure functions; their form is this project's choice."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.mgca.sampling import hardest
from tcl_core.methods.tcl.grounder import cosine_maps
from tcl_core.methods.tcl.losses import unit
from tcl_core.methods.tcl.mask_terms import Terms, terms_of_masks

__all__ = ["hard_info_nce", "nearest_terms", "part_embeddings", "pixel_loss", "region_loss", "strongest"]

_NONE = -2.0
"""In the place of a similarity that there is none of; no cosine is as low."""


def part_embeddings(pixels: Tensor, foreground: Tensor, points: Tensor, temperature: float) -> Tensor:
    r"""Parts of images, each gathered around a meta-point by affinity.

    :math:`A_{rp} = \mathrm{softmax}_{p \in F}(v_r \cdot v_p / \tau)`; a part is :math:`\sum_p A_{rp} v_p`, normalized.

    Args:
        pixels: v, float ``[B, E, P]``, L2-normalized over E.
        foreground: F, bool ``[B, P]``; where it is empty, all pixels take part.
        points: int64 ``[B, R]``, places of the meta-points.
        temperature: :math:`\tau`.

    Returns:
        float ``[B, R, E]``, L2-normalized.
    """
    centers = pixels.gather(2, points[:, None].expand(-1, pixels.shape[1], -1))
    affinity = centers.transpose(1, 2) @ pixels / temperature
    # Finite, because a softmax over nothing but minus infinity has no gradient.
    affinity = affinity.masked_fill(~foreground[:, None], torch.finfo(affinity.dtype).min)
    return unit(affinity.softmax(dim=2) @ pixels.transpose(1, 2), dim=-1)


def hard_info_nce(positives: Tensor, negatives: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    r"""Cross-entropy of one positive among negatives: :math:`-\log \frac{e^{s p}}{e^{s p} + \sum_k e^{s n_k}}`.

    Args:
        positives: p, cosines ``[Q]``.
        negatives: n, finite numbers ``[Q, K]``, cosines where they are valid.
        valid: bool ``[Q, K]``; others do not count.
        scale: s, inverse temperature, a scalar.

    Returns:
        ``[Q]``; 0 where no negative is valid.

    Example:
        >>> one = torch.ones(1)
        >>> hard_info_nce(one, torch.ones(1, 3), torch.tensor([[True, False, False]]), torch.tensor(5.0)).item()
        0.6931471824645996
    """
    # Masked behind the scale, or its gradient would be a product with minus infinity.
    logits = scale * torch.cat([positives[:, None], negatives], dim=1)
    logits = logits.masked_fill(F.pad(~valid, (1, 0)), -torch.inf)
    return -logits.log_softmax(dim=1)[:, 0]


def region_loss(
    parts: Tensor, texts: Tensor, all_parts: Tensor, all_texts: Tensor, apart: Tensor, scale: Tensor, count: int
) -> Tensor:
    """Contrast of parts with captions in both directions, against the hardest negatives alone.

    Args:
        parts: float ``[B, R, E]``, L2-normalized, of this process' images.
        texts: float ``[B, E]``, L2-normalized, their captions.
        all_parts: float ``[N, R, E]``, of the images of all processes.
        all_texts: float ``[N, E]``, their captions.
        apart: bool ``[B, N]``, whether captions are negatives of each other, so that their images are too.
        scale: inverse temperature, a scalar.
        count: captions of other images for each part, and parts of other images for each caption.

    Returns:
        A scalar: the mean over parts of both directions.
    """
    regions = parts.shape[1]
    own = torch.einsum("bre,be->br", parts, texts)
    to_texts = (parts @ all_texts.T).flatten(0, 1)
    to_parts = texts @ all_parts.flatten(0, 1).T
    places, valid = hardest(to_texts, apart.repeat_interleave(regions, dim=0), count)
    of_parts = hard_info_nce(own.flatten(), to_texts.gather(1, places), valid, scale)
    places, valid = hardest(to_parts, apart.repeat_interleave(regions, dim=1), count)
    # Every part of an image is a positive of its caption, against the same negatives.
    negatives = to_parts.gather(1, places).repeat_interleave(regions, dim=0)
    of_texts = hard_info_nce(own.flatten(), negatives, valid.repeat_interleave(regions, dim=0), scale)
    return (of_parts.mean() + of_texts.mean()) / 2


def pixel_loss(
    positives: Tensor, positive: Tensor, negatives: Tensor, negative: Tensor, others: Tensor, scale: Tensor
) -> Tensor:
    """Contrast of captions with hard pixels.

    Args:
        positives: cosines ``[B, K]`` of captions with hard pixels of their foreground.
        positive: bool ``[B, K]``; others do not count.
        negatives: cosines ``[B, L]`` of captions with hard pixels of their images outside of the foreground.
        negative: bool ``[B, L]``; others do not count.
        others: cosines ``[B, M]`` of captions with pixels of other images, of `strongest`.
        scale: inverse temperature, a scalar.

    Returns:
        A scalar: the mean over images of the mean over positives; 0 for an image without.
    """
    count = positives.shape[1]
    against = torch.cat([negatives, others], dim=1).repeat_interleave(count, dim=0)
    valid = torch.cat([negative, others > _NONE + 0.5], dim=1).repeat_interleave(count, dim=0)
    losses = hard_info_nce(positives.flatten(), against, valid, scale).view_as(positives)
    return ((losses * positive).sum(dim=1) / positive.sum(dim=1).clamp(min=1)).mean()


def strongest(nearest: Tensor, apart: Tensor, count: int) -> Tensor:
    """The most similar pixels of several images for each caption.

    Args:
        nearest: cosines ``[B, N, K]`` of images with captions, of `nearest_terms`.
        apart: bool ``[B, N]``, whether an image is a negative of a caption; others are left out.
        count: how many are wanted.

    Returns:
        Cosines ``[N, count]``; -2 stands where there are fewer.

    Example:
        >>> strongest(torch.tensor([[[0.5, 0.1]], [[0.7, 0.2]]]), torch.tensor([[True], [False]]), 3).tolist()
        [[0.5, 0.10000000149011612, -2.0]]
    """
    candidates = nearest.masked_fill(~apart[:, :, None], _NONE).permute(1, 0, 2).flatten(1)
    found = candidates.topk(min(count, candidates.shape[1]), dim=1).values
    return F.pad(found, (0, count - found.shape[1]), value=_NONE)


def nearest_terms(count: int) -> Terms:
    """Terms of masks as `tcl_core.methods.tcl.mask_terms.mask_terms` gives them, and the pixels nearest to texts.

    Args:
        count: pixels of each image for each text.

    Returns:
        A function whose last result are cosines ``[B, N, K]``, falling, K the smaller one of ``count`` and the pixels.
    """
    return partial(_nearest_terms, count)


def _nearest_terms(count: int, pixels: Tensor, texts: Tensor, slope: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    cosines = cosine_maps(unit(pixels, dim=1), texts)
    flat = cosines.flatten(2)
    nearest = flat.topk(min(count, flat.shape[2]), dim=2).values
    return *terms_of_masks(pixels, texts, torch.sigmoid(slope * cosines + offset)), nearest
