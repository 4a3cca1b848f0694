"""What is read although something is odd about it, and what is not: JPEGs without their end, and HEIF."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_core.errors import ImageError
from tcl_core.images import HEIF_EXTENSIONS, SUPPORTED_EXTENSIONS, image_size, load_image
from tcl_core.images import reading as images_reading
from tests.core.test_images import encode

HEIF_IS_READ = importlib.util.find_spec("pillow_heif") is not None


def scene(height: int = 50, width: int = 70) -> Image.Image:
    """Smooth colors with noise to the last pixel, so that none could be left out unseen."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(1).integers(-40, 40, (height, width, 3))
    return Image.fromarray(np.clip(np.dstack([x * 3, y * 4, x + y]) + noise, 0, 255).astype(np.uint8))


JPEGS = {
    "baseline": dict(quality=80),
    "gray": dict(quality=80),
    "full chroma": dict(quality=90, subsampling=0),
    "progressive": dict(quality=80, progressive=True),
    "restart intervals": dict(quality=80, restart_marker_blocks=3),
    "progressive with restarts": dict(quality=70, progressive=True, restart_marker_rows=1),
    "optimized": dict(quality=60, optimize=True),
}


def jpeg(kind: str) -> bytes:
    return encode(scene().convert("L") if kind == "gray" else scene(), "JPEG", **JPEGS[kind])


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("cut", [1, 2], ids=["half of the end", "no end"])
def test_a_jpeg_without_its_end_marker_is_read_with_a_warning(tmp_path: Path, kind: str, cut: int) -> None:
    data = jpeg(kind)
    assert data.endswith(b"\xff\xd9")
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-cut])
    said: list[str] = []
    np.testing.assert_array_equal(load_image(path, on_warning=said.append), load_image(data))
    assert len(said) == 1 and said[0].startswith(f"{path}: the end marker of the JPEG is missing")
    with pytest.warns(UserWarning, match="end marker") as caught:
        load_image(path)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("kind", JPEGS)
def test_no_jpeg_that_lacks_a_pixel_is_read(kind: str) -> None:
    """At every cut the file is refused, or gives the very image of the whole file."""
    data = jpeg(kind)
    whole = load_image(data)
    first = data.index(b"\xff\xda")
    read = []
    cuts = {*range(first, len(data) - 2, 7), *range(len(data) - 60, len(data) - 2)}
    # Between scans and restart intervals, where nothing in the middle of the data looks torn.
    cuts |= {place for place in range(first + 2, len(data) - 2) if data[place] == 0xFF and data[place + 1] != 0}
    for cut in sorted(cuts):
        try:
            loaded = load_image(data[:cut], on_warning=lambda _: None)
        except ImageError:
            continue
        read.append(cut)
        np.testing.assert_array_equal(loaded, whole, err_msg=f"cut at {cut} of {len(data)}")
    # A byte or two of padding may be gone, and no more.
    assert all(cut >= len(data) - 5 for cut in read)


def test_other_formats_without_their_end() -> None:
    png = encode(scene(), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(png[: png.index(b"IEND") - 4]), load_image(png))
        gif = encode(scene().quantize(16), "GIF")
        np.testing.assert_array_equal(load_image(gif[:-1]), load_image(gif))


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xc0\0\x11", b"\xff\xd8" + b"\xff" * 50])
def test_headers_that_end_anywhere(data: bytes) -> None:
    with pytest.raises(ImageError, match="damaged or truncated|not an image"):
        load_image(data)


# -- HEIF --------------------------------------------------------------------------------------------------------------

HEADER = b"\0\0\0\x18ftyp%b\0\0\0\0mif1%b"


@pytest.mark.parametrize("brands", [(b"heic", b"heic"), (b"mif1", b"heic"), (b"heix", b"mif1")])
@pytest.mark.parametrize("ending", [".heic", ".jpg"])
def test_heif_without_its_library_is_named_with_the_remedy(
    tmp_path: Path, brands: tuple[bytes, bytes], ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_reading, "HeifImageFile", None)
    path = tmp_path / f"a{ending}"
    path.write_bytes(HEADER % brands)
    for read in (load_image, image_size):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: is a HEIF image")
        assert "pip install 'tcl-annotate[heif]'" in str(caught.value)


@pytest.mark.skipif(not HEIF_IS_READ, reason="pillow-heif is not installed")
def test_heif_is_read_where_its_library_is() -> None:
    import pillow_heif

    assert set(HEIF_EXTENSIONS) <= set(SUPPORTED_EXTENSIONS)
    stream = io.BytesIO()
    pillow_heif.from_pillow(scene(48, 64)).save(stream, quality=-1)
    data = stream.getvalue()
    loaded = load_image(data)
    reference = pillow_heif.open_heif(io.BytesIO(data)).to_pillow().convert("RGB")
    np.testing.assert_array_equal(loaded, np.asarray(reference))
    assert np.corrcoef(loaded.ravel(), np.asarray(scene(48, 64)).ravel())[0, 1] > 0.9
    assert image_size(data) == (48, 64)
    with pytest.raises(ImageError, match="limit of 100"):
        load_image(data, max_pixels=100)
    for damaged in (data[: len(data) // 2], HEADER % (b"heic", b"heic")):
        with pytest.raises(ImageError, match="damaged or truncated"):
            load_image(damaged)


@pytest.mark.skipif(not HEIF_IS_READ, reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heif_is_upright(orientation: int) -> None:
    import pillow_heif

    image = scene(48, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=-1)
    loaded = load_image(stream.getvalue())
    reference = pillow_heif.open_heif(io.BytesIO(stream.getvalue())).to_pillow()
    np.testing.assert_array_equal(loaded, np.asarray(reference))
    assert image_size(stream.getvalue()) == loaded.shape[:2]


def test_the_plugin_is_not_forced_on_others() -> None:
    # In a process of its own: other libraries that the tests import may register it.
    program = "import tcl_core.images.reading as r; from PIL import Image; print(r.HeifImageFile, 'HEIF' in Image.OPEN)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "HeifImageFile" in done.stdout and done.stdout.endswith(" False\n")
