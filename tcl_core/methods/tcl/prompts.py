"""Prompts of methods that ask TCL's grounder with the mean over templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.base import PromptEmbeddings
from tcl_core.methods.tcl.grounded import Grounded
from tcl_core.methods.tcl.losses import unit

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
        if self.clip.tokenizer is None:
            raise SettingsError("The CLIP has no tokenizer, so prompts cannot be embedded; import the model with one.")
        # Not str.format: a prompt may hold braces of its own.
        texts = [template.replace("{}", prompt) for prompt in prompts for template in templates]
        tokens = self.clip.tokenizer(texts).unflatten(0, (len(prompts), -1))
        return TCLPrompts(self.embed_tokens(tokens).float())

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
