"""Reading images from disk or memory, safely, as the RGB array that the rest of the package works on.

Only raster formats whose decoders run inside this process are tried (never EPS, PDF or WMF, whose readers start
other programs). The size is read from the header and compared with the limit before a single pixel is decoded, and
Pillow's own process-wide limit is neither used nor changed.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tcl_core.errors import ImageError, SettingsError

__all__ = ["DEFAULT_MAX_PIXELS", "SUPPORTED_EXTENSIONS", "ImageSource", "image_size", "is_supported", "load_image"]

ImageSource = str | os.PathLike[str] | bytes

DEFAULT_MAX_PIXELS = 200_000_000
"""Largest image decoded unless the caller says otherwise: 200 megapixels, 0.6 GB as 8-bit RGB."""

_EXTENSIONS_OF_FORMAT = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
}


def _readable_formats() -> dict[str, tuple[str, ...]]:
    Image.init()
    return {name: extensions for name, extensions in _EXTENSIONS_OF_FORMAT.items() if name in Image.OPEN}


SUPPORTED_EXTENSIONS: tuple[str, ...] = tuple(sorted(e for es in _readable_formats().values() for e in es))
"""Lower-case file name endings that a walk over a folder takes as images; AVIF only where Pillow can read it."""

_ORIENTATION_TAG = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_PHOTOMETRIC = 256, 257, 258, 262
_TIFF_WHITE_IS_ZERO = 0
_ROWS_AT_ONCE = 256


def is_supported(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends like an image this library reads (the content is not looked at).

    >>> is_supported("holiday.JPG"), is_supported("notes.txt")
    (True, False)
    """
    return Path(path).suffix.lower() in SUPPORTED_EXTENSIONS


def load_image(
    source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS, name: str | None = None
) -> NDArray[np.uint8]:
    """Decode an image to 8-bit RGB, upright.

    * EXIF orientation is applied. Animated files (GIF, WebP, APNG, multi-page TIFF) give their first frame.
    * Transparent images (RGBA, LA, palette or color-key transparency) are composited on **white**.
    * Gray is repeated over the three channels; CMYK, YCbCr and palettes are converted by Pillow, without a color
      profile.
    * More than 8 bits are scaled from the format's full range (16-bit: 65535 becomes 255), never clipped. Gray values
      without a defined white (float, 32-bit and signed integers): floats within [0, 1] are multiplied by 255, values
      within [0, 255] are taken as they are, anything else is stretched from its minimum to its maximum; NaN and
      negative infinity become black, positive infinity white.

    Args:
        source: path of the file, or the encoded bytes themselves.
        max_pixels: largest width x height to decode; compared with the header before decoding.
        name: what error messages call the image; the path by default.

    Returns:
        uint8 ``[H, W, 3]``, RGB, contiguous and writable.

    Raises:
        ImageError: the file is missing, unreadable, not an image, damaged, truncated or above ``max_pixels``.
        SettingsError: ``max_pixels`` is not positive.

    >>> encoded = io.BytesIO()
    >>> Image.new("LA", (3, 2), (0, 0)).save(encoded, "PNG")
    >>> load_image(encoded.getvalue()).shape, int(load_image(encoded.getvalue()).min())
    ((2, 3, 3), 255)
    """
    if max_pixels < 1:
        raise SettingsError(f"max_pixels is {max_pixels}; give the largest number of pixels to decode, at least 1.")
    shown = _shown_name(source, name)
    with _opened(source, shown) as (image, handle):
        height, width = _upright_size(image, handle)
        if height * width > max_pixels:
            raise ImageError(
                f"{shown}: {width} x {height} is {height * width} pixels, more than the limit of {max_pixels}; "
                "make the image smaller or raise the pixel limit."
            )
        orientation = _orientation(image, handle)
        white_is_zero = _is_16_bit_white_is_zero(image)
        bits = _bits_per_sample(image)
        image.load()
        # Pillow turns TIFFs itself while it loads them, and then drops the tag.
        if image.format == "TIFF" and _ORIENTATION_TAG not in image.tag_v2:  # type: ignore[attr-defined]
            orientation = 1
        pixels = _to_rgb(image, bits, white_is_zero)
    pixels = _turn(pixels, orientation)
    if pixels.shape[0] * pixels.shape[1] > max_pixels or pixels.shape[:2] != (height, width):
        raise ImageError(
            f"{shown}: the image is {pixels.shape[1]} x {pixels.shape[0]} but its header says {width} x {height}; "
            "save it again with an image editor."
        )
    return pixels


