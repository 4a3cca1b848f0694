"""MGCA-style: TCL's grounder, trained by objects, parts and pixels (after what is known of arXiv 2403.03707)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor

from tcl_core.methods.mgca.config import MGCAStyleConfig
from tcl_core.methods.mgca.training import MGCAStyleTraining
from tcl_core.methods.registry import register_method
from tcl_core.methods.tcl.grounded import InverseTemperature
from tcl_core.methods.tcl.prompts import TemplateMeans
from tcl_core.towers.base import Tower
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer

__all__ = ["MGCAStyle"]


@register_method("mgca-style")
class MGCAStyle(MGCAStyleTraining, TemplateMeans):
    """TCL's grounder and inference, with other losses; no reproduction of the paper.

    Args:
        clip: the frozen towers.
        config: settings; ``None`` takes the defaults.

    Raises:
        SettingsError: ``ie_freeze`` does not fit the CLIP.

    Example:
        >>> method = MGCAStyle.example()
        >>> windows = torch.rand(2, 3, 40, 50)
        >>> prompts = method.embed_prompts(["cat", "red sofa", "sky"], ["a photo of a {}."])
        >>> tuple(method.similarities(method.encode(windows), prompts).shape)
        (2, 3, 40, 50)
    """

    config: MGCAStyleConfig
    optional_keys = frozenset({"object_loss.logit_scale", "region_loss.logit_scale", "pixel_loss.logit_scale"})

    def __init__(self, clip: FrozenClip, config: MGCAStyleConfig | None = None):
        super().__init__(clip, config or MGCAStyleConfig())
        self.object_loss = InverseTemperature()
        self.region_loss = InverseTemperature()
        self.pixel_loss = InverseTemperature()

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build from plain settings, see :class:`MGCAStyleConfig`."""
        return cls(cast(FrozenClip, towers["clip"]), MGCAStyleConfig.from_dict(config))

    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.config.to_dict()

    @classmethod
    def example(cls) -> Self:
        """An instance of three blocks with random weights."""
        words = ("a", "photo", "of", "the", "cat", "dog", "red", "sofa", "sky")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = MGCAStyleConfig(hard_pixels=6, train_last_block=True)
            method = cls(FrozenClip.example(WordTokenizer(words, context_length=10)), config)
            method.masker.open_gates()
        return method.eval().requires_grad_(False)

    def forward(self, *batch: Any, **named: Any) -> dict[str, Tensor]:
        """The losses, so that ``DistributedDataParallel`` can wrap the method; see `losses`."""
        return self.losses(*batch, **named)
