"""MaskCLIP, SCLIP, ClearCLIP and NACLIP: one class, four presets of its options."""

from __future__ import annotations

from torch import Tensor

from tcl_core.methods.exportable import ExportableMethod, Run
from tcl_core.methods.options import option, preset
from tcl_core.methods.registry import register_method
from tcl_core.methods.semantic_unit import POINTS
from tcl_core.methods.training_free.attention import Attention, gaussian_window, last_block
from tcl_core.methods.training_free.base import DenseFeatures, DenseOptions, TrainingFree
from tcl_core.towers.padding import pad_to_multiple

__all__ = ["ClearCLIP", "LastBlock", "LastBlockOptions", "MaskCLIP", "NACLIP", "SCLIP"]


class LastBlockOptions(DenseOptions):
    """What the last block does instead of CLIP's attention."""

    attention: Attention = option(
        "kk",
        "What tokens of the last block compare to attend to each other; identity: each token attends only to itself.",
        affects="features",
    )
    sigma: float = option(
        0.0,
        "Width, in patches, of the window that favors neighbors in the last block; 0: none.",
        affects="features",
        ge=0,
    )
    residual: bool = option(
        False, "Keep the residual connection and the feed-forward network of the last block.", affects="features"
    )


class LastBlock(ExportableMethod, TrainingFree):
    """A CLIP whose last block attends otherwise; sub-classes are presets of the options."""

    options_class = LastBlockOptions
    options: LastBlockOptions

    def all_tokens(self, padded: Tensor) -> Tensor:
        """Tokens ``[B, 1 + hw, C]`` before the final layer norm; the class token comes first."""
        options = self.options
        (tokens,) = self.clip.tokens(padded, (self.clip.depth - 1,), self.position_rule)
        bias = None
        if options.sigma and options.attention != "identity":
            bias = gaussian_window(self.clip.grid(padded), options.sigma, tokens.device)
        block = self.clip.visual.transformer.resblocks[-1]
        return last_block(block, tokens, options.attention, residual=options.residual, bias=bias)

    def patch_tokens(self, padded: Tensor) -> Tensor:
        """Tokens ``[B, hw, C]`` of the patches before the final layer norm."""
        return self.all_tokens(padded)[:, 1:]

    def window_tensors(self, padded: Tensor) -> tuple[Tensor, ...]:
        """The patches' embeddings ``[B, E, h, w]``, L2-normalized over E."""
        return (self.projected(self.patch_tokens(padded), self.clip.grid(padded)),)

    def encode_through(self, run: Run, windows: Tensor) -> DenseFeatures:
        """Embed each patch of windows float32 ``[B, 3, H, W]``, zero-padded to whole patches inside."""
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        return self.features_from(run(padded)[0], windows, padded, offset)


@register_method("maskclip")
class MaskCLIP(LastBlock):
    """MaskCLIP (arXiv 2112.01071) without its refinements: each token of the last block attends to itself alone.

    Example:
        >>> import torch
        >>> method = MaskCLIP.example()
        >>> prompts = method.embed_prompts(["cat", "sky"], ["a photo of a {}."])
        >>> tuple(method.similarities(method.encode(torch.rand(1, 3, 40, 50)), prompts).shape)
        (1, 2, 40, 50)
    """

    options_class = preset(
        LastBlockOptions,
        "MaskCLIPOptions",
        attention="identity",
        residual=True,
        positions="size",
        scale=100.0,
        unit_points=POINTS,
    )


@register_method("sclip")
class SCLIP(LastBlock):
    """SCLIP (arXiv 2312.01597): tokens attend by queries and by keys, the sum of both."""

    options_class = preset(LastBlockOptions, "SCLIPOptions", attention="qq+kk", residual=True)


@register_method("clearclip")
class ClearCLIP(LastBlock):
    """ClearCLIP (arXiv 2407.12442): queries attend to queries, and the attention's output alone is kept."""

    options_class = preset(LastBlockOptions, "ClearCLIPOptions", attention="qq", scale=50.0)


@register_method("naclip")
class NACLIP(LastBlock):
    """NACLIP (arXiv 2404.08181): keys attend to keys, neighbors are favored, and the attention's output is kept."""

    options_class = preset(LastBlockOptions, "NACLIPOptions", attention="kk", sigma=5.0)
