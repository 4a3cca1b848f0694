"""MaskCLIP with its two refinements, prompt denoising and key smoothing (arXiv 2112.01071, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.base import Background, Features, PromptEmbeddings
from tcl_core.methods.exportable import ExportableMethod, Run
from tcl_core.methods.options import option, preset
from tcl_core.methods.registry import register_method
from tcl_core.methods.training_free.attention import last_block
from tcl_core.methods.training_free.base import DenseFeatures, DenseOptions, DensePrompts, TrainingFree
from tcl_core.methods.training_free.names import BACKGROUND_NAMES
from tcl_core.towers.clip_blocks import query_key_value
from tcl_core.towers.padding import pad_to_multiple

__all__ = ["KeyedFeatures", "MaskCLIPRefined", "key_affinity", "smooth_by_keys"]

# The refinements' own temperature, whatever the slope of the final softmax is.
_TEMPERATURE = 100.0
# A dropped prompt's cosine: out of reach of every other.
_DROPPED = -100.0


class MaskCLIPRefinedOptions(DenseOptions):
    """The thresholds that the authors' programs have."""

    prompt_denoising: float = option(
        0.5,
        "Drop prompts whose maximum probability in the image is below this; 0 keeps all.",
        affects="scores",
        ge=0,
        le=1,
    )
    key_smoothing: float = option(
        1.0,
        "Patches whose maximum probability is below this take the probabilities of patches with similar keys; 0: none.",
        affects="scores",
        ge=0,
        le=1,
    )
    upstream_key_norm: bool = option(
        False, "Normalize keys over patches instead of channels, as the authors' program does.", affects="scores"
    )


@dataclass(frozen=True, eq=False)
class KeyedFeatures(DenseFeatures):
    """Dense embeddings of B windows with the keys of their last block.

    Attributes:
        keys: float32 ``[B, hw, C]``, after the output projection, not normalized.
    """

    keys: Tensor


@dataclass(frozen=True, eq=False)
class JudgedPrompts(DensePrompts):
    """Embedded prompts, some of which an image does not show.

    Attributes:
        kept: bool ``[P]``.
    """

    kept: Tensor


def key_affinity(keys: Tensor, over_patches: bool = False) -> Tensor:
    """Products ``[B, N, N]`` of normalized keys ``[B, N, C]``: cosines, unless they are normalized over patches."""
    unit = F.normalize(keys.float(), dim=1 if over_patches else 2)
    return unit @ unit.transpose(1, 2)


def smooth_by_keys(shares: Tensor, affinity: Tensor, below: float) -> Tensor:
    """Replace shares by the sum over all patches, weighted by how alike their keys are.

    Args:
        shares: float ``[B, P, N]`` of P prompts at N patches.
        affinity: float ``[B, N, N]``, signed; its rows are not normalized, as in the authors' program.
        below: patches whose best share is lower are replaced; the others stay.

    Returns:
        float ``[B, P, N]``.
    """
    smooth = shares @ affinity.transpose(1, 2)
    return torch.where(shares.amax(dim=1, keepdim=True) < below, smooth, shares)


