"""TCL: text-grounded contrastive learning (Cha, Mun and Roh, CVPR 2023, arXiv 2212.00785)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.base import PromptEmbeddings
from tcl_core.methods.registry import register_method
from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.tcl.grounded import Grounded, InverseTemperature, TCLFeatures, TCLOptions
from tcl_core.methods.tcl.losses import unit
from tcl_core.methods.tcl.training import TCLTraining
from tcl_core.methods.tcl.upstream import from_upstream
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.towers.base import Tower
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer

__all__ = ["TCL", "TCLFeatures", "TCLOptions", "TCLPrompts"]

_TEXT_BATCH = 256


@dataclass(frozen=True, eq=False)
class TCLPrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]``, the mean over templates, L2-normalized.
    """

    text: Tensor


@register_method("tcl")
class TCL(TCLTraining, Grounded):
    """The grounder on top of a frozen CLIP, its inference and its losses.

    Args:
        clip: the frozen towers.
        config: settings; ``None`` takes those of the released model.

    Raises:
        SettingsError: ``ie_freeze`` does not fit the CLIP.

    Example:
        >>> tcl = TCL.example()
        >>> windows = torch.rand(2, 3, 40, 50)
        >>> prompts = tcl.embed_prompts(["cat", "red sofa", "sky"], ["a photo of a {}."])
        >>> tuple(tcl.similarities(tcl.encode(windows), prompts).shape)
        (2, 3, 40, 50)
    """

    optional_keys = frozenset({"tcli_loss.logit_scale", "tclf_loss.logit_scale"})

    def __init__(self, clip: FrozenClip, config: TCLConfig | None = None):
        super().__init__(clip, config or TCLConfig())
        self.tcli_loss = InverseTemperature()
        self.tclf_loss = InverseTemperature()

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build from plain settings, see :class:`TCLConfig`."""
        return cls(cast(FrozenClip, towers["clip"]), TCLConfig.from_dict(config))

    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.config.to_dict()

    @classmethod
    def example(cls) -> Self:
        """A TCL of three blocks with random weights."""
        words = ("a", "photo", "of", "the", "cat", "dog", "red", "sofa", "sky")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            method = cls(FrozenClip.example(WordTokenizer(words, context_length=10)))
            with torch.no_grad():
                for name, parameter in method.masker.named_parameters():
                    # Gates start silent, and a silent part would hide its faults.
                    if name.endswith("gate.gate"):
                        parameter.fill_(0.5)
        return method.eval().requires_grad_(False)

    @classmethod
    def from_upstream(
        cls, state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]
    ) -> UpstreamModel | None:
        """Read a checkpoint of the authors' code, see :func:`tcl_core.methods.tcl.upstream.from_upstream`."""
        return from_upstream(cls, state, towers)

    # -- inference -----------------------------------------------------------------------------------------------

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

    def forward(self, *batch: Any, **named: Any) -> dict[str, Tensor]:
        """The losses, so that ``DistributedDataParallel`` can wrap the method; see `losses`."""
        return self.losses(*batch, **named)
