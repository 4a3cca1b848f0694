"""The results passed between modules: a segmentation, its regions, and what was left unlabeled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from shapely import Polygon

    from tcl_core.vocabulary import Vocabulary

__all__ = ["Region", "Segmentation", "Unlabeled"]

_ROWS = 256


@dataclass(frozen=True)
class Segmentation:
    """The arg-max of a vocabulary's score maps over one image.

    Attributes:
        label_map: int32 ``[H, W]``; 0 is background, and k is the k-th label of the vocabulary.
        score_map: float32 ``[H, W]`` in ``[0, 1]``; the score of the winning label, 0 in the background.
        vocabulary: the labels that competed.
    """

    label_map: NDArray[np.int32]
    score_map: NDArray[np.float32]
    vocabulary: Vocabulary

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.label_map.shape
        return int(height), int(width)


@dataclass(frozen=True)
class Region:
    """A region: one connected component of one label.

    Attributes:
        label_id: position of the label in the vocabulary, starting at 1 (the COCO category id).
        label: name of the label.
        score: mean of the label's score inside the region, in ``[0, 1]``.
        area: number of pixels.
        bbox: ``(x, y, width, height)`` in pixels, tight around the mask.
        mask: bool ``[height, width]``, the exact mask cropped to ``bbox``.
        polygon: outline with holes in pixel-edge coordinates (pixel ``(r, c)`` covers ``[c, c+1] x [r, r+1]``),
            or ``None`` if no polygons were computed.
    """

    label_id: int
    label: str
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    mask: NDArray[np.bool_]
    polygon: Polygon | None = None

    def full_mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Paste the mask into an image of ``size`` (height, width); returns bool ``[H, W]``."""
        full = np.zeros(size, dtype=bool)
        x, y, width, height = self.bbox
        full[y : y + height, x : x + width] = self.mask
        return full


class Unlabeled:
    """The background names that beat every label somewhere in one image.

    Their pixels are never annotated; a preview shows them so that a user can see what an empty area was taken for.

    Args:
        names: background names that won at least one pixel.
        winner: whole numbers ``[H, W]``; 0 where a label or the plain background won, k where ``names[k - 1]`` did.
    """

    def __init__(self, names: tuple[str, ...], winner: NDArray[np.integer]) -> None:
        self._make: Callable[[], tuple[tuple[str, ...], NDArray[np.integer]]] | None = None
        self._made: tuple[tuple[str, ...], NDArray[np.integer]] | None = (names, winner)

    @classmethod
    def later(cls, make: Callable[[], tuple[tuple[str, ...], NDArray[np.integer]]]) -> Self:
        """Names and winners that take a while, and are computed once somebody asks for them.

        Args:
            make: computes them; what it raises is passed on to whoever asks.

        Examples:
            >>> Unlabeled.later(lambda: (("sky",), np.array([[1, 0]], np.int32))).names
            ('sky',)
        """
        unlabeled = cls((), np.zeros((0, 0), np.int32))
        unlabeled._make, unlabeled._made = make, None
        return unlabeled

    @property
    def names(self) -> tuple[str, ...]:
        """Background names that won at least one pixel."""
        return self._known()[0]

    @property
    def winner(self) -> NDArray[np.integer]:
        """Whole numbers ``[H, W]``; 0 where a label or the plain background won, k where ``names[k - 1]`` did."""
        return self._known()[1]

    def shares(self) -> dict[str, float]:
        """Share of the image's pixels that each name won, largest first; names without a pixel are omitted.

        Examples:
            >>> Unlabeled(("sky", "wall"), np.array([[0, 1], [2, 2]], np.int32)).shares()
            {'wall': 0.5, 'sky': 0.25}
        """
        names, winner = self._known()
        pixels = np.zeros(len(names) + 1, dtype=np.int64)
        for top in range(0, len(winner), _ROWS):
            # A count needs 64 bits a pixel of what it counts.
            pixels += np.bincount(winner[top : top + _ROWS].ravel(), minlength=len(pixels))
        ranked = sorted(zip(names, pixels[1:].tolist(), strict=True), key=lambda pair: -pair[1])
        return {name: number / winner.size for name, number in ranked if number}

    def _known(self) -> tuple[tuple[str, ...], NDArray[np.integer]]:
        made = self._made
        if made is None:
            assert self._make is not None
            made = self._made = self._make()
            # What it was made of may be large.
            self._make = None
        return made
