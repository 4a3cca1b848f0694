"""The last block of a vision transformer with another attention: what training-free dense CLIP methods change.

CLIP's last block mixes patches until each of them tells of the whole image. Attention of queries with queries, keys
with keys, or of each token with itself keeps them local. With q, k, v of the block's own projections, d channels per
head and s = d^-1/2, each variant is a sum of maps softmax(s a a^T + Omega) over tokens, applied to v.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.towers.clip_blocks import query_key_value

__all__ = ["Attention", "attend", "gaussian_window", "last_block"]

Attention = Literal["identity", "qq", "kk", "qq+kk"]
"""What the tokens of the last block attend by: themselves alone, queries, keys, or the sum of the last two."""


def gaussian_window(grid: tuple[int, int], sigma: float, device: torch.device | None = None) -> Tensor:
    r"""The bias :math:`\Omega_{ij} = \exp(-d_{ij}^2 / 2 \sigma^2)` of NACLIP (arXiv 2404.08181), in logits.

    Args:
        grid: patch rows h and columns w.
        sigma: width in patches, positive.
        device: where it is made.

    Returns:
        float32 ``[1 + hw, 1 + hw]`` with peak 1; 0 for every pair with the class token, which comes first.

    Example:
        >>> gaussian_window((1, 2), sigma=1.0)[1:, 1:].round(decimals=3).tolist()
        [[1.0, 0.6069999933242798], [0.6069999933242798, 1.0]]
    """
    rows = torch.arange(grid[0], device=device, dtype=torch.float32)
    columns = torch.arange(grid[1], device=device, dtype=torch.float32)
    # Not cartesian_prod, which cannot be exported.
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    squared = (place[:, None] - place[None]).square().sum(dim=-1)
    return F.pad(torch.exp(-squared / (2 * sigma * sigma)), (1, 0, 1, 0))


def attend(block: nn.Module, tokens: Tensor, attention: Attention, bias: Tensor | None = None) -> Tensor:
    """The attention branch of a block before its residual connection.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]`` before the block.
        attention: see `Attention`; ``"qq+kk"`` is a sum, so that its rows add to 2.
        bias: float ``[N, N]``, added to the logits of every head.

    Returns:
        float ``[B, N, C]``, after the output projection.
    """
    parts = cast(Any, block)
    query, key, value = query_key_value(block, tokens)
    if attention == "identity":
        mixed = value
    else:
        bias = None if bias is None else bias.to(value.dtype)
        by = {"qq": (query,), "kk": (key,), "qq+kk": (query, key)}[attention]
        maps = [F.scaled_dot_product_attention(one, one, value, attn_mask=bias) for one in by]
        mixed = maps[0] if len(maps) == 1 else maps[0] + maps[1]
    return parts.attn.out_proj(mixed.transpose(1, 2).flatten(2))


def last_block(
    block: nn.Module, tokens: Tensor, attention: Attention, *, residual: bool, bias: Tensor | None = None
) -> Tensor:
    """The last block with another attention.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]`` before the block.
        attention: see `Attention`.
        residual: keep the residual connection and the feed-forward network; without them the branch alone remains.
        bias: see `attend`.

    Returns:
        float ``[B, N, C]``, before the final layer norm.
    """
    parts = cast(Any, block)
    branch = parts.ls_1(attend(block, tokens, attention, bias))
    if not residual:
        return branch
    tokens = tokens + branch
    return tokens + parts.ls_2(parts.mlp(parts.ln_2(tokens)))
