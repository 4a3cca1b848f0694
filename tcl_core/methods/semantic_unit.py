"""The adaptive semantic unit: parts of an image, instead of single pixels, are compared with prompts.

That such a unit lies between pixels and whole groups, and that it gathers pixels by affinity, is what is known of it
(Liu et al., arXiv 2403.03707). The formulas below are this project's own; ``docs/mgca.md`` tells them apart.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.options import MethodOptions, OptionRow, option

__all__ = ["UnitOptions", "in_units", "meta_points", "semantic_units"]

# Affinities that are alive at a time; 196 points and the 112 x 112 pixels of a window of 448 fit.
_MOST_AFFINITIES = 2**22
_MOST_POINTS = 2**16


class UnitOptions(MethodOptions):
    """Options of every method with a dense embedding (`tcl_core.methods.capabilities.DenseEmbedding`)."""

    unit_points: int = option(
        0,
        "Meta-points per window of the adaptive semantic unit, such as 196; 0: every pixel is scored on its own.",
        affects="scores",
        ge=0,
        le=_MOST_POINTS,
    )
    unit_threshold: float = option(
        0.6,
        "Cosine above which a pixel joins the part of a meta-point; -1 gives the largest parts, 1 single pixels.",
        affects="scores",
        ge=-1,
        le=1,
    )

    def rows(self) -> list[OptionRow]:
        """The list of options with their values; those of the method itself come first."""
        return sorted(super().rows(), key=lambda row: row.name in UnitOptions.model_fields)


def in_units(pixels: Tensor, options: UnitOptions) -> Tensor:
    """Pixels as the options want them compared with prompts.

    Args:
        pixels: float32 ``[B, E, h, w]``, L2-normalized over E.
        options: of the method.

    Returns:
        float32 ``[B, E, h, w]``: ``pixels`` themselves where ``unit_points`` is 0, else see `semantic_units`.
    """
    if not options.unit_points:
        return pixels
    return semantic_units(pixels, options.unit_points, options.unit_threshold)


def semantic_units(pixels: Tensor, points: int, threshold: float) -> Tensor:
    r"""Replace each pixel by a mean of the parts that it belongs to.

    With embeddings :math:`v_p` of unit length and meta-points :math:`k` on a regular grid,

    .. math::
        a_{kp} = \frac{\max(v_k \cdot v_p - \theta, 0)}{\sum_q \max(v_k \cdot v_q - \theta, 0)}, \quad
        u_k = \frac{\sum_p a_{kp} v_p}{\lVert \sum_p a_{kp} v_p \rVert}, \quad
        v'_p = \frac{\sum_k a_{kp} u_k}{\sum_k a_{kp}}.

    Because affinities are shares of their part, the parts of a small thing weigh as much in a pixel as those of a large
    one. A pixel that belongs to no part stays as it is. Cosines with :math:`v'_p` are the weighted means of the cosines
    of the parts.

    Args:
        pixels: v, float ``[B, E, h, w]``, L2-normalized over E.
        points: meta-points in each window, positive; ``h * w`` or more take every pixel.
        threshold: :math:`\theta`, a cosine.

    Returns:
        float32 ``[B, E, h, w]``, at most of unit length.

    Example:
        >>> two = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]).T[None, :, None]
        >>> semantic_units(two, 3, 1.0).equal(two)
        True
        >>> semantic_units(two, 1, -1.0)[0, :, 0].std(dim=1).max().item() < 1e-6
        True
    """
    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    places = meta_points(size, points).to(pixels.device)
    with torch.autocast(device_type=pixels.device.type, enabled=False):
        return torch.stack([_units_of_window(window, places, threshold) for window in pixels.float().flatten(2)]).view(
            pixels.shape
        )


def _units_of_window(window: Tensor, places: Tensor, threshold: float) -> Tensor:
    """The same for one window ``[E, hw]`` with points at these places."""
    gathered, weights = torch.zeros_like(window), window.new_zeros(window.shape[1])
    for part in places.split(max(1, _MOST_AFFINITIES // window.shape[1])):
        affinity = (window[:, part].T @ window).sub_(threshold).clamp_(min=0)
        # A point of which not even itself is above the threshold makes no part.
        affinity /= affinity.sum(dim=1, keepdim=True).clamp(min=torch.finfo(affinity.dtype).tiny)
        units = F.normalize(affinity @ window.T, dim=1)
        gathered.addmm_(units.T, affinity)
        weights += affinity.sum(dim=0)
    return torch.where(weights > 0, gathered / weights.clamp(min=torch.finfo(weights.dtype).tiny), window)


def meta_points(size: tuple[int, int], points: int) -> Tensor:
    """Places of meta-points on a regular grid, at the centers of cells that are as square as their number allows.

    Args:
        size: height and width of the pixels.
        points: how many there may be, positive.

    Returns:
        int64 ``[K]``, places in the flattened pixels, K at most ``points`` and ``height * width``.

    Example:
        >>> meta_points((4, 6), 6).tolist(), meta_points((3, 3), 1).tolist(), len(meta_points((4, 6), 100))
        ([7, 9, 11, 19, 21, 23], [4], 24)
    """
    height, width = size
    if points >= height * width:
        return torch.arange(height * width)
    # Rows by the shape of the window, and then as many columns as there are points left.
    rows = min(height, points, max(1, round(math.sqrt(points * height / width))))
    columns = min(width, points // rows)
    rows = min(height, points // columns)
    ys = [int((row + 0.5) * height / rows) for row in range(rows)]
    xs = [int((column + 0.5) * width / columns) for column in range(columns)]
    return torch.tensor([y * width + x for y in ys for x in xs])
