"""A frozen CLIP whose image tower gives dense features and passes gradients on to its input.

The towers are open_clip's; this module only walks through them in the three ways the methods need: the ordinary
global embedding at any image size, the tokens part of the way up, and the last block with *diagonal attention*
(each token attends to itself alone, MaskCLIP, arXiv 2112.01071), which keeps the features local.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from tcl_core.errors import WeightsError
from tcl_core.towers.base import PositionRule
from tcl_core.towers.clip_blocks import (
    attention_block,
    class_token_block,
    diagonal_attention_block,
    project_pixels,
    query_key_value,
    recomputed,
    run_block,
)
from tcl_core.towers.clip_text import text_embeddings
from tcl_core.towers.tokenizer import Tokenizer

__all__ = ["FrozenClip", "bicubic_positions", "scaled_bicubic_positions"]


def bicubic_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a grid of position embeddings ``[1, C, h, w]`` bicubically, without antialias, as TCL does."""
    return F.interpolate(table, size=grid, mode="bicubic", align_corners=False)


def scaled_bicubic_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize with the scale factors ``(n + 0.1) / trained`` that SCLIP and its successors give."""
    scale = ((grid[0] + 0.1) / int(table.shape[-2]), (grid[1] + 0.1) / int(table.shape[-1]))
    return F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False, recompute_scale_factor=False)


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
        return text_embeddings(self.model, tokens)

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
            tokens = recomputed(each, block, tokens) if self.recompute else each(block, tokens)
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
