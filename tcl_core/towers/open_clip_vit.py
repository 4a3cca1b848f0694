"""A frozen CLIP whose image tower gives dense features and passes gradients on to its input.

The towers are open_clip's; this module only walks through them in the three ways the methods need: the ordinary
global embedding at any image size, the tokens part of the way up, and the last block with *diagonal attention*
(each token attends to itself alone, MaskCLIP, arXiv 2112.01071), which keeps the features local.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from tcl_core.errors import WeightsError
from tcl_core.towers.base import PositionRule
from tcl_core.towers.text_prefixes import PrefixTree, prefix_trees
from tcl_core.towers.tokenizer import Tokenizer

__all__ = [
    "FrozenClip",
    "attention_block",
    "bicubic_positions",
    "block_at",
    "class_token_block",
    "clip_config_from_state_dict",
    "diagonal_attention_block",
    "project_pixels",
    "query_key_value",
    "run_block",
    "text_at_ends",
    "text_blocks",
]

# Nodes of a tree of texts: attention grows with their square, and a GPU takes many as fast as a few.
_MOST_NODES = {"cpu": 256}
_MOST_NODES_ELSEWHERE = 1024
# Small savings do not pay for trees.
_WORTH_SHARING = 0.75


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
    tokens = tokens + parts.ls_1(parts.attn.out_proj(value))
    return tokens + parts.ls_2(parts.mlp(parts.ln_2(tokens)))


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


def bicubic_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a grid of position embeddings ``[1, C, h, w]`` bicubically, without antialias, as TCL does."""
    return F.interpolate(table, size=grid, mode="bicubic", align_corners=False)


