"""Padding of images to whole patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pad_to_multiple"]


def pad_to_multiple(image: Tensor, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Zero-pad an image symmetrically; the larger half of an odd padding goes to the right and bottom.

    Args:
        image: ``[..., H, W]``.
        multiple: both sides become multiples of this.

    Returns:
        The padded image, and the padding ``(top, left)``.
    """
    height, width = int(image.shape[-2]), int(image.shape[-1])
    rows, columns = -height % multiple, -width % multiple
    top, left = rows // 2, columns // 2
    return F.pad(image, (left, columns - left, top, rows - top)), (top, left)
