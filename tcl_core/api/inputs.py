"""Images as Python code passes them: paths, arrays and Pillow images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl_core.errors import ImageError
from tcl_core.export.base import slashed
from tcl_core.images import load_image
from tcl_core.jobs.labeling import PIXELS_AT_ONCE

if TYPE_CHECKING:
    from tcl_core.api.arguments import ImageInput

__all__ = ["file_names", "groups_of", "read_image"]

_WHOLE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def read_image(image: ImageInput) -> NDArray[np.uint8]:
    """The pixels of an image.

    Args:
        image: a path (read by `tcl_core.load_image`), an array, which is returned unchanged, or a Pillow image, which
            is composited on white where it is transparent.

    Returns:
        uint8 ``[H, W, 3]``, RGB; an array is not checked.

    Raises:
        ImageError: the file cannot be read, or the argument is none of these.
    """
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, (str, os.PathLike)):
        return load_image(Path(image))
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"expected an image as a path, an RGB array uint8 [H, W, 3] or a Pillow image, found {type(image).__name__}"
        )
    if image.mode not in _WHOLE_MODES:
        raise ImageError(
            f"the Pillow image has mode {image.mode}, which is not 8-bit; pass the path of its file instead"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.array(image.convert("RGB"))


def file_names(images: Sequence[ImageInput]) -> list[str]:
    """The file names of images in a COCO file.

    Paths become relative to the deepest folder that contains all of them, as in ``tcl-annotate prelabel``. Arrays and
    Pillow images are named by their position, such as ``image-0001.png``.

    Examples:
        >>> file_names(["a/room.jpg"]), file_names(["a/room.jpg", "a/b/room.jpg", np.zeros((1, 1, 3), np.uint8)])
        (['room.jpg'], ['room.jpg', 'b/room.jpg', 'image-0003.png'])
    """
    paths = {
        place: os.path.abspath(image) for place, image in enumerate(images) if isinstance(image, (str, os.PathLike))
    }
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    except ValueError as error:
        raise ImageError("the images are on different drives; segment the images of each drive separately") from error
    return [
        slashed(os.path.relpath(paths[place], root)) if place in paths else f"image-{place + 1:04d}.png"
        for place in range(len(images))
    ]


def groups_of(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    """Group images as a job (`tcl_core.jobs.job`) does, so that the results are identical.

    Args:
        images: uint8 ``[H, W, 3]`` each.
        size: maximum number of images in a group.
    """
    group: list[NDArray[np.uint8]] = []
    pixels = 0
    for number, image in enumerate(images, start=1):
        group.append(image)
        pixels += image.shape[0] * image.shape[1] if image.ndim >= 2 else 0
        if pixels >= PIXELS_AT_ONCE or number % size == 0:
            yield group
            group, pixels = [], 0
    if group:
        yield group
