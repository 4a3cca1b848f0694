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
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from tcl_core.errors import ImageError, SettingsError
from tcl_core.images.conversion import AUTOMATIC, deep_color_to_rgb, to_rgb
from tcl_core.images.depth import is_deep_color, mend_planes
from tcl_core.images.jpeg_end import with_end_marker


def _heif_reader() -> Any:
    try:
        from pillow_heif import HeifImageFile as Reader
    except ImportError:
        return None
    return Reader


HeifImageFile = _heif_reader()

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "HEIF_EXTENSIONS",
    "HEIF_REMEDY",
    "SUPPORTED_EXTENSIONS",
    "ImageSource",
    "exif_orientation",
    "image_size",
    "is_supported",
    "load_image",
]

ImageSource = str | os.PathLike[str] | bytes

DEFAULT_MAX_PIXELS = 200_000_000
"""Largest image decoded unless the caller says otherwise: 200 megapixels, 0.6 GB as 8-bit RGB."""

HEIF_EXTENSIONS = (".heic", ".heif", ".hif")
"""Endings of HEIF images, which are read where pillow-heif is installed."""
HEIF_REMEDY = "install pillow-heif (pip install 'tcl-annotate[heif]') or save as JPEG"
"""What to do about HEIF images where it is not."""
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}

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
    found = {name: extensions for name, extensions in _EXTENSIONS_OF_FORMAT.items() if name in Image.OPEN}
    return found if HeifImageFile is None else {**found, "HEIF": HEIF_EXTENSIONS}


SUPPORTED_EXTENSIONS: tuple[str, ...] = tuple(sorted(e for es in _readable_formats().values() for e in es))
"""Lower-case file name endings that a walk over a folder takes as images; AVIF only where Pillow can read it, HEIF
where pillow-heif is installed."""

_ORIENTATION_TAG = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_PHOTOMETRIC = 256, 257, 258, 262
_TIFF_WHITE_IS_ZERO = 0


def is_supported(path: str | os.PathLike[str]) -> bool:
    """Whether a file's name ends like an image this library reads (the content is not looked at).

    >>> is_supported("holiday.JPG"), is_supported("notes.txt")
    (True, False)
    """
    return Path(path).suffix.lower() in SUPPORTED_EXTENSIONS


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    name: str | None = None,
    bit_depth: int | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> NDArray[np.uint8]:
    """Decode an image to 8-bit RGB, upright.

    * EXIF orientation is applied. Animated files (GIF, WebP, APNG, multi-page TIFF) give their first frame.
    * Transparent images (RGBA, LA, palette or color-key transparency) are composited on **white**.
    * Gray is repeated over the three channels; CMYK, YCbCr and palettes are converted by Pillow, without a color
      profile.
    * More than 8 bits are scaled so that the largest value of that depth becomes 255. 16-bit files often hold fewer
      bits: the depth is then the smallest of 8, 10, 12, 14 and 16 bits that has room for every value of the image, or
      ``bit_depth``. Files that state another depth (TIFF of 12 bits, PGM with a maximum) have that. Gray values
      without a defined white (float, 32-bit and signed integers): floats within [0, 1] are multiplied by 255, values
      within [0, 255] are taken as they are, anything else is stretched from its minimum to its maximum; NaN and
      negative infinity become black, positive infinity white.
    * A JPEG that lacks nothing but its end marker is read, with a warning; one that lacks any pixel is not.

    Args:
        source: path of the file, or the encoded bytes themselves.
        max_pixels: largest width x height to decode; compared with the header before decoding.
        name: what error messages call the image; the path by default.
        bit_depth: bits that 16-bit files use, 1 to 16; higher values become white. ``None`` takes those that the values
            of each image suggest.
        on_warning: is told, in a sentence that begins with the name, what is odd about an image that is read all the
            same; by default Python's `warnings` are.

    Returns:
        uint8 ``[H, W, 3]``, RGB, contiguous and writable.

    Raises:
        ImageError: the file is missing, unreadable, not an image, damaged, truncated or above ``max_pixels``.
        SettingsError: ``max_pixels`` is not positive, or ``bit_depth`` out of range.

    >>> encoded = io.BytesIO()
    >>> Image.new("LA", (3, 2), (0, 0)).save(encoded, "PNG")
    >>> load_image(encoded.getvalue()).shape, int(load_image(encoded.getvalue()).min())
    ((2, 3, 3), 255)
    """
    if max_pixels < 1:
        raise SettingsError(f"max_pixels is {max_pixels}; give the largest number of pixels to decode, at least 1.")
    if bit_depth is not None and not 1 <= bit_depth <= 16:
        raise SettingsError(f"bit_depth is {bit_depth}; give a number of bits from 1 to 16, or none for automatic.")
    shown = _shown_name(source, name)
    pixels, orientation, (height, width) = _decoded(source, shown, max_pixels, bit_depth, on_warning or _warn)
    # Here, where the decoder's own copy of the image is gone.
    pixels = _turn(pixels, orientation)
    if pixels.shape[0] * pixels.shape[1] > max_pixels or pixels.shape[:2] != (height, width):
        raise ImageError(
            f"{shown}: the image is {pixels.shape[1]} x {pixels.shape[0]} but its header says {width} x {height}; "
            "save it again with an image editor."
        )
    return pixels


