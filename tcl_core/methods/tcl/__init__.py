"""TCL, "Learning to Generate Text-grounded Mask for Open-world Semantic Segmentation" (arXiv 2212.00785)."""

from __future__ import annotations

from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.tcl.model import TCL
from tcl_core.methods.tcl.upstream import (
    config_from_state_dict,
    frozen_clip_state_dict,
    learned_keys,
    learned_state_dict_from_upstream,
)

__all__ = [
    "TCL",
    "TCLConfig",
    "config_from_state_dict",
    "frozen_clip_state_dict",
    "learned_keys",
    "learned_state_dict_from_upstream",
]
