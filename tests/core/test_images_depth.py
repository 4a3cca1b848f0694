"""Files of 16 bits that hold fewer: visible, by themselves or by the option."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from tcl_core.errors import SettingsError
from tcl_core.images import load_image
from tests.core.test_images import encode, png_chunk, raw_png

RNG = np.random.default_rng(3)
DEPTHS = (8, 10, 12, 14, 16)


def samples(depth: int, channels: int) -> np.ndarray:
    """Values of a depth, its highest among them."""
    values = RNG.integers(0, 1 << depth, (5, 8, channels), dtype=np.uint16)
    values[0, 0, 0] = (1 << depth) - 1
    return values


def expected(values: np.ndarray, depth: int) -> np.ndarray:
    return np.minimum(np.rint(values * (255 / ((1 << depth) - 1))), 255)


def png16(values: np.ndarray, color: int, *extra: bytes) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return raw_png(values.shape[1], values.shape[0], 16, color, rows, *extra)


def tiff16(values: np.ndarray, byteorder: str, compression: str | None, planar: str) -> bytes:
    stream = io.BytesIO()
    layers = np.moveaxis(values, 2, 0) if planar == "separate" else values
    tifffile.imwrite(
        stream, layers, byteorder=byteorder, compression=compression, photometric="rgb", planarconfig=planar
    )
    return stream.getvalue()


@pytest.mark.parametrize("depth", DEPTHS)
def test_gray(depth: int) -> None:
    values = samples(depth, 1)
    png = encode(Image.fromarray(values[..., 0]), "PNG")
    pgm = b"P5 8 5 65535\n" + values.astype(">u2").tobytes()
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, values[..., 0], photometric="minisblack")
    for data in (png, pgm, tiff.getvalue()):
        loaded = load_image(data)
        assert loaded.max() == 255
        np.testing.assert_allclose(loaded, np.repeat(expected(values, depth), 3, axis=2), atol=1)


@pytest.mark.parametrize("depth", DEPTHS)
def test_color_in_png(depth: int) -> None:
    values = samples(depth, 3)
    np.testing.assert_allclose(load_image(png16(values, 2)), expected(values, depth), atol=1)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(("planar", "compression"), [("contig", None), ("contig", "zlib"), ("separate", None)])
def test_color_in_tiff(depth: int, byteorder: str, compression: str | None, planar: str) -> None:
    values = samples(depth, 3)
    loaded = load_image(tiff16(values, byteorder, compression, planar))
    np.testing.assert_allclose(loaded, expected(values, depth), atol=1)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_of_compressed_planes_the_upper_bytes_are_read(byteorder: str) -> None:
    values = samples(16, 3)
    np.testing.assert_allclose(load_image(tiff16(values, byteorder, "zlib", "separate")), values >> 8, atol=1)


@pytest.mark.parametrize("color", [4, 6])
def test_opacity_has_all_bits(color: int) -> None:
    channels = 2 if color == 4 else 4
    values = samples(12, channels)
    values[..., -1] = RNG.integers(0, 65536, values.shape[:2])
    alpha = values[..., -1:] / 65535
    shown = np.broadcast_to(expected(values[..., :-1], 12), (5, 8, 3)) * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(load_image(png16(values, color)), shown, atol=2)


def test_color_key_is_compared_with_all_bits() -> None:
    values = np.full((1, 3, 3), 2000, dtype=np.uint16)
    values[0, 1, 2], values[0, 2] = 2001, 4095
    key = png_chunk(b"tRNS", struct.pack(">3H", 2000, 2000, 2000))
    loaded = load_image(png16(values, 2, key))
    assert loaded[0, 0].tolist() == [255] * 3 and loaded[0, 1].tolist() == [125, 125, 125]


def test_a_gray_value_for_nothing_does_not_count() -> None:
    values = np.array([[0, 4095, 65535]], dtype=np.uint16)[..., None]
    loaded = load_image(png16(values, 0, png_chunk(b"tRNS", struct.pack(">H", 65535))))
    assert loaded[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("color", [0, 2])
def test_the_option_comes_before_the_values(color: int) -> None:
    values = samples(10, 1 if color == 0 else 3)
    for depth in (8, 12, 16):
        shown = np.broadcast_to(expected(values, depth), (5, 8, 3))
        np.testing.assert_allclose(load_image(png16(values, color), bit_depth=depth), shown, atol=1)


def test_a_depth_that_the_file_states_is_neither_guessed_nor_overruled() -> None:
    # Dark, and of a stated maximum: 200 of 4095 stays dark.
    data = b"P5 2 1 4095\n" + np.array([200, 100], dtype=">u2").tobytes()
    for depth in (None, 8):
        np.testing.assert_allclose(load_image(data, bit_depth=depth)[0, :, 0], [200 / 4095 * 255, 6], atol=1)
    eight = np.array([[3, 7]], dtype=np.uint8)
    assert load_image(encode(Image.fromarray(eight), "PNG"), bit_depth=4)[0, :, 0].tolist() == [3, 7]


def test_nothing_but_black_stays_black() -> None:
    for color, channels in ((0, 1), (2, 3)):
        assert not load_image(png16(np.zeros((2, 2, channels), dtype=np.uint16), color)).any()


@pytest.mark.parametrize("depth", [0, 17, -1])
def test_a_depth_out_of_range(depth: int) -> None:
    with pytest.raises(SettingsError, match="from 1 to 16"):
        load_image(b"x", bit_depth=depth)
