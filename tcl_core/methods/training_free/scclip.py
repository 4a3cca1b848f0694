"""SC-CLIP (arXiv 2411.15869): CLIP calibrated by the similarities of its own middle blocks."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.methods.options import option
from tcl_core.methods.registry import register_method
from tcl_core.methods.training_free.base import DenseOptions, TrainingFree
from tcl_core.methods.training_free.self_calibration import (
    aggregation,
    blocks_of,
    cosine_matrix,
    led_attention,
    outliers,
    repair,
    swapped_places,
)
from tcl_core.towers.clip_blocks import query_key_value

__all__ = ["SCCLIP", "SCCLIPOptions"]


class SCCLIPOptions(DenseOptions):
    """The published settings."""

    beta: float = option(
        0.4, "Cosine below which patches are excluded from feature mixing.", affects="features", ge=-1, le=1
    )
    class_token: float = option(0.3, "Share of the class token to add to each patch.", affects="features", ge=0, le=10)
    neighbors: int = option(
        30, "Number of nearest patches for outlier detection; fewer in small windows.", affects="features", ge=1
    )
    upstream_order: bool = option(
        False,
        "In non-square windows, repair the same tokens as the authors' program, which are not the outliers.",
        affects="features",
    )


@register_method("scclip")
class SCCLIP(TrainingFree):
    """Outlier tokens are repaired; middle blocks lead the last attention, and mix what goes in and comes out.

    Example:
        >>> method = SCCLIP.example()
        >>> prompts = method.embed_prompts(["cat", "sky"], ["a photo of a {}."])
        >>> tuple(method.similarities(method.encode(torch.rand(1, 3, 40, 50)), prompts).shape)
        (1, 2, 40, 50)
    """

    options_class = SCCLIPOptions
    options: SCCLIPOptions

    def patch_tokens(self, padded: Tensor) -> Tensor:
        """Tokens ``[B, hw, C]`` of the patches before the final layer norm."""
        options, clip, grid = self.options, self.clip, self.clip.grid(padded)
        blocks, last = blocks_of(clip.depth), clip.visual.transformer.resblocks[-1]
        levels = clip.tokens(padded, tuple(range(1, clip.depth)), self.position_rule)
        # Neighbors, quantiles and cosines of half precision would choose other tokens.
        with torch.autocast(device_type=padded.device.type, enabled=False):
            levels = [level.float() for level in levels]
            patches, class_token = levels[-1][:, 1:], levels[-1][:, :1]
            bad = outliers(patches, options.neighbors)
            if options.upstream_order:
                bad = swapped_places(bad, grid)
            similarity = cosine_matrix(repair(levels[blocks.attention][:, 1:], bad, grid))
            patches = aggregation(similarity, options.beta) @ repair(patches, bad, grid)
            attention = led_attention(similarity)
            mixing = aggregation(cosine_matrix(levels[blocks.features][:, 1:]), options.beta)
            several = torch.stack([levels[level] for level in blocks.levels]).sum(dim=0)
            out = _attend(last, patches, attention) + options.class_token * class_token
            more = _attend(last, several[:, 1:], attention) + options.class_token * several[:, :1]
            return mixing @ (out + more)


def _attend(block: nn.Module, patches: Tensor, led: Tensor) -> Tensor:
    """The attention branch of a block, half led by given attention ``[B, P, P]`` and half by keys with keys."""
    parts = cast(Any, block)
    _, key, value = query_key_value(block, patches)
    mixed = (led[:, None] @ value + F.scaled_dot_product_attention(key, key, value)) / 2
    return parts.ls_1(parts.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