def image_size(source: ImageSource, *, name: str | None = None) -> tuple[int, int]:
    """Height and width after EXIF rotation, from the header alone (no pixel is decoded, no limit applies).

    Args:
        source: path of the file, or the encoded bytes themselves.
        name: what error messages call the image; the path by default.

    Returns:
        ``(height, width)`` of what `load_image` returns for the same file.

    Raises:
        ImageError: the file is missing, unreadable or its header is not that of an image.
    """
    with _opened(source, _shown_name(source, name)) as (image, handle):
        return _upright_size(image, handle)


def _shown_name(source: ImageSource, name: str | None) -> str:
    if name is not None:
        return name
    return "image in memory" if isinstance(source, bytes) else os.fspath(source)


@contextmanager
def _opened(source: ImageSource, shown: str) -> Iterator[tuple[ImageFile.ImageFile, BinaryIO]]:
    """Open an image lazily; whatever a decoder raises inside the block becomes one `ImageError`."""
    with _binary_handle(source, shown) as handle:
        try:
            image = _identify(handle)
            try:
                yield image, handle
            finally:
                image.close()
        except (ImageError, SettingsError):
            raise
        except UnidentifiedImageError as error:
            known = ", ".join(extension[1:] for extension in SUPPORTED_EXTENSIONS)
            raise ImageError(f"{shown}: not an image that can be read; use one of {known}.") from error
        except MemoryError as error:
            raise ImageError(f"{shown}: not enough memory to decode it; make the image smaller.") from error
        # Decoders of damaged files raise whatever they stumble over (struct.error, KeyError, zlib.error, ...).
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(
                f"{shown}: damaged or truncated image ({reason.rstrip('.')}); "
                "replace the file or save it again with an image editor."
            ) from error


@contextmanager
def _binary_handle(source: ImageSource, shown: str) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{shown}: no bytes in it; give the content of an image file.")
        yield io.BytesIO(source)
        return
    try:
        found = os.stat(source)
        # Opening a named pipe or a device could wait for ever.
        if stat.S_ISDIR(found.st_mode):
            raise ImageError(f"{shown}: is a folder, not an image; give an image file.")
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{shown}: not a regular file; give an image file.")
        if found.st_size == 0:
            raise ImageError(f"{shown}: the file is empty; replace it with the image.")
        handle = open(source, "rb")
    except FileNotFoundError as error:
        raise ImageError(f"{shown}: no such file; check the path.") from error
    except PermissionError as error:
        raise ImageError(f"{shown}: no permission to read it; change the file's permissions.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(f"{shown}: cannot be opened ({reason}); check the path.") from error
    with handle:
        yield handle


def _identify(handle: BinaryIO) -> ImageFile.ImageFile:
    """Let the allowed plugins read the header.

    `PIL.Image.open` would also compare the size with a process-wide limit; going through its plugin table leaves that
    limit, and the warnings that belong to it, to the other users of the process.
    """
    prefix = handle.read(16)
    for name in _readable_formats():
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(prefix)
        if isinstance(accepted, str) or not accepted:
            continue
        handle.seek(0)
        try:
            image = factory(handle, "")
        # The plugins' way to say "not mine after all".
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            raise ValueError(f"its {name} header cannot be read: {error}") from error
        return image
    raise UnidentifiedImageError("no decoder accepts it")


def _upright_size(image: ImageFile.ImageFile, handle: BinaryIO) -> tuple[int, int]:
    width, height = image.size
    if image.format == "TIFF":
        # Newer Pillow reports a TIFF's size as already turned, older does not.
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])
    if width < 1 or height < 1:
        raise ValueError(f"its size is {width} x {height}")
    return (width, height) if _orientation(image, handle) >= 5 else (height, width)


