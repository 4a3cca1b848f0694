"""Decoding the bytes of a task's image as browsers show it; nothing here imports PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ImageError
from tcl_core.images import exif_orientation, image_size, load_image

__all__ = ["decode_image"]

_NAME = "the image"
_PNG = b"\x89PNG"


def decode_image(image: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image.

    Args:
        image: the encoded file.
        max_pixels: larger images are refused before they are decoded.

    Returns:
        uint8 ``[H, W, 3]``, RGB, upright.

    Raises:
        ImageError: it cannot be read, is too large, or has an orientation that browsers ignore.
    """
    height, width = image_size(image, name=_NAME)
    if height * width > max_pixels:
        raise ImageError(
            f"the image has {width} x {height} pixels, but max_pixels of the settings is {max_pixels}; make the image "
            "smaller, or raise max_pixels"
        )
    _check_shown_upright(image)
    return load_image(image, max_pixels=max_pixels, name=_NAME)


def _check_shown_upright(image: bytes) -> None:
    """Refuse an image that browsers show in another orientation than ours: its regions would lie elsewhere there.

    Raises:
        ImageError: it has an orientation that Chromium ignores.
    """
    ignored = image[8:12] == b"WEBP" or (image.startswith(_PNG) and 0 <= image.find(b"IDAT") < image.find(b"eXIf"))
    if ignored and exif_orientation(image, name=_NAME) != 1:
        raise ImageError(
            "the image has an EXIF orientation that browsers ignore (in WebP, and behind the pixels of a PNG), so its "
            "regions would lie elsewhere on the page; save it again as it should be seen, without the orientation"
        )