def _decoded(
    source: ImageSource, shown: str, max_pixels: int, bit_depth: int | None, warn: Callable[[str], None]
) -> tuple[NDArray[np.uint8], int, tuple[int, int]]:
    """The pixels as they are stored, the orientation that is still to be undone, and height and width after that."""
    with _opened(source, shown) as (image, handle):
        height, width = _upright_size(image, handle)
        if height * width > max_pixels:
            raise ImageError(
                f"{shown}: {width} x {height} has {height * width} pixels, more than the limit of {max_pixels}; "
                "make the image smaller or raise the pixel limit."
            )
        orientation = _orientation(image, handle)
        white_is_zero = _is_16_bit_white_is_zero(image)
        bits, stated = _bits_per_sample(image)
        deep = is_deep_color(image)
        whole = _load(image, handle, shown, warn)
        # Pillow turns TIFFs itself while it loads them, and then drops the tag.
        if image.format == "TIFF" and _ORIENTATION_TAG not in image.tag_v2:  # type: ignore[attr-defined]
            orientation = 1
        pixels = deep_color_to_rgb(whole, partial(_again, handle, shown), bit_depth) if deep else None
        if pixels is None:
            pixels = to_rgb(whole, bits, None if stated else bit_depth or AUTOMATIC, white_is_zero)
        return pixels, orientation, (height, width)


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


def exif_orientation(source: ImageSource, *, name: str | None = None) -> int:
    """EXIF orientation, from the header alone; `load_image` and `image_size` apply it.

    Args:
        source: path of the file, or the encoded bytes themselves.
        name: what error messages call the image; the path by default.

    Returns:
        1 to 8; 1 where there is none.

    Raises:
        ImageError: the file is missing, unreadable or its header is not that of an image.
    """
    with _opened(source, _shown_name(source, name)) as (image, handle):
        return _orientation(image, handle)


def _shown_name(source: ImageSource, name: str | None) -> str:
    if name is not None:
        return name
    return "image in memory" if isinstance(source, bytes) else os.fspath(source)


@contextmanager
def _opened(source: ImageSource, shown: str) -> Iterator[tuple[ImageFile.ImageFile, BinaryIO]]:
    """Open an image lazily; whatever a decoder raises inside the block becomes one `ImageError`."""
    with _binary_handle(source, shown) as handle:
        try:
            image = _identify(handle, shown)
            try:
                yield image, handle
            finally:
                image.close()
        except (ImageError, SettingsError):
            raise
        except UnidentifiedImageError as error:
            known = ", ".join(extension[1:] for extension in SUPPORTED_EXTENSIONS)
            raise ImageError(
                f"{shown}: not an image that can be read, whatever its name says; images are read as {known}."
            ) from error
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
            raise ImageError(f"{shown}: contains no bytes; give the content of an image file.")
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


def _identify(handle: BinaryIO, shown: str) -> ImageFile.ImageFile:
    """Let the allowed plugins read the header.

    `PIL.Image.open` would also compare the size with a process-wide limit; going through its plugin table leaves that
    limit, and the warnings that belong to it, to the other users of the process.
    """
    start = handle.read(256)
    if _is_heif(start):
        if HeifImageFile is None:
            raise ImageError(f"{shown}: is a HEIF image, regardless of its extension; {HEIF_REMEDY}.")
        handle.seek(0)
        return HeifImageFile(handle, "")
    prefix = start[:16]
    for name in _readable_formats():
        if name == "HEIF":
            continue
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
        mend_planes(image)
        return image
    raise UnidentifiedImageError("no decoder accepts it")


def _again(handle: BinaryIO, shown: str) -> ImageFile.ImageFile:
    handle.seek(0)
    return _identify(handle, shown)


def _is_heif(start: bytes) -> bool:
    """Whether a file's first box says HEIF (ISO 23008-12) with HEVC inside; AVIF shares the container."""
    if start[4:8] != b"ftyp":
        return False
    brands = start[8 : min(int.from_bytes(start[:4], "big"), len(start))]
    return any(brands[place : place + 4] in _HEIF_BRANDS for place in range(0, len(brands), 4))


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


def _bits_per_sample(image: ImageFile.ImageFile) -> tuple[int | None, bool]:
    """Bits of an unsigned gray image deeper than 8 bits, or None where the values have no defined white.

    The second value says whether the file states them, or only that it stores 16.
    """
    if image.mode.startswith("I;16"):
        stored = image.tag_v2.get(_TIFF_BITS, (16,))[0] if image.format == "TIFF" else 16  # type: ignore[attr-defined]
        return int(stored), int(stored) != 16
    # 16-bit PGM, and 16-bit PNG in older Pillow, arrive as 32-bit integers of range 65535.
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        # A PGM that states its highest value is scaled by Pillow; one that states 65535 may hold less.
        return 16, image.format == "PPM" and any(tile.codec_name != "raw" for tile in image.tile)
    return None, True


def _load(image: ImageFile.ImageFile, handle: BinaryIO, shown: str, warn: Callable[[str], None]) -> ImageFile.ImageFile:
    """Decode an image; the one that is decoded is another where a file had to be mended."""
    try:
        image.load()
        return image
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        handle.seek(0)
        mended = with_end_marker(handle.read())
        if mended is None:
            raise
    again = _identify(io.BytesIO(mended), shown)
    again.load()
    warn(
        f"{shown}: the end marker of the JPEG is missing, but the image is complete; save it again to repair the file."
    )
    return again


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)
