"""A small TCL with nothing left at its silent initial value, for the tests of the method."""

from __future__ import annotations

from functools import partial
from typing import Any

import open_clip
import torch

from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.methods.tcl import TCL, TCLConfig
from tcl_core.methods.tcl.model import TCLFeatures, TCLPrompts
from tcl_core.refinement.base import Guide
from tcl_core.refinement.pamr import Pamr
from tcl_core.towers.open_clip_vit import FrozenClip

CONTEXT, VOCABULARY = 6, 30


def small_clip(**vision: Any) -> FrozenClip:
    cfg = {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3} | vision
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FrozenClip(open_clip.CLIP(embed_dim=12, vision_cfg=cfg, text_cfg=text))


def small_tcl(config: TCLConfig | None = None, **vision: Any) -> TCL:
    clip = small_clip(**vision)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tcl = TCL(clip, config)
        with torch.no_grad():
            for name, parameter in tcl.masker.named_parameters():
                if name.endswith("gate.gate"):
                    parameter.fill_(0.5)
                elif not name.startswith("sim2mask"):
                    parameter.add_(0.1 * parameter.std(unbiased=False) * torch.randn_like(parameter))
    return tcl


def captions(count: int, seed: int = 0) -> torch.Tensor:
    """Token ids ``[count, CONTEXT]`` that start with the last but one id and end with the last."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCABULARY - 2, (count, CONTEXT), generator=generator)
    tokens[:, 0], tokens[:, -1] = VOCABULARY - 2, VOCABULARY - 1
    return tokens


def score_maps(
    tcl: TCL, features: TCLFeatures, text: torch.Tensor, guide: Guide | None = None, kp_weight: float = 0.0
) -> torch.Tensor:
    """Score maps of windows for embedded texts ``[P, E]``, of pixels by themselves as in the paper."""
    refine = None if guide is None else partial(Pamr().refine, guide)
    return tcl.configured({"kp_weight": kp_weight, **PIXELS}).similarities(features, TCLPrompts(text), refine)


def pamr_guide(tcl: TCL, windows: torch.Tensor) -> Guide:
    return tcl.window_guide(Pamr(), windows)
