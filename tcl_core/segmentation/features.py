"""What is computed once per image and serves every prompt after that."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.caching import DEFAULT_CACHE_BYTES, ByteBoundedCache
from tcl_core.errors import ImageError
from tcl_core.methods.base import Features
from tcl_core.refinement.base import Guide

__all__ = [
    "FeatureCache",
    "FeatureKey",
    "ImageFeatures",
    "PreparedImage",
    "check_image",
    "content_hash",
    "resize_image",
]

_STRIP_VALUES = 1 << 24


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on; equal keys mean equal features.

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

    One cache can serve several segmenters, models and threads.

    Args:
        max_bytes: bound of the features' tensors together, wherever they are (main or device memory).

    Raises:
        SettingsError: ``max_bytes`` is negative.

    >>> len(FeatureCache(max_bytes=0))
    0
    """

    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        super().__init__(max_bytes, size_of=lambda features: features.nbytes)


def check_image(image: NDArray[np.uint8]) -> None:
    """Make sure that an array is an image of the kind `tcl_core.images.load_image` returns.

    Raises:
        ImageError: it is not uint8 ``[H, W, 3]``, or it has no pixel.
    """
    shape, dtype = getattr(image, "shape", None), getattr(image, "dtype", None)
    if not isinstance(image, np.ndarray) or dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{dtype} {list(shape)}" if shape is not None else type(image).__name__
        raise ImageError(f"the image must be an RGB array uint8 [H, W, 3], not {found}; read files with load_image.")
    if image.size == 0:
        raise ImageError(f"the image is {image.shape[1]} x {image.shape[0]}; give one with at least one pixel.")


def content_hash(image: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of an image's size and pixels.

    Args:
        image: uint8 ``[H, W, 3]``.

    >>> a, b = np.zeros((2, 3, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)
    >>> content_hash(a) == content_hash(a.copy()), content_hash(a) == content_hash(b)
    (True, False)
    """
    digest = hashlib.sha256(f"{image.shape}{image.dtype}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Resize as the evaluation protocol does: bilinear on 8-bit values, half-pixel centers, no antialias.

    The published figures were measured with ``cv2.resize``. PyTorch's float interpolation computes the same formula
    (OpenCV's fixed-point weights differ from it by at most one gray level) on every device and saves the dependency.
    Its own 8-bit kernel rounds after each axis, so that it is further away, and differs between processors. The axes
    are separable: rows first, in strips of columns, keeps the float copy of a very large image small.

    Args:
        image: uint8 ``[H, W, 3]``.
        size: height and width to resize to.

    Returns:
        float32 ``[3, h, w]`` with whole numbers from 0 to 255.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels[0].float()
    columns = max(1, _STRIP_VALUES // (3 * pixels.shape[2]))
    rows = torch.cat(
        [_bilinear(strip.float(), (size[0], int(strip.shape[3]))) for strip in pixels.split(columns, dim=3)], dim=3
    )
    return _bilinear(rows, size)[0].round_().clamp_(0, 255)


def _bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


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