@register_method("maskclip-refined")
class MaskCLIPRefined(ExportableMethod, TrainingFree):
    """MaskCLIP; prompts that the whole image does not show are dropped, and like patches share their scores.

    Example:
        >>> method = MaskCLIPRefined.example()
        >>> prompts = method.embed_prompts(["cat", "sky"], ["a photo of a {}."])
        >>> features = method.encode(torch.rand(1, 3, 40, 50))
        >>> tuple(method.similarities(features, method.prompts_for_image(features, prompts)).shape)
        (1, 2, 40, 50)
    """

    independent_prompts = False
    options_class = preset(MaskCLIPRefinedOptions, "MaskCLIPRefinedPreset", positions="size", scale=100.0)
    options: MaskCLIPRefinedOptions

    @property
    def background(self) -> Background:
        """The plane of all training-free methods, and few names: every prompt is judged together with all others."""
        return replace(super().background, names=BACKGROUND_NAMES)

    def patch_tokens(self, padded: Tensor) -> Tensor:
        """Tokens ``[B, hw, C]`` of the patches before the final layer norm."""
        return self._tokens_and_keys(padded)[0]

    def _tokens_and_keys(self, padded: Tensor) -> tuple[Tensor, Tensor]:
        (tokens,) = self.clip.tokens(padded, (self.clip.depth - 1,), self.position_rule)
        block = self.clip.visual.transformer.resblocks[-1]
        _, key, _ = query_key_value(block, tokens[:, 1:])
        keys = cast(Any, block).attn.out_proj(key.transpose(1, 2).flatten(2))
        return last_block(block, tokens[:, 1:], "identity", residual=True), keys

    def window_tensors(self, padded: Tensor) -> tuple[Tensor, ...]:
        """The patches' embeddings ``[B, E, h, w]``, L2-normalized over E, and their keys ``[B, hw, C]``."""
        tokens, keys = self._tokens_and_keys(padded)
        return self.projected(tokens, self.clip.grid(padded)), keys.float()

    def encode_through(self, run: Run, windows: Tensor) -> KeyedFeatures:
        """Embed each patch of windows float32 ``[B, 3, H, W]``, zero-padded to whole patches inside."""
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        dense, keys = run(padded)
        return KeyedFeatures(**vars(self.features_from(dense, windows, padded, offset)), keys=keys)

    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> JudgedPrompts:
        """Embed prompts; before an image is seen all of them are kept."""
        text = super().embed_prompts(prompts, templates).text
        return JudgedPrompts(text, torch.ones(len(text), dtype=torch.bool, device=text.device))

    @torch.no_grad()
    def prompts_for_image(self, features: Features, prompts: PromptEmbeddings) -> JudgedPrompts:
        """Drop prompts whose best share, over all patches of all windows, is below the threshold.

        Args:
            features: of all windows of one image.
            prompts: P of them, all that compete.
        """
        prompts = cast(JudgedPrompts, prompts)
        if not self.options.prompt_denoising or not len(prompts) or not len(features):
            return prompts
        with torch.autocast(device_type=prompts.text.device.type, enabled=False):
            shares = torch.softmax(_TEMPERATURE * self.patch_cosines(cast(DenseFeatures, features), prompts), dim=1)
        return replace(prompts, kept=shares.amax(dim=(0, 2, 3)) >= self.options.prompt_denoising)

    def patch_scores(self, features: KeyedFeatures, prompts: JudgedPrompts) -> Tensor:
        """What the authors' head gives for patches, float32 ``[B, P, h, w]``.

        Cosines, -100 for dropped prompts; with key smoothing shares instead, whose sums are not normalized.
        """
        if not self.options.key_smoothing:
            return self._kept_cosines(features, prompts)
        return self._smoothed(features, prompts)[0]

    def _kept_cosines(self, features: DenseFeatures, prompts: JudgedPrompts) -> Tensor:
        kept = prompts.kept.to(features.dense.device)[:, None, None]
        return self.patch_cosines(features, prompts).masked_fill(~kept, _DROPPED)

    def _smoothed(self, features: KeyedFeatures, prompts: JudgedPrompts) -> tuple[Tensor, Tensor]:
        """Smoothed shares ``[B, P, h, w]`` and the greatest sum ``[B, 1, h, w]`` that they could have."""
        cosines = self._kept_cosines(features, prompts)
        kept = prompts.kept.to(cosines.device)[:, None]
        # Where every prompt was dropped the softmax would share a patch among them.
        shares = torch.softmax(_TEMPERATURE * cosines, dim=1).flatten(2).masked_fill(~kept, 0)
        affinity = key_affinity(features.keys.to(cosines.device), self.options.upstream_key_norm)
        below = self.options.key_smoothing
        smooth = smooth_by_keys(shares, affinity, below)
        weights = smooth_by_keys(torch.ones_like(shares[:, :1]), affinity.abs(), float("inf"))
        weights = torch.where(shares.amax(dim=1, keepdim=True) < below, weights, torch.ones_like(weights))
        return smooth.unflatten(2, cosines.shape[2:]), weights.unflatten(2, cosines.shape[2:])

    def patch_maps(self, features: DenseFeatures, prompts: DensePrompts) -> Tensor:
        """Cosines, or with key smoothing shares, float32 ``[B, P, h, w]`` of patches.

        Smoothed shares are divided by the sum of the weights, so that windows can be averaged; at a patch that leaves
        the order of prompts as it is.
        """
        if not self.options.key_smoothing:
            return self._kept_cosines(features, cast(JudgedPrompts, prompts))
        smooth, weights = self._smoothed(cast(KeyedFeatures, features), cast(JudgedPrompts, prompts))
        return smooth / weights.clamp(min=torch.finfo(weights.dtype).tiny)

    def shares(self, merged: Tensor) -> Tensor:
        """Smoothed similarities are shares but for their sum; others are soft-maxed over all names."""
        if not self.options.key_smoothing:
            # Where every prompt was dropped nothing has a share, or the first label would cover the image.
            return super().shares(merged).masked_fill_(merged.amax(dim=0) <= _DROPPED / 2, 0)
        # Keys can be opposed, so that a smoothed share can be negative.
        positive = merged.clamp(min=0)
        return positive / positive.sum(dim=0, keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)
