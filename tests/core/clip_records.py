"""Image towers of recorded parity data as frozen CLIPs; their text towers are of no use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import open_clip
from torch import Tensor

from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["recorded_clip"]


def recorded_clip(visual: Mapping[str, Tensor], embed_dim: int, vision: Mapping[str, Any]) -> FrozenClip:
    """A QuickGELU CLIP whose image tower has recorded tensors (``visual.*``), each of which is used."""
    text = {"context_length": 5, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim, dict(vision), text, quick_gelu=True)
    result = model.load_state_dict(dict(visual), strict=False)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if key.startswith("visual.")]
    return FrozenClip(model)
