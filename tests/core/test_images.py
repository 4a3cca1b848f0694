from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from tcl_core.errors import ImageError, SettingsError
from tcl_core.images import (
    DEFAULT_MAX_PIXELS,
    SUPPORTED_EXTENSIONS,
    exif_orientation,
    image_size,
    is_supported,
    load_image,
)

RNG = np.random.default_rng(7)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, color: int, rows: bytes, *extra: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + png_chunk(b"IEND", b"")


def photo(height: int = 13, width: int = 9) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_unchanged(kind: str) -> None:
    pixels = photo()
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = load_image(encode(Image.fromarray(pixels), kind, **options))
    assert loaded.dtype == np.uint8 and loaded.flags["C_CONTIGUOUS"] and loaded.flags["WRITEABLE"]
    np.testing.assert_array_equal(loaded, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "GIF", "AVIF"])
def test_other_formats_are_read(kind: str) -> None:
    smooth = np.dstack(np.broadcast_arrays(np.arange(0, 256, 16)[:, None], np.arange(0, 256, 16)[None], 128))
    if f".{kind.lower()}" == ".avif" and ".avif" not in SUPPORTED_EXTENSIONS:
        pytest.skip("this Pillow has no AVIF decoder")
    loaded = load_image(encode(Image.fromarray(smooth.astype(np.uint8)), kind))
    assert loaded.shape == (16, 16, 3)
    assert np.abs(loaded.astype(int) - smooth).mean() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(photo(16, 24)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    loaded = load_image(data)
    np.testing.assert_array_equal(loaded, expected)
    assert exif_orientation(data) == orientation
    assert image_size(data) == loaded.shape[:2] == ((24, 16) if orientation >= 5 else (16, 24))


def test_exif_behind_the_pixels_of_a_png_is_found_without_decoding() -> None:
    pixels = photo(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode(Image.fromarray(pixels), "PNG")
    end = whole.index(b"IEND") - 4
    late = whole[:end] + png_chunk(b"eXIf", exif.tobytes()[6:]) + whole[end:]
    assert image_size(late) == (6, 4)
    np.testing.assert_array_equal(load_image(late), np.rot90(pixels, -1))


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_orientation_without_meaning_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert load_image(encode(Image.fromarray(photo(3, 5)), "PNG", exif=exif)).shape == (3, 5, 3)


def test_damaged_exif_leaves_the_image_readable() -> None:
    data = encode(Image.fromarray(photo(8, 8)), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert load_image(data).shape == (8, 8, 3)


def test_gray_is_repeated() -> None:
    gray = RNG.integers(0, 256, (5, 4), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(encode(Image.fromarray(gray), "PNG")), np.dstack([gray] * 3))


def test_one_bit() -> None:
    bits = np.array([[True, False, True]])
    loaded = load_image(encode(Image.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(loaded[..., 0], [[255, 0, 255]])


def test_one_bit_with_a_color_key() -> None:
    loaded = load_image(raw_png(8, 1, 1, 0, b"\0\xf0", png_chunk(b"tRNS", b"\0\0")))
    assert (loaded == 255).all()


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(load_image(encode(palette, "PNG")), [[[10, 20, 30], [200, 100, 50]]])
    np.testing.assert_array_equal(
        load_image(encode(palette, "PNG", transparency=0)), [[[255, 255, 255], [200, 100, 50]]]
    )
    half = load_image(encode(palette, "PNG", transparency=bytes([128, 255])))
    np.testing.assert_allclose(half[0, 0], np.array([10, 20, 30]) * 128 / 255 + 127, atol=1)
    np.testing.assert_array_equal(load_image(encode(palette, "GIF", transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    channels = RNG.integers(0, 256, (6, 7, len(mode)), dtype=np.uint8)
    loaded = load_image(encode(Image.fromarray(channels, mode), "PNG"))
    alpha = channels[..., -1:] / 255
    np.testing.assert_allclose(
        loaded, np.broadcast_to(channels[..., :-1] * alpha + 255 * (1 - alpha), (6, 7, 3)), atol=1
    )


def test_rgb_with_a_color_key() -> None:
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    np.testing.assert_array_equal(
        load_image(encode(image, "PNG", transparency=(1, 2, 3))), [[[255, 255, 255], [4, 5, 6]]]
    )


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    ink = np.zeros((8, 8, 4), dtype=np.uint8)
    ink[..., 1] = ink[..., 2] = 255  # magenta and yellow make red
    loaded = load_image(encode(Image.fromarray(ink, "CMYK"), kind))
    np.testing.assert_allclose(loaded.reshape(-1, 3).mean(0), [255, 0, 0], atol=4)


RAMP16 = np.linspace(0, 65535, 40).astype(np.uint16).reshape(5, 8)
RAMP8 = np.rint(RAMP16 / 257).astype(np.uint8)


def test_16_bit_gray_png_is_scaled_not_clipped() -> None:
    loaded = load_image(encode(Image.fromarray(RAMP16), "PNG"))
    np.testing.assert_array_equal(loaded, np.dstack([RAMP8] * 3))


def test_16_bit_gray_png_with_a_color_key() -> None:
    rows = b"\0" + struct.pack(">2H", 300, 20000)
    loaded = load_image(raw_png(2, 1, 16, 0, rows, png_chunk(b"tRNS", struct.pack(">H", 300))))
    np.testing.assert_array_equal(loaded[0, :, 0], [255, round(20000 / 257)])


def test_16_bit_color_png() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 32768, 0, 300, 20000, 40000)
    loaded = load_image(raw_png(2, 1, 16, 2, rows))
    np.testing.assert_allclose(loaded, [[[255, 127.5, 0], [1, 77.8, 155.6]]], atol=1)


def test_16_bit_color_png_with_a_color_key() -> None:
    rows = b"\0" + struct.pack(">6H", 65535, 32768, 0, 300, 20000, 40000)
    loaded = load_image(raw_png(2, 1, 16, 2, rows, png_chunk(b"tRNS", struct.pack(">3H", 300, 20000, 40000))))
    np.testing.assert_array_equal(loaded[0, 1], [255, 255, 255])
    assert loaded[0, 0, 0] == 255 and loaded[0, 0, 2] == 0


@pytest.mark.parametrize("alpha_color", [4, 6])
def test_16_bit_png_with_alpha(alpha_color: int) -> None:
    samples = (20000, 0) if alpha_color == 4 else (20000, 0, 0, 0)
    assert (load_image(raw_png(1, 1, 16, alpha_color, b"\0" + struct.pack(f">{len(samples)}H", *samples))) == 255).all()


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff(byteorder: str, compression: str | None) -> None:
    def tiff(pixels: np.ndarray, photometric: str) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, pixels, byteorder=byteorder, photometric=photometric, compression=compression)
        return stream.getvalue()

    np.testing.assert_array_equal(load_image(tiff(RAMP16, "minisblack"))[..., 0], RAMP8)
    color = np.dstack([RAMP16, RAMP16[::-1], RAMP16[:, ::-1]])
    np.testing.assert_allclose(load_image(tiff(color, "rgb")), color / 257, atol=1)


def test_16_bit_tiff_in_which_white_is_zero() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, RAMP16, photometric="miniswhite", byteorder="<")
    np.testing.assert_array_equal(load_image(stream.getvalue())[..., 0], 255 - RAMP8)


def test_16_bit_pgm() -> None:
    data = b"P5 8 5 65535\n" + RAMP16.astype(">u2").tobytes()
    np.testing.assert_array_equal(load_image(data)[..., 0], RAMP8)
    data = b"P5 2 1 1023\n" + np.array([1023, 512], dtype=">u2").tobytes()
    np.testing.assert_allclose(load_image(data)[0, :, 0], [255, 128], atol=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]]), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]]), [0, 128, 255]),
        (np.array([[0.0, 2000.0, 4000.0]]), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 0.5]]), [0, 255, 128]),
        (np.array([[np.nan, np.nan, np.nan]]), [0, 0, 0]),
        (np.array([[700.0, 700.0, 700.0]]), [0, 0, 0]),
    ],
)
def test_float_tiff(values: np.ndarray, expected: list[int]) -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values.astype(np.float32), photometric="minisblack")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(load_image(stream.getvalue())[0, :, 0], expected, atol=1)


