"""Images as an archive looks at them: the square in the middle, at one size for all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.images import resize_bilinear
from tcl_core.models.metadata import Preprocess

__all__ = ["middle_square", "square"]


def middle_square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The short side scaled to ``side``, and the middle of the long one.

    Args:
        image: uint8 ``[H, W, 3]``.
        side: in pixels.

    Returns:
        uint8 ``[side, side, 3]``.

    Example:
        >>> middle_square(np.zeros((40, 90, 3), np.uint8), 20).shape
        (20, 20, 3)
    """
    height, width = image.shape[:2]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    resized = resize_bilinear(image, size)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return np.ascontiguousarray(resized[top : top + side, left : left + side])


def square(image: NDArray[np.uint8], side: int, preprocess: Preprocess) -> Tensor:
    """`middle_square`, normalized: float32 ``[3, side, side]``."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = torch.from_numpy(middle_square(image, side)).permute(2, 0, 1)
    return pixels.float().div_(255).sub_(mean).div_(std)
