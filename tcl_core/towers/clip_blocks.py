"""Blocks of CLIP's transformers, run in the ways that methods need and in the fastest one that gives the same.

The blocks are open_clip's. *Diagonal attention* (each token attends to itself alone, MaskCLIP, arXiv 2112.01071) keeps
features local.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

__all__ = [
    "attention_block",
    "block_at",
    "class_token_block",
    "diagonal_attention_block",
    "project_pixels",
    "query_key_value",
    "recomputed",
    "run_block",
]


def diagonal_attention_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """Run a pre-norm transformer block in which every token attends to itself alone.

    With the attention mask 0 on the diagonal and minus infinity elsewhere the softmax is the identity, so that
    ``y = x + out_proj(W_v LN1(x) + b_v)`` and ``z = y + MLP(LN2(y))``; queries and keys have no effect.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[..., C]``.

    Returns:
        float ``[..., C]``.
    """
    parts = cast(Any, block)
    width = parts.attn.embed_dim
    weight, bias = parts.attn.in_proj_weight, parts.attn.in_proj_bias
    value = F.linear(parts.ln_1(tokens), weight[2 * width :], None if bias is None else bias[2 * width :])
    return _after_attention(block, tokens, value)


def query_key_value(block: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a block's attention.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]`` before the block.

    Returns:
        float ``[B, heads, N, C / heads]`` each.
    """
    parts = cast(Any, block)
    joint = F.linear(parts.ln_1(tokens), parts.attn.in_proj_weight, parts.attn.in_proj_bias)
    query, key, value = joint.unflatten(-1, (3, parts.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    return query, key, value


def attention_block(block: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run a pre-norm transformer block; the same as calling it, and faster where its weights are frozen.

    ``nn.MultiheadAttention`` swaps the first two axes before its input projection. Where the weight takes no gradient,
    PyTorch then repeats it for every token, and spends more time on copies than on the products.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]``.
        mask: float ``[N, N]``, added to the scores; none lets every token see every other.

    Returns:
        float ``[B, N, C]``.
    """
    query, key, value = query_key_value(block, tokens)
    if tokens.device.type == "cpu" and not torch.is_grad_enabled():
        # The kernel for attention runs at half its speed on heads that lie apart.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    return _after_attention(block, tokens, mixed)


def class_token_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """What a pre-norm transformer block makes of the first token alone, at a sixth of the block's cost.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]``.

    Returns:
        float ``[B, 1, C]``.
    """
    return _block_for(block, tokens, slice(0, 1), None)


def block_at(block: nn.Module, tokens: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """What a pre-norm transformer block makes of some tokens alone.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]``.
        mask: float ``[N, N]``, added to the scores.
        places: int64 ``[M]``, of those tokens.

    Returns:
        float ``[B, M, C]``.
    """
    return _block_for(block, tokens, places, mask[places])


def _block_for(block: nn.Module, tokens: Tensor, places: slice | Tensor, mask: Tensor | None) -> Tensor:
    parts = cast(Any, block)
    attention = parts.attn
    width, heads = attention.embed_dim, (attention.num_heads, attention.head_dim)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    normed = parts.ln_1(tokens)
    query = F.linear(normed[:, places], weight[:width], None if bias is None else bias[:width])
    key, value = F.linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    query, key, value = (each.unflatten(-1, heads).transpose(1, 2) for each in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    return _after_attention(block, tokens[:, places], mixed)


def _after_attention(block: nn.Module, tokens: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a block: project what attention mixed, add it to the tokens, and run the MLP."""
    parts = cast(Any, block)
    tokens = tokens + parts.ls_1(parts.attn.out_proj(mixed))
    return cast(Tensor, tokens + parts.ls_2(parts.mlp(parts.ln_2(tokens))))


def run_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """Run a transformer block on ``[B, N, C]``, whichever axis it wants first, in the way that is faster.

    Args:
        block: an ``open_clip`` residual attention block of width C.
        tokens: float ``[B, N, C]``.

    Returns:
        float ``[B, N, C]``.
    """
    # PyTorch's own fused block is for inference alone, and on a CPU slower than its parts.
    if torch.is_grad_enabled() or tokens.device.type == "cpu" or torch.jit.is_tracing():
        return attention_block(block, tokens)
    if cast(Any, block).attn.batch_first:
        return cast(Tensor, block(tokens))
    return cast(Tensor, block(tokens.transpose(0, 1))).transpose(0, 1)


def project_pixels(features: Tensor, norm: nn.Module, projection: Tensor) -> Tensor:
    """Apply a layer norm and a linear projection to every pixel of a feature map.

    Args:
        features: float ``[B, C, h, w]``.
        norm: layer norm over C channels.
        projection: float ``[C, E]``.

    Returns:
        float ``[B, E, h, w]``.
    """
    pixels = features.permute(0, 2, 3, 1)
    return (norm(pixels) @ projection).permute(0, 3, 1, 2)


def recomputed(run: Callable[..., Tensor], block: nn.Module, tokens: Tensor) -> Tensor:
    """Run a block, and once more in the backward pass, there with the kernels for attention that are allowed now."""
    flags = torch.backends.cuda
    allowed = {
        "FLASH_ATTENTION": flags.flash_sdp_enabled,
        "EFFICIENT_ATTENTION": flags.mem_efficient_sdp_enabled,
        # Since PyTorch 2.5, as the precision of sums below.
        "CUDNN_ATTENTION": getattr(flags, "cudnn_sdp_enabled", lambda: False),
        "MATH": flags.math_sdp_enabled,
    }
    kernels = [getattr(SDPBackend, name) for name, is_allowed in allowed.items() if is_allowed()]
    half = getattr(flags, "fp16_bf16_reduction_math_sdp_allowed", lambda: False)
    allow_half = getattr(flags, "allow_fp16_bf16_reduction_math_sdp", lambda enabled: None)
    halves = half()

    @contextmanager
    def same() -> Iterator[None]:
        before = half()
        allow_half(halves)
        try:
            with sdpa_kernel(kernels):
                yield
        finally:
            allow_half(before)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), same()

    return cast(
        Tensor, checkpoint(run, block, tokens, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    )