def _orientation(image: ImageFile.ImageFile, handle: BinaryIO) -> int:
    """EXIF orientation 1 to 8; 1 where there is none, or where the EXIF block is itself damaged."""
    if image.format == "TIFF":
        value = image.tag_v2.get(_ORIENTATION_TAG, 1)  # type: ignore[attr-defined]
    else:
        try:
            # The PNG plugin's own getexif() would decode the whole image to look for a late block.
            exif = Image.Image.getexif(image)
            if image.format == "PNG" and _ORIENTATION_TAG not in exif and (late := _late_png_exif(handle)):
                exif = Image.Exif()
                exif.load(late)
            value = exif.get(_ORIENTATION_TAG, 1)
        # A broken EXIF block does not make the image unreadable: viewers show such files unrotated, and so do we.
        except Exception:
            value = 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _late_png_exif(handle: BinaryIO) -> bytes | None:
    """The eXIf chunk of a PNG wherever it stands, found by walking over the chunk headers."""
    position = handle.tell()
    try:
        handle.seek(8)
        while len(header := handle.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"eXIf":
                # EXIF blocks are at most 64 KB in JPEG; an orientation far behind that is not worth the memory.
                return handle.read(min(length, 1 << 20))
            if kind == b"IEND":
                return None
            handle.seek(length + 4, os.SEEK_CUR)
        return None
    finally:
        handle.seek(position)


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (EXIF 2.32, tag 274) and return a contiguous array."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _is_16_bit_white_is_zero(image: ImageFile.ImageFile) -> bool:
    # Pillow inverts such TIFFs of 1 to 8 bits itself, but hands deeper ones over as they are.
    if image.format != "TIFF" or not image.mode.startswith(("I", "F")):
        return False
    return image.tag_v2.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO  # type: ignore[attr-defined]


def _bits_per_sample(image: ImageFile.ImageFile) -> int | None:
    """Bits of an unsigned gray image deeper than 8 bits, or None where the values have no defined white."""
    if image.mode.startswith("I;16"):
        if image.format == "TIFF":
            return int(image.tag_v2.get(_TIFF_BITS, (16,))[0])  # type: ignore[attr-defined]
        return 16
    # 16-bit PGM, and 16-bit PNG in older Pillow, arrive as 32-bit integers of range 65535.
    return 16 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _to_rgb(image: Image.Image, bits: int | None, white_is_zero: bool) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        gray = _stretch(values) if bits is None else _scale(values, bits)
        if white_is_zero:
            gray = 255 - gray
        key = image.info.get("transparency")
        if isinstance(key, int):
            gray[values == key] = 255
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
            image.info["transparency"] = tuple(value >> 8 for value in key)
        # Pillow converts the pre-multiplied and palette modes to straight alpha only step by step.
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight.convert("RGBA")
        canvas = Image.new("RGB", image.size, (255, 255, 255))
        canvas.paste(rgba, mask=rgba.getchannel("A"))
        return np.array(canvas)
    return np.array(image.convert("RGB"))


def _scale(values: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Unsigned integers of ``bits`` bits to 8 bits, rounded to nearest, a few rows at a time."""
    white = (1 << bits) - 1
    gray = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS_AT_ONCE):
        rows = np.clip(values[top : top + _ROWS_AT_ONCE].astype(np.int64), 0, white)
        gray[top : top + _ROWS_AT_ONCE] = (rows * 255 + white // 2) // white
    return gray


def _stretch(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Values without a defined white to 8 bits (the rule in `load_image`)."""
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    numbers = np.nan_to_num(numbers, nan=low, neginf=low, posinf=high if high > low else low + 1)
    span = high - low
    scaled = (numbers - low) * (255.0 / span) if span > 0 else np.zeros_like(numbers)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
