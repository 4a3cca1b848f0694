"""CoDe: image-text co-decomposition (Wu et al., CVPR 2024, arXiv 2404.04231)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.methods.base import PromptEmbeddings
from tcl_core.methods.code.config import CoDeConfig
from tcl_core.methods.code.text import PromptedTexts, TextDecoder, check_text_tower, text_width
from tcl_core.methods.code.training import CoDeTraining
from tcl_core.methods.code.upstream import from_upstream
from tcl_core.methods.registry import register_method
from tcl_core.methods.tcl.grounded import Grounded, InUnits, InverseTemperature
from tcl_core.methods.tcl.losses import unit
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import Tokenizer, WordTokenizer

__all__ = ["CoDe", "CoDePrompts"]

_TEXT_BATCH = 256
_INITIAL_SLOPE = 10.0
_LOSSES = ("tcli_loss.logit_scale", "tclf_loss.logit_scale", "hcl_loss.logit_scale")
_AFFINE = ("weight", "bias")
_DECODER = tuple(
    f"text_decoder.transformer.resblocks.{block}.{name}"
    for block in (0, 1)
    for name in (
        *(f"attn.in_proj_{kind}" for kind in _AFFINE),
        *(f"{part}.{kind}" for part in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for kind in _AFFINE),
    )
)


@dataclass(frozen=True, eq=False)
class CoDePrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]`` for the grounder, the bare prompt behind the learned vectors, L2-normalized.
        preserved: float32 ``[P, E]`` for CLIP's own dense map, the mean over templates that are L2-normalized each,
            normalized again.
    """

    text: Tensor
    preserved: Tensor


@register_method("code")
class CoDe(CoDeTraining, Grounded):
    """TCL's grounder asked by nouns behind a learned prompt, its inference and its losses.

    Args:
        clip: the frozen towers.
        config: settings; ``None`` takes those of the authors' experiments.

    Raises:
        SettingsError: the settings do not fit the CLIP.

    Example:
        >>> code = CoDe.example()
        >>> windows = torch.rand(2, 3, 40, 50)
        >>> prompts = code.embed_prompts(["cat", "red sofa", "sky"], ["a photo of a {}."])
        >>> tuple(code.similarities(code.encode(windows), prompts).shape)
        (2, 3, 40, 50)
    """

    optional_keys = frozenset({"learnable_image_bg", "bg_text", "text_mask_w", "text_mask_b", *_LOSSES, *_DECODER})
    config: CoDeConfig
    config_class = CoDeConfig
    options_class = InUnits

    def __init__(self, clip: FrozenClip, config: CoDeConfig | None = None):
        config = config or CoDeConfig()
        super().__init__(clip, config)
        check_text_tower(clip, config.context_tokens)
        self.clip_text_encoder = PromptedTexts(clip, config.context_tokens)
        side = config.region_prompt_size or cast(tuple[int, int], clip.visual.image_size)[0]
        self.learnable_image_bg = nn.Parameter(torch.zeros(1, 3, side, side))
        self.bg_text = nn.Parameter(torch.zeros(clip.context_length, 1, text_width(clip)))
        self.text_mask_w = nn.Parameter(torch.tensor(_INITIAL_SLOPE))
        self.text_mask_b = nn.Parameter(torch.tensor(0.0))
        self.text_decoder = TextDecoder(text_width(clip))
        self.tcli_loss = InverseTemperature()
        self.tclf_loss = InverseTemperature()
        self.hcl_loss = InverseTemperature()

    @classmethod
    def example(cls) -> Self:
        """A CoDe of three blocks with random weights."""
        words = ("a", "photo", "of", "the", "and", "on", "cat", "dog", "red", "sofa", "sky")
        tokenizer = WordTokenizer(words, context_length=10)
        vision = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3}
        text = {"context_length": 10, "vocab_size": tokenizer.vocab_size, "width": 16, "heads": 2, "layers": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = open_clip.CLIP(16, cast(Any, vision), cast(Any, text))
            method = cls(FrozenClip(model, tokenizer), CoDeConfig(context_tokens=4, tagger="rules"))
            method.masker.open_gates()
            with torch.no_grad():
                method.learnable_image_bg.normal_(std=0.5)
                method.bg_text.normal_(std=0.1)
        return method.eval().requires_grad_(False)

    @classmethod
    def example_prompts(cls) -> tuple[str, ...]:
        """Prompts that `example` knows, and that as captions name two things each."""
        return ("cat and sky", "dog on the sofa", "red sofa and cat", "sky and sofa")

    @classmethod
    def from_upstream(
        cls, state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]
    ) -> UpstreamModel | None:
        """Read a checkpoint of the authors' code, see :func:`tcl_core.methods.code.upstream.from_upstream`."""
        return from_upstream(cls, state, towers)

    # -- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> CoDePrompts:
        """Embed prompts bare behind the learned vectors, and as the mean over templates.

        Args:
            prompts: P texts.
            templates: T texts, each with one ``{}`` for the prompt.

        Raises:
            SettingsError: the tower has no tokenizer.
        """
        if not prompts:
            none = torch.zeros(0, self.clip.embed_dim, device=self.masker.sim2mask.w.device)
            return CoDePrompts(none, none.clone())
        tokens = self.prompt_tokens(prompts, templates)
        nouns = cast(Tokenizer, self.clip.tokenizer)(list(prompts))
        return CoDePrompts(self.embed_nouns(nouns), self.embed_tokens(tokens))

    @property
    def reserved_tokens(self) -> int:
        """The learned vectors stand in front of a bare prompt."""
        return self.config.context_tokens

    @torch.no_grad()
    def embed_nouns(self, nouns: Tensor) -> Tensor:
        """Embed tokenized nouns or class names behind the learned vectors.

        Args:
            nouns: int64 ``[P, L]``.

        Returns:
            float32 ``[P, E]``, L2-normalized.
        """
        prompt = self.clip_text_encoder.prompt_learner
        return torch.cat([unit(prompt(self.clip, part), dim=-1) for part in nouns.split(_TEXT_BATCH)])

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokenized prompts: every template's embedding is normalized, and so is the mean.

        Args:
            tokens: int64 ``[P, T, L]``: P prompts in T templates each.

        Returns:
            float32 ``[P, E]``, L2-normalized.
        """
        prompts, templates, length = tokens.shape
        parts = [unit(self.clip.encode_text(part), dim=-1) for part in tokens.reshape(-1, length).split(_TEXT_BATCH)]
        return F.normalize(torch.cat(parts).unflatten(0, (prompts, templates)).mean(dim=1), dim=-1)

    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """Cosines ``[P, Q]`` of the prompts in their templates, which all methods on a CLIP share."""
        return self.preserved_rows(first) @ self.preserved_rows(second).T

    # -- dense embedding -----------------------------------------------------------------------------------------

    def rows(self, prompts: PromptEmbeddings) -> Tensor:
        """The prompts' embeddings for the grounder, float32 ``[P, E]``, L2-normalized."""
        return unit(cast(CoDePrompts, prompts).text, dim=-1)

    def preserved_rows(self, prompts: PromptEmbeddings) -> Tensor:
        """The prompts' embeddings for CLIP's own dense map, float32 ``[P, E]``, L2-normalized."""
        return unit(cast(CoDePrompts, prompts).preserved, dim=-1)
