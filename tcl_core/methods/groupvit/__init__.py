"""GroupViT (arXiv 2202.11094): groups that emerge from text supervision, named by words afterwards."""

from __future__ import annotations

from tcl_core.methods.groupvit.config import GroupViTConfig, GroupViTOptions
from tcl_core.methods.groupvit.model import GroupViT

__all__ = ["GroupViT", "GroupViTConfig", "GroupViTOptions"]
