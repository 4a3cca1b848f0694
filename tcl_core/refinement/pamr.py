"""Pixel-adaptive mask refinement (PAMR), split into a part per image and a part per mask.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020 (arXiv 2005.08104). The
affinities depend on the image alone, so that a new prompt costs only the iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.refinement.base import Guide

__all__ = ["DILATIONS", "ITERATIONS", "Pamr", "PamrAffinity", "pamr", "pamr_affinity", "refine_masks"]

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances in pixels at which the eight neighbors are looked up."""
ITERATIONS = 10
"""Number of smoothing steps."""

_STD_WEIGHT = 0.1
_EPSILON = 1e-8
# The planes of a chunk and its affinities should stay in a core's cache while the 48 neighbors are summed.
_CHUNK_VALUES = 1 << 18
# Bounds the memory for the 54 samples of each pixel; strips of an image are independent.
_STRIP_PIXELS = 1 << 15
# Other devices gain nothing from a cache and pay for every call, so that they do as much at once as memory allows.
_DEVICE_STRIP_PIXELS = 1 << 18
_DEVICE_CHUNK_VALUES = 1 << 26
# Partial sums over blocks of neighbors keep the rounding error of ten steps near 1e-6.
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class PamrAffinity(Guide):
    """Weights with which each pixel takes over its neighbors' mask values.

    Attributes:
        weights: float32 ``[B, 8 * len(dilations), h, w]``; they sum to 1 over the neighbors.
        dilations: distances of the neighbors, in the order of ``weights``.
    """

    weights: Tensor
    dilations: tuple[int, ...] = DILATIONS

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at which masks are refined."""
        return int(self.weights.shape[-2]), int(self.weights.shape[-1])


def _neighbors(padded: Tensor, size: tuple[int, int], dilations: tuple[int, ...]) -> Iterator[Tensor]:
    """Views of the 8 neighbors per dilation, in row-major order around the center."""
    height, width = size
    margin = max(dilations)
    for dilation in dilations:
        for dy in (-dilation, 0, dilation):
            for dx in (-dilation, 0, dilation):
                if dy or dx:
                    top, left = margin + dy, margin + dx
                    yield padded[..., top : top + height, left : left + width]


@torch.no_grad()
def pamr_affinity(
    image: Tensor, size: tuple[int, int] | None = None, dilations: tuple[int, ...] = DILATIONS
) -> PamrAffinity:
    r"""Affinities of an image.

    For pixel i, neighbor j and color c the kernel is :math:`-|I_{ic} - I_{jc}| / (10^{-8} + 0.1\,\sigma_{ic})` with
    :math:`\sigma` the unbiased standard deviation over the neighbors and (once per dilation) the center; it is
    averaged over the colors and soft-maxed over the neighbors. Borders are replicated.

    Args:
        image: float ``[B, 3, H, W]``, in any linear color scale (the kernel does not depend on gain and offset).
        size: height and width at which masks will be refined; the image is resized bilinearly with aligned
            corners. ``None`` keeps the image's size.
        dilations: distances of the neighbors in pixels.

    Returns:
        The affinities, float32.

    Example:
        >>> affinity = pamr_affinity(torch.rand(1, 3, 8, 12), size=(4, 6))
        >>> tuple(affinity.weights.shape)
        (1, 48, 4, 6)
    """
    with torch.autocast(device_type=image.device.type, enabled=False):
        image = image.float()
        if size is not None and tuple(image.shape[-2:]) != tuple(size):
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
        batch, _, height, width = image.shape
        margin = max(dilations)
        padded = F.pad(image, [margin] * 4, mode="replicate")
        weights = image.new_empty(batch, 8 * len(dilations), height, width)
        pixels, together = _STRIP_PIXELS, 1
        if image.device.type != "cpu":
            pixels, together = _DEVICE_STRIP_PIXELS, max(1, min(batch, _DEVICE_STRIP_PIXELS // (height * width)))
        rows = min(height, max(1, pixels // (together * width)))
        for first in range(0, batch, together):
            group = slice(first, first + together)
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                strip = padded[group, :, top : bottom + 2 * margin]
                weights[group, :, top:bottom] = _strip_weights(strip, (bottom - top, width), dilations)
        return PamrAffinity(weights, dilations)


def _strip_weights(padded: Tensor, size: tuple[int, int], dilations: tuple[int, ...]) -> Tensor:
    """Weights ``[B, 48, h, w]`` of strips, from their pixels with their margin ``[B, 3, h + 48, w + 48]``."""
    margin = max(dilations)
    center = padded[..., margin : margin + size[0], margin : margin + size[1]]
    neighbors = list(_neighbors(padded, size, dilations))
    samples = []
    for index in range(len(dilations)):
        samples += [*neighbors[8 * index : 8 * index + 8], center]
    scale = _EPSILON + _STD_WEIGHT * torch.stack(samples).std(dim=0)
    kernels = [(-(center - neighbor).abs_() / scale).mean(dim=1) for neighbor in neighbors]
    return torch.softmax(torch.stack(kernels, dim=1), dim=1)


@torch.no_grad()
def refine_masks(affinity: PamrAffinity, masks: Tensor, iterations: int = ITERATIONS) -> Tensor:
    r"""Smooth masks along the image's affinities: ``iterations`` times :math:`m_i \leftarrow \sum_j a_{ij} m_j`.

    Args:
        affinity: of B images (or of one, used for all masks) at ``h x w``.
        masks: float ``[B, K, h', w']``; resized bilinearly with aligned corners where the size differs.
        iterations: number of steps.

    Returns:
        float32 ``[B, K, h, w]``, up to rounding within the range of the input.

    Raises:
        ValueError: there are neither B nor one image.
    """
    if len(affinity) not in (1, len(masks)):
        raise ValueError(f"the affinities are of {len(affinity)} images, the masks of {len(masks)}")
    with torch.autocast(device_type=masks.device.type, enabled=False):
        masks = masks.float()
        if tuple(masks.shape[-2:]) != affinity.size:
            masks = F.interpolate(masks, size=affinity.size, mode="bilinear", align_corners=True)
        weights = affinity.weights.to(device=masks.device, dtype=torch.float32)
        refined = torch.empty(masks.shape, device=masks.device)
        pixels, count = affinity.size[0] * affinity.size[1], int(masks.shape[1])
        # Small windows go together, for each of the 480 products of a chunk has its fixed cost.
        at_once = (_CHUNK_VALUES if masks.device.type == "cpu" else _DEVICE_CHUNK_VALUES) // pixels
        windows = max(1, min(at_once, len(masks)))
        chunk = max(1, at_once // windows)
        for index in range(0, len(masks), windows):
            group = slice(index, index + windows)
            planes = weights[group] if len(affinity) > 1 else weights
            for start in range(0, count, chunk):
                part = slice(start, start + chunk)
                refined[group, part] = _iterate(planes, masks[group, part], affinity.dilations, iterations)
        return refined


def _iterate(weights: Tensor, masks: Tensor, dilations: tuple[int, ...], iterations: int) -> Tensor:
    """Refine ``[B, K, h, w]`` with the weights ``[B, 48, h, w]`` (or of one image) of each."""
    size = (int(masks.shape[-2]), int(masks.shape[-1]))
    planes = [plane[:, None] for plane in weights.unbind(1)]
    margins = [max(dilations)] * 4
    partial, padded = torch.empty_like(masks), F.pad(masks, margins, mode="replicate")
    neighbors = list(_neighbors(padded, size, dilations))
    for step in range(iterations):
        if step:
            padded.copy_(F.pad(masks, margins, mode="replicate"))
        masks = torch.zeros_like(masks)
        for index, (plane, neighbor) in enumerate(zip(planes, neighbors, strict=True)):
            if index % _BLOCK == 0:
                torch.mul(neighbor, plane, out=partial)
            else:
                partial.addcmul_(neighbor, plane)
            if (index + 1) % _BLOCK == 0:
                masks += partial
        if len(planes) % _BLOCK:
            masks += partial
    return masks


def pamr(image: Tensor, masks: Tensor) -> Tensor:
    """Refine masks by an image, at the image's resolution.

    Args:
        image: float ``[B, 3, H, W]``.
        masks: float ``[B, K, h, w]``.

    Returns:
        float32 ``[B, K, H, W]``.
    """
    return refine_masks(pamr_affinity(image), masks)


@dataclass(frozen=True)
class Pamr:
    """PAMR as a :class:`tcl_core.refinement.base.ScoreRefiner`.

    Attributes:
        dilations: distances of the neighbors in pixels.
        iterations: number of smoothing steps.

    Example:
        >>> refiner = Pamr()
        >>> guide = refiner.prepare(torch.rand(1, 3, 8, 12), (4, 6))
        >>> tuple(refiner.refine(guide, torch.rand(1, 5, 4, 6)).shape)
        (1, 5, 4, 6)
    """

    dilations: tuple[int, ...] = DILATIONS
    iterations: int = ITERATIONS
    name: str = "pamr"

    def identity(self) -> dict[str, Any]:
        """Name, dilations and iterations."""
        return {"name": self.name, "dilations": list(self.dilations), "iterations": self.iterations}

    def prepare(self, image: Tensor, size: tuple[int, int]) -> PamrAffinity:
        """The affinities of images ``[B, 3, H, W]`` at a size."""
        return pamr_affinity(image, size, self.dilations)

    def refine(self, guide: Guide, maps: Tensor) -> Tensor:
        """Smooth maps ``[B, K, h, w]`` along the affinities; see `refine_masks`."""
        return refine_masks(cast(PamrAffinity, guide), maps, self.iterations)
