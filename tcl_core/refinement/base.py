"""What refiners do: score refiners before the decision, mask refiners beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.tensors import TensorBundle
from tcl_core.types import Region

__all__ = ["Encoding", "Guide", "MaskRefiner", "Refine", "ScoreRefiner"]


class Guide(TensorBundle):
    """What a score refiner knows of images before it has seen a score map; cached beside the features."""


Refine = Callable[[Tensor], Tensor]
"""A score refiner bound to its guide: from maps ``[B, K, h, w]`` to refined maps ``[B, K, H, W]``."""


@runtime_checkable
class ScoreRefiner(Protocol):
    """Makes score maps follow the edges of the image."""

    @property
    def name(self) -> str:
        """Short and unique: the key of a method's background heights."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Everything that guides and refined maps depend on besides the image, fit for JSON."""
        ...

    def prepare(self, image: Tensor, size: tuple[int, int]) -> Guide:
        """Look at images once.

        Args:
            image: float ``[B, 3, H, W]``.
            size: height and width at which maps will be refined.
        """
        ...

    def refine(self, guide: Any, maps: Tensor) -> Tensor:
        """Refine maps.

        Args:
            guide: of B images, from `prepare`.
            maps: float ``[B, K, h, w]``.

        Returns:
            float32 ``[B, K, H, W]`` at the guide's size, up to rounding within the range of the input.
        """
        ...


class Encoding(TensorBundle):
    """What a mask refiner knows of one image; cached beside the features."""


@runtime_checkable
class MaskRefiner(Protocol):
    """Redraws regions with a second network (such as SAM); the same arg-max decides afterwards."""

    @property
    def name(self) -> str:
        """Short and unique."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Everything that an encoding depends on besides the image, fit for JSON."""
        ...

    def encode(self, image: NDArray[np.uint8]) -> Encoding:
        """Look at an image, uint8 ``[H, W, 3]``, once."""
        ...

    def refine(self, encoding: Any, scores: Tensor, regions: Sequence[Region]) -> Tensor:
        """Scores ``[K, h, w]`` in ``[0, 1]`` in which the regions have better outlines."""
        ...

    def point(self, encoding: Any, point: tuple[float, float]) -> Tensor:
        """Score map ``[h, w]`` in ``[0, 1]`` of what lies at a point ``(x, y)`` in pixels."""
        ...

    def box(self, encoding: Any, box: tuple[float, float, float, float]) -> Tensor:
        """Score map ``[h, w]`` in ``[0, 1]`` of what fills a box ``(x, y, width, height)`` in pixels."""
        ...
