"""The image side of SC-CLIP (arXiv 2411.15869): outlier tokens repaired, attention and features led by middle blocks.

All functions take patch tokens ``[B, P, C]`` of windows with h x w = P patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Blocks", "aggregation", "blocks_of", "cosine_matrix", "led_attention", "outliers", "repair"]

_QUANTILE = 0.95
_SHARPNESS = 3.0
_EPSILON = 1e-6
_TIE = 1e-5


@dataclass(frozen=True)
class Blocks:
    """Which blocks of the image tower lead, counted from 0 and told by the tokens after them.

    Attributes:
        attention: its similarities lead the attention of the last block, and mix its input.
        features: its similarities mix the output.
        levels: their tokens are summed and go through the last block too.
    """

    attention: int
    features: int
    levels: tuple[int, ...]


def blocks_of(depth: int) -> Blocks:
    """The published blocks of twelve, scaled to another depth L: 3L/4-1, L/3-1, and L/3-1 to 5L/6-1, rounded.

    Args:
        depth: number of blocks L of the image tower, at least 2.

    Example:
        >>> blocks_of(12)
        Blocks(attention=8, features=3, levels=(3, 4, 5, 6, 7, 8, 9))
        >>> blocks_of(24).levels[0], blocks_of(24).levels[-1]
        (7, 19)
    """

    def at(share: float) -> int:
        # The last block is the one that is led, so that no other may stand for it.
        return min(max(round(share * depth - 1), 0), depth - 2)

    first = at(1 / 3)
    return Blocks(at(3 / 4), first, tuple(range(first, at(5 / 6) + 1)))


def cosine_matrix(tokens: Tensor) -> Tensor:
    """Cosines ``[B, P, P]`` of tokens ``[B, P, C]``."""
    unit = F.normalize(tokens, dim=-1)
    return unit @ unit.transpose(1, 2)


def outliers(tokens: Tensor, neighbors: int) -> Tensor:
    """Tokens whose local outlier factor lies above the 95 % quantile of their window.

    The factor compares a token's distance to its k-th nearest with those of its neighbors. As in the authors' program
    the reach of a token is its own distance, so that the density is its inverse.

    Args:
        tokens: float ``[B, P, C]``.
        neighbors: k; fewer where there are no more patches.

    Returns:
        bool ``[B, P]``.
    """
    count = tokens.shape[1]
    k = min(neighbors, count - 1)
    if k < 1:
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    distances = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    nearest = distances.topk(k, largest=False)
    reach = nearest.values[..., -1].clamp(min=torch.finfo(tokens.dtype).tiny)
    density = 1 / reach
    around = density.gather(1, nearest.indices.flatten(1)).view_as(nearest.values).mean(dim=-1)
    factor = around / density
    # Two tokens that are each other's k-th nearest tie, and rounding must not say which of them is an outlier.
    return factor > (1 + _TIE) * torch.quantile(factor, _QUANTILE, dim=1, keepdim=True)


def repair(tokens: Tensor, bad: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace tokens by the mean of those of their eight neighbors that are not bad; kept where all are.

    Args:
        tokens: float ``[B, P, C]``.
        bad: bool ``[B, P]``.
        grid: patch rows h and columns w.
    """
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    good = (~bad).to(tokens.dtype).unflatten(1, grid)[:, None]
    # Nine times a mean over nine is a sum, in which padding counts nothing.
    total = 9 * F.avg_pool2d(maps * good, 3, stride=1, padding=1)
    count = 9 * F.avg_pool2d(good, 3, stride=1, padding=1)
    mean = (total / count.clamp(min=1)).flatten(2).transpose(1, 2)
    replaced = bad & (count.flatten(1) > 0.5)
    return torch.where(replaced[..., None], mean, tokens)


def swapped_places(bad: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where the authors' program looks for these tokens: it divides by the number of rows instead of columns.

    Both agree on square windows. Places outside the grid are left out.
    """
    rows, columns = grid
    found = torch.zeros_like(bad)
    for window, place in bad.nonzero().tolist():
        row, column = divmod(place, rows)
        if row < rows and column < columns:
            found[window, row * columns + column] = True
    return found


def aggregation(similarity: Tensor, least: float) -> Tensor:
    """Rows of similarities that add to one, from those that are at least ``least``; float ``[B, P, P]``."""
    kept = similarity.masked_fill(similarity < least, 0)
    return kept / (kept.sum(dim=-1, keepdim=True) + _EPSILON)


def led_attention(similarity: Tensor) -> Tensor:
    """Attention ``[B, P, P]`` from cosines: softmax of 3 (S - mean S), over what lies above the mean."""
    logits = _SHARPNESS * (similarity - similarity.mean(dim=(1, 2), keepdim=True))
    below = logits < 0
    # A token always sees itself, also where all are alike and rounding alone decides.
    below.diagonal(dim1=1, dim2=2).fill_(False)
    return torch.softmax(logits.masked_fill(below, float("-inf")), dim=-1)
