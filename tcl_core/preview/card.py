"""What the card of an image is made of, by functions that write nothing, so that any process can draw it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl_core.preview.drawing import regions_to_svg, sample_unlabeled, thumbnail
from tcl_core.types import Region, Unlabeled

__all__ = ["Outlines", "Overlay", "Thumbnail"]

_TINY = 200


@dataclass(frozen=True)
class Thumbnail:
    """The small copy of an image.

    Attributes:
        data: a whole PNG or JPEG file.
        size: its width and height.
        original: width and height of the image.
    """

    data: bytes
    size: tuple[int, int]
    original: tuple[int, int]

    @classmethod
    def of(cls, image: NDArray[np.uint8], max_side: int) -> Thumbnail:
        """Shrink an image, uint8 ``[H, W, 3]``, whose longer side becomes at most ``max_side``; never enlarged."""
        small = thumbnail(image, max_side)
        file = io.BytesIO()
        if max(small.size) <= _TINY:
            small.save(file, "PNG", compress_level=6)
        else:
            small.save(file, "JPEG", quality=84)
        return cls(file.getvalue(), small.size, (int(image.shape[1]), int(image.shape[0])))

    @property
    def is_tiny(self) -> bool:
        """Whether it is so small that it is stored without loss and shown enlarged."""
        return max(self.size) <= _TINY

    @property
    def scale(self) -> float:
        """Factor from pixels of the image to those of the copy."""
        return min(1.0, self.size[0] / self.original[0])


@dataclass(frozen=True)
class Outlines:
    """The regions of an image as they are drawn.

    Attributes:
        counts: regions of each label that has any, by its id.
        svg: see `tcl_core.preview.drawing.regions_to_svg`.
    """

    counts: Mapping[int, int]
    svg: str

    @classmethod
    def of(cls, regions: Sequence[Region], scale: float) -> Outlines:
        """Draw regions at the scale of a thumbnail."""
        counts = dict(sorted(Counter(region.label_id for region in regions).items()))
        return cls(counts, regions_to_svg(regions, scale))


@dataclass(frozen=True)
class Overlay:
    """Background names, or groups without a label, at the size of a thumbnail.

    Attributes:
        shares: see `tcl_core.types.Unlabeled.shares`.
        sample: all names, and the winners at the centers of the thumbnail's pixels.
    """

    shares: Mapping[str, float]
    sample: Unlabeled

    @classmethod
    def of(cls, unlabeled: Unlabeled, size: tuple[int, int]) -> Overlay:
        """Take what is drawn on a thumbnail of ``size`` (width, height)."""
        return cls(unlabeled.shares(), Unlabeled(unlabeled.names, sample_unlabeled(unlabeled, size)))
