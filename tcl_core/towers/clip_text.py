"""CLIP's text tower, which computes nothing behind a text's end and no shared beginning twice."""

from __future__ import annotations

from typing import Any, cast

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from tcl_core.towers.clip_blocks import attention_block, block_at
from tcl_core.towers.text_prefixes import PrefixTree, prefix_trees

__all__ = ["text_at_ends", "text_blocks", "text_embeddings"]

# Nodes of a tree of texts: attention grows with their square, and a GPU takes many as fast as a few.
_MOST_NODES = {"cpu": 256}
_MOST_NODES_ELSEWHERE = 1024
# Small savings do not pay for trees.
_WORTH_SHARING = 0.75


def text_embeddings(model: nn.Module, tokens: Tensor) -> Tensor:
    """Embed token sequences; texts that begin alike share what a causal tower makes of their beginning.

    Args:
        model: an ``open_clip`` CLIP with any text tower.
        tokens: int64 ``[N, L]`` for the context length L; best on the CPU, wherever the tower is.

    Returns:
        float ``[N, E]``, not normalized.
    """
    parts = cast(Any, model)
    device = parts.token_embedding.weight.device
    if parts.text_pool_type != "argmax" or parts.attn_mask is None:
        return cast(Tensor, parts.encode_text(tokens.to(device)))
    # Texts are looked at where they are: on a GPU each look would have to wait for it.
    end = tokens.argmax(dim=-1)
    length = int(end.max()) + 1 if len(tokens) else 0
    rows = tokens[:, :length].tolist()
    texts = [row[: last + 1] for row, last in zip(rows, end.tolist(), strict=True)]
    trees = prefix_trees(texts, _MOST_NODES.get(device.type, _MOST_NODES_ELSEWHERE))
    if trees and sum(len(tree) for tree, _ in trees) <= len(tokens) * length * _WORTH_SHARING:
        order = torch.tensor([place for _, places in trees for place in places], device=device)
        x = torch.cat([_tree_ends(model, tree) for tree, _ in trees])
        x = torch.empty_like(x).index_copy_(0, order, x)
    else:
        x = text_at_ends(model, tokens, end)
    projection = parts.text_projection
    return cast(Tensor, projection(x) if isinstance(projection, nn.Linear) else x @ projection)


def text_at_ends(model: nn.Module, tokens: Tensor, ends: Tensor) -> Tensor:
    """What a causal text tower says at each text's end, before the projection.

    No token sees a later one, so what follows the end of the longest text (a few words of 77) changes nothing and is
    left out.

    Args:
        model: an ``open_clip`` CLIP with a causal text tower of width C.
        tokens: token ids int64 ``[N, L]``, on the CPU or where the model is.
        ends: place of each text's last token, int64 ``[N]``, beside them.

    Returns:
        float ``[N, C]``.
    """
    parts = cast(Any, model)
    length = int(ends.max()) + 1
    dtype = parts.transformer.get_cast_dtype()
    tokens, ends = (x.to(parts.token_embedding.weight.device) for x in (tokens[:, :length], ends))
    x = parts.token_embedding(tokens).to(dtype) + parts.positional_embedding[:length].to(dtype)
    x = parts.ln_final(text_blocks(model, x, parts.attn_mask[:length, :length]))
    return cast(Tensor, x[torch.arange(len(x), device=x.device), ends])


def text_blocks(model: nn.Module, x: Tensor, mask: Tensor, ends: Tensor | None = None) -> Tensor:
    """Run the blocks of a text tower, in the way that is faster.

    Args:
        model: an ``open_clip`` CLIP with a text tower of width C.
        x: float ``[B, N, C]``.
        mask: float ``[N, N]``, added to the scores.
        ends: int64 ``[M]``, the only places that are wanted; without gradients the last block computes no others.

    Returns:
        float ``[B, N, C]``, or ``[B, M, C]``.
    """
    transformer = cast(Any, model).transformer
    *lower, last = blocks = list(transformer.resblocks)
    light = x.device.type == "cpu" and not torch.is_grad_enabled()
    if not light or any(type(block) is not ResidualAttentionBlock for block in blocks):
        x = transformer(x, attn_mask=mask)
        return x if ends is None else x[:, ends]
    for block in lower:
        x = attention_block(block, x, mask.to(x.dtype))
    return attention_block(last, x, mask.to(x.dtype)) if ends is None else block_at(last, x, mask.to(x.dtype), ends)


def _tree_ends(model: nn.Module, tree: PrefixTree) -> Tensor:
    """What the text tower says at the ends of the texts of a tree, before the projection: float ``[N, C]``."""
    parts = cast(Any, model)
    device, dtype = parts.token_embedding.weight.device, parts.transformer.get_cast_dtype()
    tokens, depths = torch.tensor([tree.tokens, tree.depths], device=device)
    x = (parts.token_embedding(tokens).to(dtype) + parts.positional_embedding.to(dtype)[depths])[None]
    mask, ends = tree.attention_mask().to(device), torch.tensor(tree.ends, device=device)
    return cast(Tensor, parts.ln_final(text_blocks(model, x, mask, ends))[0])
