"""MGCA-style: TCL's grounder, trained by objects, parts and pixels (after what is known of arXiv 2403.03707)."""

from __future__ import annotations

from tcl_core.methods.mgca.config import MGCAStyleConfig
from tcl_core.methods.mgca.training import MGCAStyleTraining
from tcl_core.methods.registry import register_method
from tcl_core.methods.tcl.grounded import InverseTemperature
from tcl_core.methods.tcl.prompts import TemplateMeans
from tcl_core.towers.open_clip_vit import FrozenClip

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
        >>> import torch
        >>> method = MGCAStyle.example()
        >>> windows = torch.rand(2, 3, 40, 50)
        >>> prompts = method.embed_prompts(["cat", "red sofa", "sky"], ["a photo of a {}."])
        >>> tuple(method.similarities(method.encode(windows), prompts).shape)
        (2, 3, 40, 50)
    """

    config: MGCAStyleConfig
    config_class = MGCAStyleConfig
    optional_keys = frozenset({"object_loss.logit_scale", "region_loss.logit_scale", "pixel_loss.logit_scale"})

    def __init__(self, clip: FrozenClip, config: MGCAStyleConfig | None = None):
        super().__init__(clip, config or MGCAStyleConfig())
        self.object_loss = InverseTemperature()
        self.region_loss = InverseTemperature()
        self.pixel_loss = InverseTemperature()

    @classmethod
    def example_config(cls) -> MGCAStyleConfig:
        """The settings of `example`: few hard pixels, and everything is trained."""
        return MGCAStyleConfig(hard_pixels=6, train_last_block=True)
