"""What is computed once per image and serves every prompt after that."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.caching import DEFAULT_CACHE_BYTES, ByteBoundedCache
from tcl_core.errors import ImageError
from tcl_core.images import ResizedImage
from tcl_core.methods.base import Features
from tcl_core.refinement.base import Guide

__all__ = [
    "FeatureCache",
    "FeatureKey",
    "ImageFeatures",
    "PreparedImage",
    "check_image",
]


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on; equal keys mean equal features, but for what is kept only to score them faster.

    Attributes:
        content: `content_hash` of the image's pixels.
        weights: SHA-256 of the model's weights.
        settings: canonical JSON of the method and those of its options that affect features, preprocessing,
            refinement, precision and device.
    """

    content: str
    weights: str
    settings: str


@dataclass(frozen=True)
class ImageFeatures:
    """All that depends on the image alone; the tensors are shared with caches and must not be written to.

    Attributes:
        windows: what the method knows of the n sliding windows.
        guide: of the n windows, for methods that refine inside a window; ``None`` without refinement.
        image_guide: of the whole image, for methods that refine after merging; ``None`` without refinement.
        origins: top-left corner ``(y, x)`` of each window, in pixels of the working size.
        working_size: height and width at which the windows were cut.
        score_size: height and width at which scores are finished.
        size: height and width of the original image.
        key: what the features depend on.
    """

    windows: Features
    guide: Guide | None
    image_guide: Guide | None
    origins: tuple[tuple[int, int], ...]
    working_size: tuple[int, int]
    score_size: tuple[int, int]
    size: tuple[int, int]
    key: FeatureKey

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(part.nbytes for part in (self.windows, self.guide, self.image_guide) if part is not None)


class FeatureCache(ByteBoundedCache[FeatureKey, ImageFeatures]):
    """Features of images, keyed by the pixels, the weights and every setting they depend on.

    One cache can serve several segmenters, models and threads. A sub-class may give features without their guides,
    and on another device: they are completed by the segmenter that asked.

    Args:
        max_bytes: bound of the features' tensors together, wherever they are (main or device memory).

    Raises:
        SettingsError: ``max_bytes`` is negative.

    >>> len(FeatureCache(max_bytes=0))
    0
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(max_bytes, size_of=lambda features: features.nbytes)


def check_image(image: NDArray[np.uint8] | ResizedImage) -> None:
    """Make sure that an array is an image of the kind `tcl_core.images.load_image` returns, or made of one.

    Raises:
        ImageError: it is not uint8 ``[H, W, 3]``, or it has no pixel.
    """
    if isinstance(image, ResizedImage):
        image = image.pixels
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if not isinstance(image, np.ndarray) or dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{dtype} {list(shape)}" if shape is not None else type(image).__name__
        raise ImageError(f"the image must be an RGB array uint8 [H, W, 3], not {found}; read files with load_image.")
    if image.size == 0:
        raise ImageError(f"the image is {image.shape[1]} x {image.shape[0]}; give one with at least one pixel.")


@dataclass(frozen=True)
class PreparedImage:
    """An image cut into normalized windows ``[n, 3, h, w]``."""

    windows: Tensor
    image_guide: Guide | None
    origins: tuple[tuple[int, int], ...]
    working_size: tuple[int, int]
    score_size: tuple[int, int]
    size: tuple[int, int]
    key: FeatureKey
