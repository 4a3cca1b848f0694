"""The adaptive semantic unit: parts of an image, instead of single pixels, are compared with prompts.

That such a unit lies between pixels and whole groups, and that it gathers pixels by affinity, is what is known of it
(Liu et al., arXiv 2403.03707). The formulas below are this project's own; ``docs/mgca.md`` tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.options import MethodOptions, OptionRow, option
from tcl_core.tensors import TensorBundle

__all__ = [
    "PIXELS",
    "POINTS",
    "UNIT",
    "Parts",
    "UnitOptions",
    "cosines_in_units",
    "in_units",
    "meta_points",
    "semantic_units",
]

POINTS, _THRESHOLD = 64, 0.7
PIXELS: dict[str, Any] = {"unit_points": 0}
"""Options of a method without the unit, as in every paper but one."""
UNIT: dict[str, Any] = {"unit_points": POINTS, "unit_threshold": _THRESHOLD}
"""Options where the unit is on by default; the threshold was chosen on validation scenes, see ``docs/mgca.md``."""

# Affinities that are alive at a time, and that are kept of a window; 196 points and the 112 x 112 pixels of a window of
# 448 fit.
_MOST_AFFINITIES = 2**22
_MOST_POINTS = 2**16
_TINY = torch.finfo(torch.float32).tiny


class UnitOptions(MethodOptions):
    """Options of every method with a dense embedding (`tcl_core.methods.capabilities.DenseEmbedding`)."""

    unit_points: int = option(
        0,
        "Meta-points per window of the adaptive semantic unit, such as 64; 0: every pixel is scored on its own.",
        affects="scores",
        ge=0,
        le=_MOST_POINTS,
    )
    unit_threshold: float = option(
        _THRESHOLD,
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
    means, weights = _means_of_parts(_parts(window, places, threshold), torch.zeros_like(window))
    return torch.where(weights > 0, means, window)


def _parts(window: Tensor, places: Tensor, threshold: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Affinities ``[K, hw]`` above the threshold, and embeddings ``[K, E]`` of the parts, a few points at a time."""
    for few in places.split(max(1, _MOST_AFFINITIES // window.shape[1])):
        affinity = (window[:, few].T @ window).sub_(threshold).clamp_(min=0)
        yield affinity, F.normalize(affinity @ window.T, dim=1)


def _means_of_parts(
    parts: Iterable[tuple[Tensor, Tensor]], total: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted means over the parts of each pixel: of the parts' embeddings, or of their cosines with rows.

    Args:
        parts: see `_parts`.
        total: zeros ``[E, hw]``, or ``[P, hw]`` with rows; written to.
        rows: ``[P, E]``.

    Returns:
        The means like ``total``, and the weights ``[hw]``, 0 where a pixel belongs to no part.
    """
    weights = total.new_zeros(total.shape[1])
    for affinity, units in parts:
        # Affinities as shares of their part; a point of which not even itself is above the threshold makes none.
        shares = affinity.sum(dim=1).clamp(min=_TINY).reciprocal()
        weighted = (units * shares[:, None]).T
        total.addmm_(weighted if rows is None else rows @ weighted, affinity)
        weights += shares @ affinity
    total /= weights.clamp(min=_TINY)
    return total, weights


@dataclass(frozen=True, eq=False)
class Parts(TensorBundle):
    """Parts of B windows, kept with their features so that a new prompt is compared with parts and not with pixels.

    Attributes:
        affinity: float32 ``[B, K, hw]``, the cosine of each point with each pixel above the threshold.
        units: float32 ``[B, K, E]``, the embedding of each part, L2-normalized over E.
        made_with: the points and the threshold in millionths; zeros where nothing is kept.
    """

    affinity: Tensor
    units: Tensor
    made_with: tuple[int, int]

    @classmethod
    def of(cls, pixels: Tensor, options: UnitOptions) -> Self:
        """Parts to keep: none where the unit is off, or where those of a window would take more than 16 MiB.

        Args:
            pixels: float ``[B, E, h, w]``, L2-normalized over E.
            options: of the method.
        """
        count, _, height, width = pixels.shape
        places = meta_points((height, width), options.unit_points) if options.unit_points else torch.zeros(0)
        if not 0 < len(places) * height * width <= _MOST_AFFINITIES:
            none = pixels.new_zeros(count, 0, dtype=torch.float32)
            return cls(none[..., None], none[..., None], (0, 0))
        with torch.autocast(device_type=pixels.device.type, enabled=False):
            found = [
                next(_parts(window, places.to(pixels.device), options.unit_threshold))
                for window in pixels.float().flatten(2)
            ]
        return cls(
            torch.stack([each for each, _ in found]), torch.stack([each for _, each in found]), _made_with(options)
        )

    def fit(self, options: UnitOptions) -> bool:
        """Whether they were made with these options."""
        return bool(options.unit_points) and self.made_with == _made_with(options)


def _made_with(options: UnitOptions) -> tuple[int, int]:
    return options.unit_points, round(options.unit_threshold * 1_000_000)


def cosines_in_units(pixels: Tensor, rows: Tensor, options: UnitOptions, parts: Parts | None = None) -> Tensor:
    """Cosines of rows with ``in_units(pixels, options)``, which are not made for it.

    Args:
        pixels: float ``[B, E, h, w]``, L2-normalized over E.
        rows: float32 ``[P, E]``, of prompts.
        options: of the method.
        parts: of the same pixels; made anew where they are not given, or were made with other options.

    Returns:
        float32 ``[B, P, h, w]``.

    Example:
        >>> pixels, rows = F.normalize(torch.randn(1, 8, 6, 5), dim=1), torch.randn(3, 8)
        >>> options = UnitOptions(unit_points=4, unit_threshold=0.1)
        >>> expected = torch.einsum("behw,pe->bphw", in_units(pixels, options), rows)
        >>> torch.allclose(cosines_in_units(pixels, rows, options, Parts.of(pixels, options)), expected, atol=1e-5)
        True
    """
    size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    if not options.unit_points:
        return (rows @ pixels.float().flatten(2)).unflatten(2, size)
    kept = parts if parts is not None and parts.fit(options) else None
    places = meta_points(size, options.unit_points).to(pixels.device)
    found = []
    for number, window in enumerate(pixels.flatten(2)):
        if kept is not None:
            made: Iterable[tuple[Tensor, Tensor]] = [(kept.affinity[number].float(), kept.units[number].float())]
        else:
            made = _parts(window.float(), places, options.unit_threshold)
        cosines, weights = _means_of_parts(made, rows.new_zeros(len(rows), window.shape[1]), rows)
        lonely = weights <= 0
        # Looking how many there are would wait for another device.
        count = int(lonely.sum()) if lonely.device.type == "cpu" else len(lonely)
        if count > len(lonely) // 8:
            # Picking many pixels takes longer than comparing all of them.
            cosines = torch.where(lonely, rows @ window.float(), cosines)
        elif count:
            cosines[:, lonely] = rows @ window[:, lonely].float()
        found.append(cosines)
    return torch.stack(found).unflatten(2, size)


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
