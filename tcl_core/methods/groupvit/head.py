"""From groups to score maps: the segmentation of GroupViT (arXiv 2202.11094, section 3.4), as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

__all__ = ["MOST_SCALE", "background_plane", "group_maps", "group_scores", "scores_of_pixels"]

MOST_SCALE = 100.0


def group_maps(assignments: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """How much each patch belongs to each of the last groups.

    Args:
        assignments: soft, float ``[B, G_i, N_i]``, of the tokens of each stage to groups.
        grid: patch rows h and columns w.

    Returns:
        float32 ``[B, G, h, w]``, which over G adds to one.

    Example:
        >>> first = torch.tensor([[[1.0, 0.5], [0.0, 0.5]]])
        >>> group_maps([first, torch.eye(2)[None]], (1, 2))[0, :, 0].tolist()
        [[1.0, 0.5], [0.0, 0.5]]
    """
    # The later assignment comes from the left.
    product = reduce(lambda earlier, later: later @ earlier, [maps.float() for maps in assignments])
    return product.unflatten(2, grid)


def group_scores(groups: Tensor, image: Tensor, texts: Tensor, scale: Tensor, top_k: int) -> Tensor:
    """How well names fit groups: the softmax over the names that fit the image best, times that over all names.

    Args:
        groups: float ``[B, G, E]``, L2-normalized.
        image: float ``[B, E]`` of the whole image, L2-normalized.
        texts: float ``[P, E]``, L2-normalized.
        scale: of the cosines, at most 100.
        top_k: how many names the image keeps; all others score 0. 0 keeps all.

    Returns:
        float32 ``[B, G, P]`` in ``[0, 1]``.
    """
    logits = scale * torch.einsum("bge,pe->bgp", groups.float(), texts.float())
    shares = torch.softmax(logits, dim=2)
    if not 0 < top_k < len(texts):
        return shares * shares
    kept = (image.float() @ texts.float().T).topk(top_k, dim=1).indices
    others = torch.ones(len(image), len(texts), dtype=torch.bool, device=logits.device).scatter_(1, kept, False)
    return torch.softmax(logits.masked_fill(others[:, None], float("-inf")), dim=2) * shares


def scores_of_pixels(maps: Tensor, scores: Tensor) -> Tensor:
    """Every pixel has the scores of the group that it belongs to most.

    Args:
        maps: float ``[B, G, H, W]``, at the size of the pixels.
        scores: float ``[B, G, P]``.

    Returns:
        float32 ``[B, P, H, W]``.
    """
    owner = maps.argmax(dim=1).flatten(1)[:, None].expand(-1, scores.shape[2], -1)
    return scores.transpose(1, 2).gather(2, owner).unflatten(2, maps.shape[2:])


def background_plane(scores: Tensor, threshold: float) -> Tensor:
    """Where no name fits well enough; the best group of a window is never background.

    Args:
        scores: float ``[B, P, H, W]``, P at least 1.
        threshold: that the best score of a pixel must reach.

    Returns:
        float32 ``[B, 1, H, W]`` of zeros and ones.
    """
    best = scores.amax(dim=1, keepdim=True)
    reached = best.amax(dim=(1, 2, 3), keepdim=True).clamp(max=threshold)
    return (best < reached).to(scores.dtype)
