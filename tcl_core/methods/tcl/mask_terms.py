"""What TCL's objective needs to know of all B x N masks, without ever holding them all.

The masks of every image for every text are by far the largest tensors of a training step. Whatever the losses take
from them is a few numbers for each image, so the images are worked through in parts, and the backward pass makes the
masks of each part once more instead of keeping them (Chen et al., arXiv 1604.06174).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tcl_core.methods.tcl.grounder import cosine_maps
from tcl_core.methods.tcl.losses import pool_by_masks, unit, variations

__all__ = ["MaskTerms", "Terms", "mask_terms", "mask_terms_in_parts", "terms_in_parts", "terms_of_masks"]

# Of masks that are alive at a time: 16 MiB a tensor stays within the caches of a CPU, and still fills a GPU.
_MOST_ELEMENTS = 2**22


class MaskTerms(NamedTuple):
    """Numbers about the masks of B images for N texts, float32.

    Attributes:
        rows: ``[B, N]``, cosine of each text with the embedding that its mask pools from the image.
        areas: ``[B, N]``, mean of each mask.
        variations: ``[B]``, total variation of an image's masks.
    """

    rows: Tensor
    areas: Tensor
    variations: Tensor


Terms = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""Numbers about the masks of images, each of its own image alone, from what `mask_terms` takes."""


def mask_terms(pixels: Tensor, texts: Tensor, slope: Tensor, offset: Tensor) -> MaskTerms:
    r"""The terms of the masks :math:`\sigma(w \cos(V, t) + b)`, all at once.

    Args:
        pixels: V, float32 ``[B, E, h, w]``, not normalized.
        texts: t, float32 ``[N, E]``, L2-normalized.
        slope: w, a scalar.
        offset: b, a scalar.
    """
    # Scaling the texts instead of the cosines spares autograd a second tensor of B x N masks.
    masks = torch.sigmoid(cosine_maps(unit(pixels, dim=1), slope * texts) + offset)
    return terms_of_masks(pixels, texts, masks)


def terms_of_masks(pixels: Tensor, texts: Tensor, masks: Tensor) -> MaskTerms:
    """The terms of given masks, float32 ``[B, N, h, w]``, see `mask_terms`."""
    pooled = unit(pool_by_masks(pixels, masks), dim=-1)
    return MaskTerms(torch.einsum("bne,ne->bn", pooled, texts), masks.mean(dim=(2, 3)), variations(masks))


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Terms, part: int, pixels: Tensor, *shared: Tensor) -> tuple[Tensor, ...]:
        ctx.function, ctx.part = function, part
        ctx.save_for_backward(pixels, *shared)
        found = [function(images, *shared) for images in pixels.split(part)]
        return tuple(torch.cat(terms) for terms in zip(*found, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pixels, *shared = ctx.saved_tensors
        needed = [number for number, needs in enumerate(ctx.needs_input_grad[3:]) if needs]
        totals = {number: torch.zeros_like(shared[number]) for number in needed}
        grad = torch.empty_like(pixels) if ctx.needs_input_grad[2] else None
        for start in range(0, len(pixels), ctx.part):
            own = slice(start, start + ctx.part)
            images = pixels[own].detach().requires_grad_(grad is not None)
            inputs = [x.detach().requires_grad_(number in totals) for number, x in enumerate(shared)]
            with torch.enable_grad():
                terms = ctx.function(images, *inputs)
            wanted = [*([images] if grad is not None else []), *(inputs[number] for number in needed)]
            found = list(torch.autograd.grad(terms, wanted, [g[own] for g in grads]))
            if grad is not None:
                grad[own] = found.pop(0)
            for number, value in zip(needed, found, strict=True):
                totals[number] += value
        return None, None, grad, *(totals.get(number) for number in range(len(shared)))


def mask_terms_in_parts(
    pixels: Tensor, texts: Tensor, slope: Tensor, offset: Tensor, part: int | None = None
) -> MaskTerms:
    """The same as `mask_terms`, a few images at a time.

    Args:
        pixels: float32 ``[B, E, h, w]``, not normalized.
        texts: float32 ``[N, E]``, L2-normalized.
        slope: a scalar.
        offset: a scalar.
        part: images at a time; ``None`` takes as many as fit into a fixed bound, at least one.

    Returns:
        The terms; differentiable once.
    """
    return MaskTerms(*terms_in_parts(mask_terms, pixels, texts, slope, offset, part))


def terms_in_parts(
    function: Terms, pixels: Tensor, texts: Tensor, slope: Tensor, offset: Tensor, part: int | None = None
) -> tuple[Tensor, ...]:
    """The same as ``function(pixels, texts, slope, offset)``, a few images at a time; see `mask_terms_in_parts`."""
    if part is None:
        part = max(1, _MOST_ELEMENTS // max(1, len(texts) * pixels.shape[-2] * pixels.shape[-1]))
    return tuple(_InParts.apply(function, part, pixels, texts, slope, offset))
