"""TCL: text-grounded contrastive learning (Cha, Mun and Roh, CVPR 2023, arXiv 2212.00785)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tcl_core.methods.registry import register_method
from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.tcl.grounded import InUnits, InverseTemperature, TCLFeatures, TCLOptions
from tcl_core.methods.tcl.prompts import TCLPrompts, TemplateMeans
from tcl_core.methods.tcl.training import TCLTraining
from tcl_core.methods.tcl.upstream import from_upstream
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["TCL", "TCLFeatures", "TCLOptions", "TCLPrompts"]


@register_method("tcl")
class TCL(TCLTraining, TemplateMeans):
    """The grounder on top of a frozen CLIP, its inference and its losses.

    Args:
        clip: the frozen towers.
        config: settings; ``None`` takes those of the released model.

    Raises:
        SettingsError: ``ie_freeze`` does not fit the CLIP.

    Example:
        >>> import torch
        >>> tcl = TCL.example()
        >>> windows = torch.rand(2, 3, 40, 50)
        >>> prompts = tcl.embed_prompts(["cat", "red sofa", "sky"], ["a photo of a {}."])
        >>> tuple(tcl.similarities(tcl.encode(windows), prompts).shape)
        (2, 3, 40, 50)
    """

    config: TCLConfig
    config_class = TCLConfig
    options_class = InUnits
    optional_keys = frozenset({"tcli_loss.logit_scale", "tclf_loss.logit_scale"})

    def __init__(self, clip: FrozenClip, config: TCLConfig | None = None):
        super().__init__(clip, config or TCLConfig())
        self.tcli_loss = InverseTemperature()
        self.tclf_loss = InverseTemperature()

    @classmethod
    def from_upstream(
        cls, state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]
    ) -> UpstreamModel | None:
        """Read a checkpoint of the authors' code, see :func:`tcl_core.methods.tcl.upstream.from_upstream`."""
        return from_upstream(cls, state, towers)