def test_32_bit_integer_tiff() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.array([[0, 1, 1000]], dtype=np.int32), photometric="minisblack")
    np.testing.assert_array_equal(load_image(stream.getvalue())[0, :, 0], [0, 0, 255])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options: dict[str, object] = {"save_all": True, "append_images": frames[1:]}
    if kind == "WEBP":
        options["lossless"] = True
    loaded = load_image(encode(frames[0], kind, **options))
    assert loaded.shape == (4, 6, 3) and (loaded == [255, 0, 0]).all()


def test_one_pixel_and_very_long() -> None:
    assert load_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).tolist() == [[[9, 8, 7]]]
    assert load_image(encode(Image.new("L", (20000, 1)), "PNG")).shape == (1, 20000, 3)


def test_pixel_limit_is_checked_before_decoding() -> None:
    # The pixel data is absent: only a check of the header can come to "limit" before "truncated".
    huge = raw_png(60000, 60000, 8, 2, b"")
    with pytest.raises(ImageError, match=r"3600000000 pixels, more than the limit of 200000000"):
        load_image(huge)
    assert image_size(huge) == (60000, 60000)
    fits = encode(Image.new("L", (100, 50)), "PNG")
    assert load_image(fits, max_pixels=5000).shape == (50, 100, 3)
    with pytest.raises(ImageError, match="limit of 4999"):
        load_image(fits, max_pixels=4999)
    with pytest.raises(SettingsError, match="max_pixels"):
        load_image(fits, max_pixels=0)


