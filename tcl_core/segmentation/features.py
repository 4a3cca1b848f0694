"""What is computed once per image and serves every prompt after that."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.errors import ImageError
from tcl_core.methods.base import WindowEmbeddings
from tcl_core.refinement.pamr import PamrAffinity

__all__ = ["FeatureKey", "ImageFeatures", "check_image", "content_hash", "join", "resize_image"]

_STRIP_VALUES = 1 << 24

Tensors = TypeVar("Tensors", WindowEmbeddings, PamrAffinity)


@dataclass(frozen=True)
class FeatureKey:
    """What features depend on; equal keys mean equal features.

    Attributes:
        content: `content_hash` of the image's pixels.
        weights: SHA-256 of the model's weights.
        settings: canonical JSON of preprocessing, refinement, precision and device.
    """

    content: str
    weights: str
    settings: str


@dataclass(frozen=True)
class ImageFeatures:
    """All that depends on the image alone; the tensors are shared with caches and must not be written to.

    Attributes:
        windows: embeddings of the n sliding windows (at the mask resolution, and CLIP's own dense ones).
        affinity: refinement affinities of the n windows, or ``None`` without refinement.
        origins: top-left corner ``(y, x)`` of each window, in pixels of the working size.
        working_size: height and width at which the windows were cut.
        size: height and width of the original image.
        key: what the features depend on.
    """

    windows: WindowEmbeddings
    affinity: PamrAffinity | None
    origins: tuple[tuple[int, int], ...]
    working_size: tuple[int, int]
    size: tuple[int, int]
    key: FeatureKey

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return self.windows.nbytes + (0 if self.affinity is None else self.affinity.nbytes)


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


def join(parts: Sequence[Tensors]) -> Tensors:
    """Concatenate the tensors of several parts along their first axis, into memory of their own.

    Args:
        parts: at least one; everything but their tensors is taken from the first.
    """
    joined: dict[str, Any] = {}
    for field in dataclasses.fields(parts[0]):
        if isinstance(getattr(parts[0], field.name), Tensor):
            # cat() of one slice copies too: a view would keep its whole batch in memory.
            joined[field.name] = torch.cat([getattr(part, field.name) for part in parts])
    return dataclasses.replace(parts[0], **joined)
