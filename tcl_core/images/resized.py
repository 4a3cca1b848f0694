"""An image at the size that a model works at, so that the full-size pixels need not be kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tcl_core.images.resize import resize_bilinear

__all__ = ["ResizedImage", "content_hash", "working_size"]


def working_size(height: int, width: int, short_side: int, max_long_side: int) -> tuple[int, int]:
    """Size at which an image is segmented: the largest that keeps the aspect ratio within both limits.

    Smaller images are enlarged. A side never falls below one pixel.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        short_side: limit of the shorter side.
        max_long_side: limit of the longer side.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: one of the numbers is not positive.

    Example:
        >>> working_size(480, 640, short_side=448, max_long_side=2048)
        (448, 597)
    """
    if min(height, width, short_side, max_long_side) < 1:
        raise ValueError(f"sizes must be positive, got {height}x{width}, limits {short_side} and {max_long_side}")
    scale = min(max_long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


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


@dataclass(frozen=True)
class ResizedImage:
    """All of an image that `tcl_core.segmentation.Segmenter.encode` needs; a few hundred kilobytes.

    Attributes:
        pixels: uint8 ``[h, w, 3]``, RGB, at the working size.
        size: height and width of the original image.
        content: `content_hash` of the original image.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    content: str

    @classmethod
    def of(
        cls, image: NDArray[np.uint8], short_side: int, max_long_side: int, content: str | None = None
    ) -> ResizedImage:
        """Resize an image as a segmenter does.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            short_side: of the model's preprocessing, see `working_size`.
            max_long_side: likewise.
            content: `content_hash` of the image where it is known; it is computed otherwise.

        Example:
            >>> resized = ResizedImage.of(np.zeros((60, 80, 3), np.uint8), short_side=30, max_long_side=100)
            >>> resized.pixels.shape, resized.size
            ((30, 40, 3), (60, 80))
        """
        height, width = image.shape[:2]
        size = working_size(height, width, short_side, max_long_side)
        pixels = np.ascontiguousarray(resize_bilinear(image, size))
        return cls(pixels, (int(height), int(width)), content_hash(image) if content is None else content)
