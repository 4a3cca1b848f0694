"""Co-segmentation of retrieved images (ReCo, arXiv 2206.07045): one reference embedding out of k images of a word.

Every pixel asks each image for the best match, weighted by how much the match looks like the word and how little like
the contexts. The pixel that the images answer best on average is an image's seed, and the mean over seeds is the
reference. All maps are ``[k, C, h, w]`` of k images with h x w = M pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "BLOCK_BYTES",
    "TEMPERATURE",
    "Cosegmentation",
    "context_weights",
    "cosegment",
    "nearest_images",
    "pixel_scores",
    "most_central",
    "pixel_weights",
    "reference_scores",
    "seed_features",
    "text_attention",
]

TEMPERATURE = 10.0
"""Slope of the language attention."""

BLOCK_BYTES = 64 << 20
"""Bytes of the products of pixels with pixels that exist at one time."""


@dataclass(frozen=True)
class Cosegmentation:
    """What k images of one word have in common.

    Attributes:
        reference: float32 ``[C]``, of length 1.
        seeds: int64 ``[k]``, the pixel of each image, row by row.
        scores: float32 ``[k]``, of the seeds: how well the other images answer them.
    """

    reference: Tensor
    seeds: Tensor
    scores: Tensor


def nearest_images(images: Tensor, text: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The images whose embeddings are nearest to that of a text.

    Args:
        images: float ``[N, D]``, L2-normalized.
        text: float ``[D]``, L2-normalized.
        k: how many; fewer where there are no more.

    Returns:
        Cosines ``[k]`` and places int64 ``[k]``, the nearest first.

    Example:
        >>> values, places = nearest_images(torch.eye(3), torch.tensor([0.6, 0.0, 0.8]), 2)
        >>> places.tolist()
        [2, 0]
    """
    found = (images @ text).topk(min(k, len(images)))
    return found.values, found.indices


def text_attention(
    dense: Tensor, text: Tensor, size: tuple[int, int] | None = None, slope: float = TEMPERATURE
) -> Tensor:
    r"""How much pixels look like texts in the eyes of a dense CLIP: :math:`\sigma(10 \langle \hat\psi, t \rangle)`.

    Args:
        dense: float ``[B, E, h', w']``; it is normalized here.
        text: float ``[P, E]``, L2-normalized.
        size: height and width of the result, by default those of ``dense``.
        slope: in the place of 10.

    Returns:
        float32 ``[B, P, h, w]`` in ``[0, 1]``.
    """
    cosines = torch.einsum("behw,pe->bphw", F.normalize(dense.float(), dim=1), text.float())
    attention = torch.sigmoid(slope * cosines)
    return attention if size is None else F.interpolate(attention, size=size, mode="bilinear")


def reference_scores(features: Tensor, references: Tensor) -> Tensor:
    r"""How much pixels look like references: :math:`\sigma(\langle \hat f, r \rangle)`, between 0.27 and 0.73.

    Args:
        features: float ``[B, C, h, w]``; they are normalized here.
        references: float ``[R, C]``, L2-normalized.

    Returns:
        float32 ``[B, R, h, w]``.
    """
    unit = F.normalize(features.float(), dim=1)
    return torch.sigmoid(torch.einsum("bchw,rc->brhw", unit, references.float()))


def context_weights(features: Tensor, contexts: Tensor) -> Tensor:
    """How little pixels look like each context, float32 ``[k, R, h, w]``; see `reference_scores` for the arguments."""
    return 1 - reference_scores(features, contexts)


def pixel_weights(features: Tensor, dense: Tensor, text: Tensor, contexts: Tensor) -> Tensor:
    """How much pixels count as matches: language attention, less what the contexts claim.

    Args:
        features: float ``[k, C, h, w]`` of the image encoder.
        dense: float ``[k, E, h', w']`` of the dense CLIP.
        text: float ``[E]``, L2-normalized.
        contexts: float ``[R, C]``, references of contexts, L2-normalized; there may be none.

    Returns:
        float32 ``[k, h, w]``.
    """
    size = (int(features.shape[2]), int(features.shape[3]))
    return text_attention(dense, text[None], size)[:, 0] * context_weights(features, contexts).prod(dim=1)


def pixel_scores(
    features: Tensor, weights: Tensor, *, upstream_slice: bool = False, block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """How well the images answer each pixel: the mean over images of the best weighted cosine inside the image.

    The product of all pixels with all pixels, k M x k M values, never exists as a whole: pixels are asked in blocks.

    Args:
        features: float ``[k, C, h, w]``; they are normalized here.
        weights: float ``[k, h, w]`` of the pixels that answer.
        upstream_slice: let the columns of image j reach to those of image 2 j, as in the authors' program, by a slip.
        block_bytes: bound of the bytes of a block's products; a block has at least one pixel.

    Returns:
        float32 ``[k, M]``.
    """
    k, _, height, width = features.shape
    pixels = height * width
    unit = F.normalize(features.float(), dim=1).permute(0, 2, 3, 1).reshape(k * pixels, -1)
    answers = (unit * weights.float().reshape(-1, 1)).T.contiguous()
    rows = max(1, block_bytes // (4 * k * pixels))
    scores = unit.new_empty(k * pixels)
    buffer = unit.new_empty(min(rows, k * pixels), k * pixels)
    for first in range(0, k * pixels, rows):
        block = unit[first : first + rows]
        products = torch.mm(block, answers, out=buffer[: len(block)])
        if upstream_slice:
            ends = [(image * pixels, (2 * image + 1) * pixels) for image in range(k)]
            best = torch.stack([products[:, start:stop].amax(dim=1) for start, stop in ends], dim=1)
        else:
            best = products.view(len(block), k, pixels).amax(dim=2)
        torch.mean(best, dim=1, out=scores[first : first + rows])
    return scores.view(k, pixels)


def cosegment(
    features: Tensor, weights: Tensor, *, upstream_slice: bool = False, block_bytes: int = BLOCK_BYTES
) -> Cosegmentation:
    """The seeds of k images, and the reference that they give.

    Args:
        features: float ``[k, C, h, w]``, k at least 1.
        weights: float ``[k, h, w]``, see `pixel_weights`.
        upstream_slice: see `pixel_scores`.
        block_bytes: see `pixel_scores`.
    """
    best = pixel_scores(features, weights, upstream_slice=upstream_slice, block_bytes=block_bytes).max(dim=1)
    found = seed_features(features, best.indices)
    return Cosegmentation(F.normalize(found.mean(dim=0), dim=0), best.indices, best.values)


def seed_features(features: Tensor, seeds: Tensor) -> Tensor:
    """Features of each image's seed, float32 ``[k, C]``, not normalized."""
    return features.float().flatten(2)[torch.arange(len(features), device=features.device), :, seeds]


def most_central(features: Tensor, seeds: Tensor) -> int:
    """The image whose seed is nearest to the seeds of all images."""
    unit = F.normalize(seed_features(features, seeds), dim=1)
    return int((unit @ unit.T).mean(dim=1).argmax())
