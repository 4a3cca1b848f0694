"""The two results that travel between the rooms: a segmentation and its regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from shapely import Polygon

    from tcl_core.vocabulary import Vocabulary

__all__ = ["Region", "Segmentation"]


@dataclass(frozen=True)
class Segmentation:
    """The arg-max of a vocabulary's score maps over one image.

    Attributes:
        label_map: int32 ``[H, W]``; 0 is nothing (background), k is label k of the vocabulary counted from 1.
        score_map: float32 ``[H, W]`` in ``[0, 1]``; the score of the winning label, 0 where there is none.
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
    """One connected piece of one label.

    Attributes:
        label_id: index of the label counted from 1 (the COCO category id).
        label: name of the label.
        score: mean of the label's score inside the region, in ``[0, 1]``.
        area: number of pixels.
        bbox: ``(x, y, width, height)`` in pixels, tight around the mask.
        mask: bool ``[height, width]``, the exact mask cropped to ``bbox``.
        polygon: outline with holes in pixel-edge coordinates (pixel ``(r, c)`` covers ``[c, c+1] x [r, r+1]``),
            or ``None`` where no polygon was asked for.
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
