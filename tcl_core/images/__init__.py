"""Reading image files: any format to upright 8-bit RGB."""

from __future__ import annotations

from tcl_core.images.reading import (
    DEFAULT_MAX_PIXELS,
    HEIF_EXTENSIONS,
    HEIF_REMEDY,
    SUPPORTED_EXTENSIONS,
    ImageSource,
    exif_orientation,
    image_size,
    is_supported,
    load_image,
)
from tcl_core.images.remote import RemoteFile, RemoteFolder, is_remote
from tcl_core.images.resize import resize_bilinear
from tcl_core.images.resized import ResizedImage, content_hash, working_size

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "HEIF_EXTENSIONS",
    "HEIF_REMEDY",
    "SUPPORTED_EXTENSIONS",
    "ImageSource",
    "RemoteFile",
    "RemoteFolder",
    "ResizedImage",
    "content_hash",
    "exif_orientation",
    "image_size",
    "is_remote",
    "is_supported",
    "load_image",
    "resize_bilinear",
    "working_size",
]
