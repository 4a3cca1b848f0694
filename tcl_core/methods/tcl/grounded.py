"""What methods with TCL's grounder share at inference: pixel embeddings, and from prompts to refined masks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Background, Features, PromptEmbeddings
from tcl_core.methods.exportable import ExportableMethod, Run
from tcl_core.methods.options import option, preset
from tcl_core.methods.prompts import texts_in_templates
from tcl_core.methods.semantic_unit import POINTS, Parts, UnitOptions, cosines_in_units
from tcl_core.methods.tcl.config import GrounderConfig
from tcl_core.methods.tcl.grounder import Grounder, cosine_maps
from tcl_core.methods.tcl.losses import unit
from tcl_core.refinement.base import Guide, Refine, ScoreRefiner
from tcl_core.towers.base import Tower
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.padding import pad_to_multiple

__all__ = ["Grounded", "InUnits", "InverseTemperature", "TCLFeatures", "TCLOptions"]

_MAX_SCALE = 100.0
_DECODED_TOGETHER = 8  # windows: 448 x 448 pixels each are 0.2 GB in float32 behind the decoder


class TCLOptions(UnitOptions):
    """Options of TCL's inference (section 4.1 and appendix of the paper; knowledge preservation, "KP")."""

    kp_weight: float = option(
        0.3, "Share of CLIP's own dense map in the scores (knowledge preservation).", affects="scores", ge=0, le=1
    )
    kp_scale: float = option(10.0, "Slope of the sigmoid of CLIP's own dense map.", affects="scores", gt=0)
    kp_threshold: float = option(
        0.25, "Cosine at which CLIP's own dense map has the score 0.5.", affects="scores", ge=-1, le=1
    )


InUnits = preset(TCLOptions, "InUnits", unit_points=POINTS)
"""The options of those that gain by the adaptive semantic unit, see ``docs/mgca.md``."""


@dataclass(frozen=True, eq=False)
class TCLFeatures(Features):
    """All that TCL knows of B windows before it has seen a prompt.

    Attributes:
        image_emb: ``[B, E, mh, mw]``, the grounder's embedding of each mask pixel, L2-normalized over E.
        dense: ``[B, E, h, w]``, CLIP's own dense embedding of each patch, L2-normalized over E.
        affinity: see `tcl_core.methods.semantic_unit.Parts`.
        units: the same.
        made_with: the same.
        size: height and width of the windows in pixels.
        padded: height and width after zero padding to whole patches.
        offset: padding ``(top, left)`` in pixels.
    """

    image_emb: Tensor
    dense: Tensor
    affinity: Tensor
    units: Tensor
    made_with: tuple[int, int]
    size: tuple[int, int]
    padded: tuple[int, int]
    offset: tuple[int, int]

    @classmethod
    def of(
        cls,
        image_emb: Tensor,
        dense: Tensor,
        options: UnitOptions,
        size: tuple[int, int],
        padded: tuple[int, int],
        offset: tuple[int, int],
    ) -> Self:
        """Features with the parts that the options ask for."""
        parts = Parts.of(image_emb, options)
        return cls(image_emb, dense, parts.affinity, parts.units, parts.made_with, size, padded, offset)

    @property
    def parts(self) -> Parts:
        """Of the adaptive semantic unit, made with the options that windows were encoded with."""
        return Parts(self.affinity, self.units, self.made_with)


