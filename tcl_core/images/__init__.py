"""Reading image files: any format to upright 8-bit RGB."""

from __future__ import annotations

from tcl_core.images.reading import (
    DEFAULT_MAX_PIXELS,
    HEIF_EXTENSIONS,
    HEIF_REMEDY,
    SUPPORTED_EXTENSIONS,
    ImageSource,
    image_size,
    is_supported,
    load_image,
)

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "HEIF_EXTENSIONS",
    "HEIF_REMEDY",
    "SUPPORTED_EXTENSIONS",
    "ImageSource",
    "image_size",
    "is_supported",
    "load_image",
]
