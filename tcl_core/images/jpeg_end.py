"""JPEG files that only lack their end marker, told apart from files that lack a part of the image.

libjpeg fills what is missing with gray and says nothing that Pillow would pass on, so a file that got an end marker may
not simply be decoded. But where every pixel is there, whatever stands between the last one and the end marker changes
nothing; where one is missing, it is made of just that. So the file is decoded with several continuations, and is whole
if all of them give the same image. What this cannot see is a cut between two scans or restart intervals, where the
decoder looks for a marker: the headers of the scans must therefore cover every coefficient (ISO/IEC 10918-1, annex G),
and one continuation begins with the restart marker that would be next.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["with_end_marker"]

_EOI = b"\xff\xd9"
_SOF_SEQUENTIAL, _SOF_PROGRESSIVE, _DRI, _SOS = (0xC0, 0xC1), 0xC2, 0xDD, 0xDA
_COEFFICIENTS = 64
_JUNK = 4096
# All that the next four bits could be: a code that is cut off shows in one of them.
_FIRST_BYTES = range(0x00, 0xFF, 0x11)


@dataclass
class _Headers:
    """What a file's markers say.

    Attributes:
        frame: marker of the frame's header; 0 without any.
        missing: for each component, the lowest bit that its coefficients have been given to; 0 is all of it.
        restarts: whether scans are divided by restart markers.
        next_restart: number of the restart marker that would follow the last one.
        ended: whether there is an end marker.
    """

    frame: int = 0
    missing: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    restarts: bool = False
    next_restart: int = 0
    ended: bool = False


def with_end_marker(data: bytes) -> bytes | None:
    """The file with its end marker put back, if that is all it lacks.

    Args:
        data: a JPEG file that cannot be decoded to its end.

    Returns:
        The repaired file; ``None`` if it has an end marker, lacks any pixel, or is of a rare kind (lossless,
        arithmetic) that is not judged.
    """
    try:
        headers = _read_headers(data)
    except (IndexError, struct.error):
        return None
    if headers.ended or headers.frame == 0 or any(bits.any() for bits in headers.missing.values()):
        return None
    # Half of the end marker may be there.
    body = data.rstrip(b"\xff")
    whole = _decode(body + _EOI)
    # No 0xFF among them, so that they are taken for pixels and not for markers.
    junk = np.random.default_rng(0).integers(0, 0xFF, _JUNK, dtype=np.uint8).tobytes()
    begins = [bytes([first]) for first in _FIRST_BYTES]
    if headers.restarts:
        begins += [bytes([0xFF, 0xD0 + headers.next_restart, first]) for first in _FIRST_BYTES[::4]]
    for begin in begins:
        other = _decode(body + begin + junk + _EOI)
        if whole is None or other is None or not np.array_equal(whole, other):
            return None
    return body + _EOI


def _decode(data: bytes) -> NDArray[np.uint8] | None:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return None


def _read_headers(data: bytes) -> _Headers:
    headers = _Headers()
    for marker, position in _markers(data):
        if 0xD0 <= marker <= 0xD7:
            headers.next_restart = (marker - 0xD0 + 1) % 8
        elif marker == 0xD9:
            headers.ended = True
            break
        elif marker in (*_SOF_SEQUENTIAL, _SOF_PROGRESSIVE):
            headers.frame = marker
            count = data[position + 7]
            for number in range(count):
                headers.missing[data[position + 8 + 3 * number]] = np.full(_COEFFICIENTS, 1)
        elif marker == _DRI:
            headers.restarts = struct.unpack_from(">H", data, position + 2)[0] > 0
        elif marker == _SOS:
            headers.next_restart = 0
            count = data[position + 2]
            first, last, bits = data[position + 3 + 2 * count : position + 6 + 2 * count]
            for number in range(count):
                missing = headers.missing.get(data[position + 3 + 2 * number])
                if missing is not None:
                    progressive = headers.frame == _SOF_PROGRESSIVE
                    missing[slice(first, last + 1) if progressive else slice(None)] = bits & 15 if progressive else 0
    return headers


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker with the position behind it; what is between markers is passed over."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        position += 2
        if marker in (0x00, 0x01):
            continue
        yield marker, position
        if 0xC0 <= marker <= 0xFE and not 0xD0 <= marker <= 0xD9:
            position += struct.unpack_from(">H", data, position)[0]