class InverseTemperature(nn.Module):
    """The learned scale of a contrastive term, ``min(exp(s), 100)``, initially ``1 / 0.07``."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        return self.logit_scale.exp().clamp(max=_MAX_SCALE)


class Grounded(ExportableMethod):
    """A grounder on top of a frozen CLIP, and its inference.

    Args:
        clip: the frozen towers.
        config: settings.

    Raises:
        SettingsError: ``ie_freeze`` does not fit the CLIP.
    """

    tower_names = ("clip",)
    config_class: ClassVar[type[GrounderConfig]]
    options_class: ClassVar[type[TCLOptions]] = TCLOptions
    options: TCLOptions

    def __init__(self, clip: FrozenClip, config: GrounderConfig):
        super().__init__(
            self.options_class().changed(
                {
                    "kp_weight": config.kp_weight,
                    "kp_scale": config.kp_scale,
                    "kp_threshold": config.kp_threshold,
                }
            )
        )
        self.clip = clip
        self.config = config
        self.first_block = clip.depth - 1 if config.ie_freeze is None else config.ie_freeze
        if not 1 <= self.first_block < clip.depth:
            raise SettingsError(
                f"The {config.method} setting ie_freeze is {self.first_block}, but must be between 1 and "
                f"{clip.depth - 1} for an image tower of {clip.depth} blocks."
            )
        self.masker = Grounder(clip, config, self.first_block)

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build from plain settings, see the method's configuration."""
        return cls(cast(FrozenClip, towers["clip"]), cls.config_class.from_dict(config))

    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.config.to_dict()

    def prompt_tokens(self, prompts: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Token ids int64 ``[P, T, L]`` of every prompt in every template.

        Raises:
            SettingsError: the tower has no tokenizer.
        """
        if self.clip.tokenizer is None:
            raise SettingsError("The CLIP has no tokenizer, so prompts cannot be embedded; import the model with one.")
        texts = texts_in_templates(prompts, templates)
        return self.clip.tokenizer(texts).unflatten(0, (len(prompts), -1))

    @property
    def background(self) -> Background:
        """The paper's constant plane, with and without refinement."""
        return Background("plane", self.config.heights())

    def window_tensors(self, padded: Tensor) -> tuple[Tensor, ...]:
        """The grounder's embeddings ``[B, E, mh, mw]`` and CLIP's own ``[B, E, h, w]``, both L2-normalized over E."""
        grid = self.clip.grid(padded)
        tokens, before_last = self.clip.tokens(padded, after=(self.first_block, self.clip.depth - 1))
        # The decoder's convolutions at sixteen times the patches set the peak of memory, not the tower.
        parts = [unit(self.masker.image_encoder(part, grid), dim=1) for part in tokens.split(_DECODED_TOGETHER)]
        dense = self.clip.project_dense(self.clip.last_block_diagonal(before_last, grid))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), unit(dense, dim=1)

    def encode_through(self, run: Run, windows: Tensor) -> TCLFeatures:
        """Embed windows float32 ``[B, 3, H, W]`` for any number of prompts."""
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        image_emb, dense = run(padded)
        return TCLFeatures.of(
            image_emb,
            dense,
            self.options,
            size=(int(windows.shape[-2]), int(windows.shape[-1])),
            padded=(int(padded.shape[-2]), int(padded.shape[-1])),
            offset=offset,
        )

    @torch.no_grad()
    def window_guide(self, refiner: ScoreRefiner, windows: Tensor) -> Guide:
        """Guides of windows ``[B, 3, H, W]``, at the masks' resolution or at ``refine_scale``."""
        padded, _ = pad_to_multiple(windows, self.clip.patch_size)
        rows, columns = self.clip.grid(padded)
        scale = self.config.refine_scale or 2**self.config.decoder_layers
        return refiner.prepare(padded, (rows * scale, columns * scale))

    @torch.no_grad()
    def similarities(self, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
        r"""Masks :math:`\sigma(w \cos(V, t) + b)`, refined, blended with CLIP's own dense map, and up-sampled.

        Args:
            features: of B windows.
            prompts: P of them, normalized or not.
            refine: bound to the same windows; ``None`` for no refinement.

        Returns:
            float32 ``[B, P, H, W]`` in ``[0, 1]``, without the padding. The dense map is
            :math:`\sigma(10 (\cos(\text{CLIP}, t) - 0.25))`, its share ``kp_weight``; 0 leaves it out.
        """
        features, options = cast(TCLFeatures, features), self.options
        if not len(prompts):
            return features.image_emb.new_zeros(len(features), 0, *features.size, dtype=torch.float32)
        with torch.autocast(device_type=features.image_emb.device.type, enabled=False):
            device = features.image_emb.device
            text = self.rows(prompts).to(device)
            masks = self._masks(features, text)
            if refine is not None:
                masks = refine(masks)
            if options.kp_weight:
                kept = self.preserved_rows(prompts).to(device)
                masks = masks.lerp_(self._preserved(features, kept, masks.shape[-2:]), options.kp_weight)
            masks = F.interpolate(masks, size=features.padded, mode="bilinear")
        (top, left), (height, width) = features.offset, features.size
        # Rounding in the weighted means may leave the unit interval by some 1e-7.
        return masks[..., top : top + height, left : left + width].clamp_(0, 1)

    def _masks(self, features: TCLFeatures, text: Tensor) -> Tensor:
        """Masks ``[B, P, mh, mw]`` in ``[0, 1]`` before refinement: `score` of pixels in their units."""
        logits = self.masker.sim2mask
        cosines = cosines_in_units(features.image_emb, logits.w * text, self.options, features.parts)
        return cosines.add_(logits.b).sigmoid_()

    def _preserved(self, features: TCLFeatures, text: Tensor, size: Sequence[int]) -> Tensor:
        """CLIP's own dense map (knowledge preservation), float32 ``[B, P, *size]`` in ``[0, 1]``."""
        options = self.options
        dense = options.kp_scale * (cosine_maps(features.dense.float(), text) - options.kp_threshold)
        return F.interpolate(torch.sigmoid(dense), size=tuple(size), mode="bilinear")

    @torch.no_grad()
    def name_values(self, features: Features, names: PromptEmbeddings) -> Tensor:
        """Masks blended with CLIP's own dense maps, not refined: float32 ``[B, P, mh, mw]``."""
        features = cast(TCLFeatures, features)
        with torch.autocast(device_type=features.image_emb.device.type, enabled=False):
            device = features.image_emb.device
            masks = self._masks(features, self.rows(names).to(device))
            if self.options.kp_weight:
                kept = self.preserved_rows(names).to(device)
                masks = masks.lerp_(self._preserved(features, kept, masks.shape[-2:]), self.options.kp_weight)
            return masks

    # -- dense embedding -----------------------------------------------------------------------------------------

    def pixels(self, features: Features) -> Tensor:
        """The grounder's embeddings, float32 ``[B, E, mh, mw]``, L2-normalized."""
        return cast(TCLFeatures, features).image_emb.float()

    @abstractmethod
    def rows(self, prompts: PromptEmbeddings) -> Tensor:
        """The prompts' embeddings for the grounder, float32 ``[P, E]``, L2-normalized."""

    def preserved_rows(self, prompts: PromptEmbeddings) -> Tensor:
        """The prompts' embeddings for CLIP's own dense map, float32 ``[P, E]``, L2-normalized; by default `rows`."""
        return self.rows(prompts)

    def score(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Masks ``[B, P, mh, mw]`` in ``[0, 1]`` before refinement."""
        return self.masker.sim2mask(pixels, rows).sigmoid_()
