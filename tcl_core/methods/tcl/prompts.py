"""Prompts of methods that ask TCL's grounder with the mean over templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.base import PromptEmbeddings
from tcl_core.methods.tcl.config import GrounderConfig
from tcl_core.methods.tcl.grounded import Grounded
from tcl_core.methods.tcl.losses import unit
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer

__all__ = ["TCLPrompts", "TemplateMeans"]

_TEXT_BATCH = 256


@dataclass(frozen=True, eq=False)
class TCLPrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]``, the mean over templates, L2-normalized.
    """

    text: Tensor


class TemplateMeans(Grounded):
    """A grounder that is asked with the mean over templates."""

    @classmethod
    def example_config(cls) -> GrounderConfig:
        """The settings of `example`."""
        return cls.config_class()

    @classmethod
    def example(cls) -> Self:
        """An instance of three blocks with random weights."""
        words = ("a", "photo", "of", "the", "cat", "dog", "red", "sofa", "sky")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            method = cls(FrozenClip.example(WordTokenizer(words, context_length=10)), cls.example_config())
            method.masker.open_gates()
        return method.eval().requires_grad_(False)

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> TCLPrompts:
        """Embed prompts as the mean over templates.

        Args:
            prompts: P texts.
            templates: T texts, each with one ``{}`` for the prompt.

        Raises:
            SettingsError: the tower has no tokenizer.
        """
        if not prompts:
            return TCLPrompts(torch.zeros(0, self.clip.embed_dim, device=self.masker.sim2mask.w.device))
        return TCLPrompts(self.embed_tokens(self.prompt_tokens(prompts, templates)).float())

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokenized prompts: un-normalized embeddings are averaged over templates, then the mean is normalized.

        Args:
            tokens: int64 ``[P, T, L]``: P prompts in T templates each.

        Returns:
            float32 ``[P, E]``, L2-normalized.
        """
        prompts, templates, length = tokens.shape
        parts = [self.clip.encode_text(part).float() for part in tokens.reshape(-1, length).split(_TEXT_BATCH)]
        mean = torch.cat(parts).unflatten(0, (prompts, templates)).mean(dim=1)
        return F.normalize(mean, dim=-1)

    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """Cosines ``[P, Q]`` of the prompts."""
        return self.rows(first) @ self.rows(second).T

    # -- dense embedding -----------------------------------------------------------------------------------------

    def rows(self, prompts: PromptEmbeddings) -> Tensor:
        """The prompts' embeddings, float32 ``[P, E]``, L2-normalized."""
        return unit(cast(TCLPrompts, prompts).text, dim=-1)
