"""Groups of an image that nobody has named yet, for methods that make them before they see a prompt."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tcl_core.devices import autocast, to_device
from tcl_core.errors import SettingsError
from tcl_core.images import ResizedImage
from tcl_core.methods.capabilities import Segments
from tcl_core.segmentation.enlarging import Enlarger, tiles
from tcl_core.segmentation.features import check_image
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Unlabeled

__all__ = ["has_groups", "image_groups", "named_groups"]


def has_groups(segmenter: Segmenter) -> bool:
    """Whether the method of a segmenter makes groups."""
    return isinstance(segmenter.method, Segments)


@torch.no_grad()
def image_groups(segmenter: Segmenter, image: NDArray[np.uint8] | ResizedImage) -> NDArray[np.int32]:
    """The group of every pixel. The whole image is one window, because groups of several windows do not correspond.

    Args:
        segmenter: with a method that makes groups.
        image: uint8 ``[H, W, 3]``, RGB, or what `Segmenter.resized` made of it.

    Returns:
        int32 ``[H, W]``, from 1, the largest group first; groups without a pixel have no number.

    Raises:
        SettingsError: the method makes no groups.
        ImageError: the array is not an image.
    """
    method, model = segmenter.method, segmenter.model
    if not isinstance(method, Segments):
        raise SettingsError(f"the method {method.name!r} of the model {model.name!r} makes no groups; use GroupViT")
    check_image(image)
    preprocess, small = model.preprocess, segmenter.resized(image)
    height, width = small.size
    resized = torch.from_numpy(small.pixels).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    pixels = resized.float().div_(255).sub_(mean).div_(std)
    with autocast(model.device, model.precision):
        features = method.encode(to_device(pixels[None], model.device))
    maps = method.segments(features)[0].float()
    enlarger = Enlarger.of((int(maps.shape[1]), int(maps.shape[2])), (height, width), maps.device)
    winner = np.zeros((height, width), dtype=np.int32)
    counts = torch.zeros(len(maps), dtype=torch.int64)
    # Tile by tile, because the groups' maps at the size of a large image would not fit into memory.
    for tile in tiles((height, width), maps.device):
        part = torch.stack([enlarger.tile(one, tile) for one in maps]).argmax(dim=0).cpu()
        counts += torch.bincount(part.flatten(), minlength=len(maps))
        winner[tile] = part.numpy()
    numbers = np.empty(len(maps), dtype=np.int32)
    numbers[counts.argsort(descending=True, stable=True).numpy()] = np.arange(1, len(maps) + 1)
    for tile in tiles((height, width), torch.device("cpu")):
        winner[tile] = numbers[winner[tile]]
    return winner


def named_groups(groups: NDArray[np.int32]) -> Unlabeled:
    """Groups under the names ``group 1``, ``group 2``, ... for drawing.

    Example:
        >>> named_groups(np.array([[1, 2]], np.int32)).names
        ('group 1', 'group 2')
    """
    return Unlabeled(tuple(f"group {number}" for number in range(1, int(groups.max(initial=0)) + 1)), groups)
