"""The trained part of TCL: patch tokens to pixel embeddings, and similarities to masks (section 3.2 of the paper).

Sub-module names follow the released checkpoints, so that a state dict can be exchanged with them.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tcl_core.methods.tcl.config import GrounderConfig
from tcl_core.methods.tcl.gated_conv import gated_conv, gated_conv_inference
from tcl_core.methods.tcl.losses import EPSILON
from tcl_core.towers.clip_blocks import diagonal_attention_block, project_pixels, run_block
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["Decoder", "GatedConv", "Grounder", "ImageEncoder", "SimilarityToMask", "cosine_maps"]


_MOST_VALUES = 1 << 24
"""Of a map at the masks' resolution: 64 MB."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of ``[B, C, h, w]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; the shape stays."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Gate(nn.Module):
    """A learned scalar ``tanh(g)`` that starts at 0, so that the branch behind it starts silent."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x``."""
        return torch.tanh(self.gate) * x


class GatedConv(nn.Module):
    """Pre-activation residual block ``x + tanh(g) Conv(GELU(LN(x)))`` on ``[B, C, h, w]``."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.gate = Gate()

    def forward(self, x: Tensor, upsample: bool = False) -> Tensor:
        """Apply the block; with ``upsample`` to ``x`` of twice its height and width."""
        norm = (self.norm.weight, self.norm.bias, self.norm.eps)
        small = upsample and self.conv.kernel_size == (3, 3)
        x = x if small or not upsample else F.interpolate(x, scale_factor=2, mode="nearest")
        apply = gated_conv if torch.is_grad_enabled() else gated_conv_inference
        return apply(x, norm, (self.conv.weight, cast(Tensor, self.conv.bias)), self.gate.gate, small)


class UpsampleStage(nn.Module):
    """Nearest-neighbor doubling, then one or two gated convolutions."""

    def __init__(self, channels: int, kernel: int, double: bool):
        super().__init__()
        self.conv = GatedConv(channels, kernel)
        if double:
            self.conv2 = GatedConv(channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C, 2h, 2w]``."""
        first, *rest = self.children()
        x = first(x, upsample=True)
        for block in rest:
            x = block(x)
        return x


class GatedUpsampler(nn.Module):
    """The stages in a row; before training it is a nearest-neighbor up-sampler."""

    def __init__(self, channels: int, config: GrounderConfig):
        super().__init__()
        self.net = nn.Sequential(
            *(
                UpsampleStage(channels, config.decoder_kernel, config.decoder_double)
                for _ in range(config.decoder_layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C, s h, s w]`` with ``s = 2 ** decoder_layers``."""
        return self.net(x)


class PixelProjection(nn.Module):
    """A trainable copy of CLIP's last layer norm and projection, applied to each pixel."""

    def __init__(self, clip: FrozenClip):
        super().__init__()
        self.ln = copy.deepcopy(clip.visual.ln_post).requires_grad_(True)
        self.proj = nn.Parameter(clip.visual.proj.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, E, h, w]``."""
        if torch.is_grad_enabled() and x.requires_grad:
            # Normalizing once more is cheaper than keeping what was normalized.
            return cast(
                Tensor, checkpoint(project_pixels, x, self.ln, self.proj, use_reentrant=False, preserve_rng_state=False)
            )
        return project_pixels(x, self.ln, self.proj)


class Decoder(nn.Module):
    """Up-sampler and projection."""

    def __init__(self, clip: FrozenClip, config: GrounderConfig):
        super().__init__()
        self.decoder = GatedUpsampler(clip.width, config)
        self.image_proj = PixelProjection(clip)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, E, s h, s w]``."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self.image_proj(self.decoder(x))
        # Maps at the masks' resolution are the largest tensors of all, and a CPU gains nothing from many at once.
        at_once = max(1, _MOST_VALUES // (x[0].numel() * 4 ** len(self.decoder.net)))
        return torch.cat([self.image_proj(self.decoder(part)) for part in x.split(at_once)])


class Backbone(nn.Module):
    """Trainable copies of CLIP's last blocks; the very last one uses diagonal attention."""

    def __init__(self, clip: FrozenClip, first_block: int):
        super().__init__()
        # The released files keep the blocks' index in the whole tower, hence a dictionary and not a list.
        blocks = {
            str(index): copy.deepcopy(clip.visual.transformer.resblocks[index]).requires_grad_(True)
            for index in range(first_block, clip.depth)
        }
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleDict(blocks)})

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, 1 + hw, C]`` to ``[B, hw, C]``; the class token is dropped."""
        *lower, last = list(cast(nn.ModuleDict, self.transformer["resblocks"]).values())
        for block in lower:
            tokens = run_block(block, tokens)
        return diagonal_attention_block(last, tokens[:, 1:])


class ImageEncoder(nn.Module):
    """Frozen CLIP tokens to pixel embeddings."""

    def __init__(self, clip: FrozenClip, config: GrounderConfig, first_block: int):
        super().__init__()
        self.backbone = Backbone(clip, first_block)
        self.decoder = Decoder(clip, config)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """``[B, 1 + hw, C]`` to the un-normalized embedding V ``[B, E, s h, s w]``."""
        features = self.backbone(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
        return self.decoder(features)


class SimilarityToMask(nn.Module):
    """The logits ``w cos + b`` of a mask, with learned scalars."""

    def __init__(self, config: GrounderConfig):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(float(config.init_w)))
        self.b = nn.Parameter(torch.tensor(float(config.init_b)))

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits of every pixel for every text.

        Args:
            features: float ``[B, E, h, w]``, L2-normalized over E.
            text: float ``[N, E]``, L2-normalized.

        Returns:
            float ``[B, N, h, w]``.
        """
        # Scaling the texts instead of the cosines spares autograd a second tensor of B x N masks.
        return cosine_maps(features, self.w * text) + self.b

    def matching(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits of every pixel for the text of its own image.

        Args:
            features: float ``[B, E, h, w]``, not normalized.
            text: float ``[B, E]``, L2-normalized.

        Returns:
            float ``[B, h, w]``.
        """
        # Dividing the products instead of the features spares autograd a second tensor of the features.
        length = features.norm(dim=1).clamp(min=EPSILON)
        return torch.einsum("be,behw->bhw", self.w * text, features) / length + self.b


def cosine_maps(features: Tensor, text: Tensor) -> Tensor:
    """Similarity of every pixel with every text.

    Args:
        features: float ``[B, E, h, w]``, L2-normalized over E.
        text: float ``[N, E]``, L2-normalized.

    Returns:
        float ``[B, N, h, w]`` in ``[-1, 1]``.
    """
    return (text @ features.flatten(2)).unflatten(2, features.shape[-2:])


class Grounder(nn.Module):
    """What the released checkpoints call ``masker``."""

    def __init__(self, clip: FrozenClip, config: GrounderConfig, first_block: int):
        super().__init__()
        self.image_encoder = ImageEncoder(clip, config, first_block)
        self.sim2mask = SimilarityToMask(config)

    @torch.no_grad()
    def open_gates(self, value: float = 0.5) -> None:
        """Set all gates, which start silent; in an example with random weights a silent part would hide its faults."""
        for module in self.modules():
            if isinstance(module, Gate):
                module.gate.fill_(value)