def test_pillows_own_limit_is_neither_used_nor_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = encode(Image.new("L", (100, 100)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).shape == (100, 100, 3)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_gif_frame_larger_than_its_screen_is_measured() -> None:
    data = bytearray(encode(Image.new("P", (40, 40)), "GIF"))
    data[6:10] = struct.pack("<HH", 2, 2)
    with pytest.raises(ImageError, match="limit of 100"):
        load_image(bytes(data), max_pixels=100)


def test_text_chunk_bomb_is_an_error() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (4 << 20), zip=True)
    with pytest.raises(ImageError, match="damaged or truncated"):
        load_image(encode(Image.new("L", (2, 2)), "PNG", pnginfo=info))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    data = encode(Image.fromarray(photo(64, 64)), kind)
    path = tmp_path / f"half of it.{kind.lower()}"
    path.write_bytes(data[: max(1, int(len(data) * share))])
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_checksum_is_an_error() -> None:
    data = bytearray(encode(Image.fromarray(photo(32, 32)), "PNG"))
    data[data.index(b"IDAT") + 300] ^= 0xFF
    with pytest.raises(ImageError, match="damaged"):
        load_image(bytes(data))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"just some words\n", "not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
        (b"\xff\xd8\xff", "damaged or truncated"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated"),
        (b"\0" * 100, "not an image that can be read"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "Möbel und 猫 (1).jpg"
    path.write_bytes(content)
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and words in message and message.endswith(".")


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("nul\0inside.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("x" * 5000)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="not a regular file"):
            load_image(tmp_path / "pipe.png")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.new("L", (2, 2)), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match="no permission"):
        load_image(path)


def test_no_permission_as_the_system_reports_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.new("L", (2, 2)), "PNG"))

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match="no permission"):
        load_image(path)


def test_bytes_can_be_named() -> None:
    with pytest.raises(ImageError, match="^task 12: contains no bytes"):
        load_image(b"", name="task 12")
    with pytest.raises(ImageError, match="^image in memory: "):
        load_image(b"nothing")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]), st.data())
def test_flipped_bytes_give_an_image_or_one_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(encode(Image.new("RGB", (16, 12), (200, 30, 60)), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = load_image(bytes(content), max_pixels=100_000)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert loaded.dtype == np.uint8 and loaded.shape[:2] == image_size(bytes(content))


def test_extensions() -> None:
    assert {".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".tiff", ".bmp"} <= set(SUPPORTED_EXTENSIONS)
    assert all(extension == extension.lower() for extension in SUPPORTED_EXTENSIONS)
    assert is_supported("a/b.TIFF") and not is_supported("a/jpg") and not is_supported("x.eps")
    assert DEFAULT_MAX_PIXELS > 100_000_000