def scaled_bicubic_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize with the scale factors ``(n + 0.1) / trained`` that SCLIP and its successors give."""
    scale = ((grid[0] + 0.1) / int(table.shape[-2]), (grid[1] + 0.1) / int(table.shape[-1]))
    return F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)


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
    parts = cast(Any, block)
    attention = parts.attn
    query, key, value = query_key_value(block, tokens)
    if tokens.device.type == "cpu" and not torch.is_grad_enabled():
        # The kernel for attention runs at half its speed on heads that lie apart.
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    tokens = tokens + parts.ls_1(attention.out_proj(mixed))
    return tokens + parts.ls_2(parts.mlp(parts.ln_2(tokens)))


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
    width, heads = attention.embed_dim, (-1, attention.num_heads, attention.head_dim)
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    normed = parts.ln_1(tokens)
    query = F.linear(normed[:, places], weight[:width], None if bias is None else bias[:width])
    key, value = F.linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    query, key, value = (each.unflatten(-1, heads[1:]).transpose(1, 2) for each in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    token = tokens[:, places] + parts.ls_1(attention.out_proj(mixed))
    return token + parts.ls_2(parts.mlp(parts.ln_2(token)))


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


class FrozenClip(nn.Module):
    """An ``open_clip`` CLIP with a plain ViT image tower, frozen and always in eval mode.

    The parameters of the model that is given are frozen in place.

    Args:
        model: a CLIP from ``open_clip`` (any patch size, width, heads, depth; GELU or QuickGELU; ``pool_type``
            "tok" or "avg").
        tokenizer: from texts to the text tower's ids; ``None`` where only ids are embedded.

    Attributes:
        recompute: where gradients pass to an image, keep each block's input alone and run the block once more in the
            backward pass: a fraction of the memory, and a forward pass more.

    Raises:
        WeightsError: the image tower is not a plain vision transformer, or the text tower does not give one embedding
            for each text.

    Example:
        >>> import open_clip
        >>> clip = FrozenClip(
        ...     open_clip.CLIP(
        ...         embed_dim=8,
        ...         vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 2},
        ...         text_cfg={"context_length": 5, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1},
        ...     )
        ... )
        >>> tuple(clip.encode_image(torch.zeros(2, 3, 48, 32)).shape)
        (2, 8)
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None = None):
        super().__init__()
        visual = getattr(model, "visual", None)
        if not isinstance(visual, VisionTransformer):
            raise WeightsError(
                f"The CLIP image tower is a {type(visual).__name__}, but only plain vision transformers (ViT) of "
                "open_clip are supported; choose a ViT model such as ViT-B-16-quickgelu."
            )
        blocks = list(visual.transformer.resblocks)
        if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg") or visual.proj is None:
            raise WeightsError(
                "The CLIP image tower pools its tokens by attention or has no projection; choose a ViT model whose "
                "pool_type is 'tok' or 'avg'."
            )
        if len(blocks) < 2 or any(type(block) is not ResidualAttentionBlock for block in blocks):
            raise WeightsError(
                "The CLIP image tower has custom attention blocks or fewer than two blocks; choose a ViT model with "
                "open_clip's default blocks."
            )
        _check_text_tower(model)
        self.model = model
        self.tokenizer = tokenizer
        self.recompute = True
        self._blocks: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (attention_block, class_token_block)
        model.requires_grad_(False)
        self.eval()

    @classmethod
    def example(cls, tokenizer: Tokenizer, patch_size: int = 8, layers: int = 3) -> FrozenClip:
        """A tiny CLIP with random weights, for examples and tests."""
        vision = {"image_size": 4 * patch_size, "patch_size": patch_size, "width": 24, "head_width": 8}
        text = {"context_length": tokenizer.context_length, "vocab_size": tokenizer.vocab_size, "width": 16, "heads": 2}
        return cls(CLIP(12, {**vision, "layers": layers}, {**text, "layers": 1}), tokenizer)

    @property
    def visual(self) -> VisionTransformer:
        """The image tower."""
        return cast(VisionTransformer, cast(Any, self.model).visual)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.visual.patch_size[0])

    @property
    def width(self) -> int:
        """Channels C of the image tower."""
        return int(self.visual.conv1.out_channels)

    @property
    def embed_dim(self) -> int:
        """Dimension E of the joint image-text space."""
        return int(self.visual.proj.shape[1])

    @property
    def depth(self) -> int:
        """Number of blocks of the image tower."""
        return len(self.visual.transformer.resblocks)

    @property
    def context_length(self) -> int:
        """Length L of a token sequence."""
        return int(cast(Any, self.model).context_length)

    def train(self, mode: bool = True) -> FrozenClip:
        """Stay in eval mode whatever is asked: the towers are frozen."""
        return super().train(False)

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Number of patch rows and columns of ``image`` ``[B, 3, H, W]``.

        Raises:
            ValueError: H or W is not a positive multiple of the patch size.
        """
        # Plain numbers, also where a network is traced for export.
        height, width = int(image.shape[-2]), int(image.shape[-1])
        patch = self.patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"image size {height}x{width} is not a positive multiple of the patch size {patch}")
        return height // patch, width // patch

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embed token sequences.

        Args:
            tokens: int64 ``[N, L]``; best on the CPU, wherever the tower is.

        Returns:
            float ``[N, E]``, not normalized.

        Raises:
            ValueError: L is not the context length.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.context_length:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}, expected [N, {self.context_length}]")
        model = cast(Any, self.model)
        device = model.token_embedding.weight.device
        if model.text_pool_type != "argmax" or model.attn_mask is None:
            return model.encode_text(tokens.to(device))
        # Texts are looked at where they are: on a GPU each look would have to wait for it.
        end = tokens.argmax(dim=-1)
        length = int(end.max()) + 1 if len(tokens) else 0
        rows = tokens[:, :length].tolist()
        texts = [row[: last + 1] for row, last in zip(rows, end.tolist(), strict=True)]
        trees = prefix_trees(texts, _MOST_NODES.get(device.type, _MOST_NODES_ELSEWHERE))
        if trees and sum(len(tree) for tree, _ in trees) <= len(tokens) * length * _WORTH_SHARING:
            order = torch.tensor([place for _, places in trees for place in places], device=device)
            x = torch.cat([self._tree_ends(tree) for tree, _ in trees])
            x = torch.empty_like(x).index_copy_(0, order, x)
        else:
            x = text_at_ends(model, tokens, end)
        projection = model.text_projection
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection

    def _tree_ends(self, tree: PrefixTree) -> Tensor:
        """What the text tower says at the ends of the texts of a tree, before the projection: float ``[N, C]``."""
        model = cast(Any, self.model)
        device, dtype = model.token_embedding.weight.device, model.transformer.get_cast_dtype()
        tokens, depths = torch.tensor([tree.tokens, tree.depths], device=device)
        x = (model.token_embedding(tokens).to(dtype) + model.positional_embedding.to(dtype)[depths])[None]
        mask, ends = tree.attention_mask().to(device), torch.tensor(tree.ends, device=device)
        return cast(Tensor, model.ln_final(text_blocks(model, x, mask, ends))[0])

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed whole images; differentiable with respect to the image.

        Args:
            image: float ``[B, 3, H, W]``, normalized; H and W any multiples of the patch size.

        Returns:
            float ``[B, E]``, not normalized.
        """
        visual = self.visual
        pools_class_token = visual.pool_type == "tok"
        if torch.is_grad_enabled() and image.requires_grad:
            tokens = self._light_tokens(image, pools_class_token)
        else:
            tokens = self.tokens_after(image, self.depth)
        if visual.final_ln_after_pool or pools_class_token:
            pooled = visual.ln_post(tokens[:, 0] if pools_class_token else tokens[:, 1:].mean(dim=1))
        else:
            pooled = visual.ln_post(tokens)[:, 1:].mean(dim=1)
        return pooled @ visual.proj

    def tokens(self, image: Tensor, after: Sequence[int], positions: PositionRule = bicubic_positions) -> list[Tensor]:
        """Tokens after several numbers of blocks, in one pass.

        Args:
            image: float ``[B, 3, H, W]``.
            after: numbers of blocks, rising, each between 0 and ``depth``.
            positions: how the trained grid of position embeddings is resized to another one.

        Returns:
            float ``[B, 1 + hw, C]`` for each; the class token comes first.
        """
        tokens, done, found = self._embed_patches(image, positions), 0, []
        for blocks in after:
            tokens, done = self.run_blocks(tokens, done, blocks), blocks
            found.append(tokens)
        return found

    def query_key_value(self, tokens: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a block's attention.

        Args:
            tokens: float ``[B, N, C]`` before the block.
            block: its number, from 0; negative counts from the end.

        Returns:
            float ``[B, heads, N, C / heads]`` each.
        """
        return query_key_value(self.visual.transformer.resblocks[block], tokens)

    def tokens_after(self, image: Tensor, blocks: int) -> Tensor:
        """Tokens after the first ``blocks`` blocks.

        Args:
            image: float ``[B, 3, H, W]``.
            blocks: between 0 and ``depth``.

        Returns:
            float ``[B, 1 + hw, C]``; the class token comes first.
        """
        return self.tokens(image, (blocks,))[0]

    def tokens_before_last(self, image: Tensor) -> Tensor:
        """Tokens ``[B, 1 + hw, C]`` after all blocks but the last."""
        return self.tokens_after(image, self.depth - 1)

    def run_blocks(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Run the blocks ``start`` to ``stop - 1`` on ``tokens`` ``[B, 1 + hw, C]``."""
        for block in list(self.visual.transformer.resblocks)[start:stop]:
            tokens = run_block(block, tokens)
        return tokens

    def last_block_diagonal(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The last block with diagonal attention: CLIP's own dense features before the projection.

        Args:
            tokens: float ``[B, 1 + hw, C]`` of :meth:`tokens_before_last`.
            grid: patch rows h and columns w.

        Returns:
            float ``[B, C, h, w]``; the class token is dropped.
        """
        dense = diagonal_attention_block(self.visual.transformer.resblocks[-1], tokens[:, 1:])
        return dense.unflatten(1, grid).permute(0, 3, 1, 2)

    def project_dense(self, features: Tensor) -> Tensor:
        """Map features ``[B, C, h, w]`` into the joint space ``[B, E, h, w]`` (``ln_post`` and ``proj``)."""
        return project_pixels(features, self.visual.ln_post, self.visual.proj)

    def compile_blocks(self) -> None:
        """Compile the blocks through which gradients pass to the image; one graph serves all of the same shape."""
        self._blocks = (torch.compile(attention_block), torch.compile(class_token_block))

    def _light_tokens(self, image: Tensor, only_class_token: bool) -> Tensor:
        """Tokens after all blocks, keeping only each block's input for the backward pass; the class token or all."""
        tokens = self._embed_patches(image, bicubic_positions)
        *lower, last = list(self.visual.transformer.resblocks)
        run, run_class_token = self._blocks
        top = run_class_token if only_class_token else run
        for each, block in [*((run, block) for block in lower), (top, last)]:
            tokens = _recomputed(each, block, tokens) if self.recompute else each(block, tokens)
        return tokens

    def _embed_patches(self, image: Tensor, positions: PositionRule) -> Tensor:
        grid = self.grid(image)
        visual = self.visual
        patches = visual.conv1(image).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        table = self._position_embedding(grid, positions)
        return visual.ln_pre(torch.cat([class_token, patches], dim=1) + table)

    def _position_embedding(self, grid: tuple[int, int], positions: PositionRule) -> Tensor:
        """Position embedding ``[1 + hw, C]``; its grid part is resized where the grid is not the trained one."""
        visual = self.visual
        trained = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        position = visual.positional_embedding
        if grid == trained:
            return position
        resized = positions(position[1:].unflatten(0, trained).permute(2, 0, 1)[None], grid)
        return torch.cat([position[:1], resized[0].flatten(1).T], dim=0)


def _recomputed(run: Callable[..., Tensor], block: nn.Module, tokens: Tensor) -> Tensor:
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


def _check_text_tower(model: nn.Module) -> None:
    """Refuse a text tower that would fail at the first prompt, or give an embedding for each token.

    Raises:
        WeightsError: the tower does not give one embedding in the joint space for each text.
    """
    if not isinstance(model, CLIP):
        raise WeightsError(
            f"The CLIP is open_clip's {type(model).__name__}, which has a separate text tower; build it as an "
            "open_clip.CLIP, whose tensors have OpenAI's names."
        )
    if model.text_pool_type not in ("argmax", "eos", "first", "last"):
        raise WeightsError(
            f"The CLIP text tower has pool_type {model.text_pool_type!r}, which returns one embedding per token; "
            "choose a CLIP whose text pool_type is 'argmax', 'eos', 'first' or 'last'."
        )
    if model.text_projection is None:
        raise WeightsError("The CLIP text tower has no projection; choose a CLIP whose text proj_type is 'linear'.")
    if len(model.positional_embedding) != model.context_length:
        raise WeightsError(
            "The CLIP text tower has a class token, which open_clip.CLIP does not support; choose a CLIP whose text "
            "embed_cls is false."
        )


def clip_config_from_state_dict(
    state: Mapping[str, Tensor], *, head_width: int = 64, text_heads: int | None = None, quick_gelu: bool = True
) -> dict[str, Any]:
    """Read the sizes of a CLIP with a ViT image tower off its tensors.

    Args:
        state: tensors under OpenAI's (and open_clip's) names.
        head_width: channels per attention head of the image tower; not visible in the tensors.
        text_heads: attention heads of the text tower; ``None`` takes one head per 64 channels, as OpenAI does.
        quick_gelu: whether the model was trained with QuickGELU.

    Returns:
        Keyword arguments of ``open_clip.CLIP``.

    Raises:
        WeightsError: a tensor that tells a size is missing, or the position grid is not square.
    """
    needed = (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.proj",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "positional_embedding",
        "token_embedding.weight",
    )
    missing = [name for name in needed if name not in state]
    if missing:
        raise WeightsError(f"These tensors are not a CLIP with a ViT image tower; missing: {', '.join(missing)}.")
    odd = [x for x in needed if state[x].dim() != (4 if "conv1" in x else 2) or not state[x].numel()]
    if odd:
        sizes = ", ".join(f"{name} {list(state[name].shape)}" for name in odd)
        raise WeightsError(f"These tensors are not a CLIP with a ViT image tower; wrong shapes: {sizes}.")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    positions = state["visual.positional_embedding"].shape[0] - 1
    side = round(positions**0.5)
    if side * side != positions:
        raise WeightsError(f"visual.positional_embedding has {positions} grid positions, which is not a square.")
    vocabulary, text_width = state["token_embedding.weight"].shape
    vision_blocks, text_blocks = "visual.transformer.resblocks.", "transformer.resblocks."
    return {
        "embed_dim": state["visual.proj"].shape[1],
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": side * patch,
            "patch_size": patch,
            "width": width,
            "head_width": head_width,
            "layers": _count_blocks(state, vision_blocks),
            "mlp_ratio": state[f"{vision_blocks}0.mlp.c_fc.weight"].shape[0] / width,
        },
        "text_cfg": {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text_heads if text_heads is not None else max(text_width // 64, 1),
            "layers": _count_blocks(state, text_blocks),
            "mlp_ratio": state[f"{text_blocks}0.mlp.c_fc.weight"].shape[0] / text_width,
        },
    }


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
