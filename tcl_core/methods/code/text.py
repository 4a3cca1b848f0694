"""CoDe's ways through a frozen text tower: learned prompts, word features, and texts with blended words.

Sub-module names follow the authors' checkpoints.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.towers.clip_blocks import attention_block
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = [
    "LearnedPrompt",
    "PromptedTexts",
    "TextDecoder",
    "check_text_tower",
    "encode_embedded",
    "text_ends",
    "text_width",
    "word_states",
]

_DECODER_LAYERS = 2
_HEAD_WIDTH = 64


def text_width(clip: FrozenClip) -> int:
    """Channels of the text tower."""
    return int(cast(Any, clip.model).token_embedding.embedding_dim)


def check_text_tower(clip: FrozenClip, context: int) -> None:
    """Refuse a text tower that CoDe cannot work with.

    Args:
        clip: the frozen towers.
        context: number of learned vectors in front of a noun.

    Raises:
        SettingsError: the tower is not causal, does not read its output at the end of the text, has another width than
            the joint space, or has no room for the prompt.
    """
    model = cast(Any, clip.model)
    if model.attn_mask is None or model.text_pool_type != "argmax":
        raise SettingsError("CoDe needs a CLIP whose text tower is causal and read at the end of the text.")
    if text_width(clip) != clip.embed_dim:
        raise SettingsError(
            f"CoDe compares words with nouns, so the CLIP's text tower must be as wide as its joint space; they have "
            f"{text_width(clip)} and {clip.embed_dim} channels."
        )
    # Start, a word and end.
    most = clip.context_length - 3
    if context > most:
        raise SettingsError(
            f"The CoDe setting context_tokens is {context}, but a text tower of {clip.context_length} positions has "
            f"room for {max(0, most)} beside a noun; set it lower, or use a CLIP with longer texts."
        )


def text_ends(tokens: Tensor) -> Tensor:
    """Place of the end of each text, int64 ``[N]``, in token ids ``[N, L]``: its id is the largest."""
    return tokens.argmax(dim=-1)


def encode_embedded(clip: FrozenClip, words: Tensor, ends: Tensor) -> Tensor:
    """Embed texts whose words are vectors already; differentiable with respect to them.

    Args:
        clip: the frozen towers, with a causal text tower of width C.
        words: float ``[N, T, C]``, without positions.
        ends: place of each text's end, int64 ``[N]``, below T.

    Returns:
        float ``[N, E]``, not normalized.
    """
    model = cast(Any, clip.model)
    x = _through_blocks(clip, words)
    x = model.ln_final(x[torch.arange(len(x), device=x.device), ends])
    projection = model.text_projection
    return cast(Tensor, projection(x) if isinstance(projection, nn.Linear) else x @ projection)


@torch.no_grad()
def word_states(clip: FrozenClip, tokens: Tensor) -> Tensor:
    """What the text tower makes of every token, before its final layer norm.

    Args:
        clip: the frozen towers, with a text tower of width C.
        tokens: int64 ``[N, L]``.

    Returns:
        float ``[N, L, C]``, of the padding as well.
    """
    model = cast(Any, clip.model)
    return _through_blocks(clip, model.token_embedding(tokens.to(model.token_embedding.weight.device)))


def _through_blocks(clip: FrozenClip, words: Tensor) -> Tensor:
    model, length = cast(Any, clip.model), words.shape[1]
    x = words + model.positional_embedding[:length]
    mask = model.attn_mask[:length, :length]
    for block in model.transformer.resblocks:
        x = attention_block(block, x, mask.to(x.dtype))
    return x


class LearnedPrompt(nn.Module):
    """Learned vectors that stand in front of a noun (CoOp, arXiv 2109.01134).

    Args:
        clip: the frozen towers.
        context: number of vectors; they start as the words "a photo of x x x ...".
    """

    def __init__(self, clip: FrozenClip, context: int) -> None:
        super().__init__()
        table = cast(Any, clip.model).token_embedding.weight
        start = torch.empty(context, table.shape[1], device=table.device).normal_(std=0.02)
        if clip.tokenizer is not None:
            ids = clip.tokenizer(["A photo of" + context * " x"])[0, 1 : 1 + context]
            start = table.detach()[ids.to(table.device)].clone()
        self.ctx = nn.Parameter(start.float())

    def forward(self, clip: FrozenClip, nouns: Tensor) -> Tensor:
        """Embed nouns behind the vectors.

        Args:
            clip: the frozen towers.
            nouns: token ids int64 ``[N, L]``, each noun as a text of its own.

        Returns:
            float ``[N, E]``, not normalized.
        """
        unique, places = nouns.unique(dim=0, return_inverse=True)
        room = nouns.shape[1] - 1 - len(self.ctx)
        words, end = unique[:, 1 : 1 + room].clone(), unique.amax(dim=1)
        # A noun that is too long still ends.
        words[:, -1] = torch.where((words == end[:, None]).any(dim=1), words[:, -1], end)
        ends = text_ends(words)
        words = words[:, : int(ends.max()) + 1]
        embed = cast(Any, clip.model).token_embedding
        device = embed.weight.device
        first, rest = embed(unique[:, :1].to(device)), embed(words.to(device))
        context = self.ctx.to(first.dtype).expand(len(unique), -1, -1)
        found = encode_embedded(clip, torch.cat([first, context, rest], dim=1), 1 + len(self.ctx) + ends.to(device))
        return found[places.to(device)]


class PromptedTexts(nn.Module):
    """Holds the learned prompt under its published name."""

    def __init__(self, clip: FrozenClip, context: int) -> None:
        super().__init__()
        self.prompt_learner = LearnedPrompt(clip, context)


class TextDecoder(nn.Module):
    """A small transformer that makes word features; every word sees every other, and the padding.

    Args:
        width: channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transformer = Transformer(width, _DECODER_LAYERS, max(1, width // _HEAD_WIDTH), act_layer=QuickGELU)

    def forward(self, states: Tensor) -> Tensor:
        """``[N, L, C]`` of `word_states` to ``[N, L, C]``, not normalized."""
        for block in self.transformer.resblocks:
            states = attention_block(cast(nn.Module, block), states)
        return states
