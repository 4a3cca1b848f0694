from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from napari_tcl.slices import SliceReader, axis_of, scale_to_8_bit
from tcl_core.errors import ImageError
from tcl_core.images import load_image


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_rgb_is_taken_as_it_is(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert np.array_equal(SliceReader(image, rgb=True, limits=(10, 20)).read(), image)


def test_opacity_agrees_with_the_command_line(rng: np.random.Generator, tmp_path: Path) -> None:
    image = rng.integers(0, 256, (7, 9, 4), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    difference = SliceReader(image, rgb=True).read().astype(int) - load_image(tmp_path / "a.png")
    assert np.abs(difference).max() <= 1


def test_16_bit_gray_agrees_with_the_command_line(rng: np.random.Generator, tmp_path: Path) -> None:
    image = rng.integers(0, 65536, (7, 9), dtype=np.uint16)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(SliceReader(image).read(), load_image(tmp_path / "a.png"))


def test_limits_become_black_and_white() -> None:
    values = np.array([[0, 100, 200, 300, 65535]], np.uint16)
    assert SliceReader(values, limits=(100, 300)).read()[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([False, True]), [0, 255]),
        (np.array([-1.0, 0.0, 1.0]), [0, 128, 255]),
        (np.array([0.0, 0.5, np.inf]), [0, 128, 255]),
        (np.array([np.nan, np.nan]), [0, 0]),
        (np.array([-5, 5], np.int32), [0, 255]),
        (np.array([7, 7], np.int64), [0, 0]),
        (np.array([0, 128, 255], np.uint8), [0, 128, 255]),
    ],
)
def test_scaling(values: np.ndarray[Any, Any], expected: list[int]) -> None:
    assert scale_to_8_bit(values).tolist() == expected


def test_stack_of_channels(rng: np.random.Generator) -> None:
    stack = rng.integers(0, 256, (3, 5, 2, 8, 9), dtype=np.uint8)
    reader = SliceReader(stack, channel_axis=1, channels=(4, 0))
    assert (reader.stack_shape, reader.size) == ((3, 2), (8, 9))
    assert len(list(reader.indices())) == 6
    image = reader.read((2, 1))
    assert np.array_equal(image[..., 0], stack[2, 4, 1])
    assert np.array_equal(image[..., 1], stack[2, 0, 1])
    assert not image[..., 2].any()


def test_channels_may_come_last(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (8, 9, 5), dtype=np.uint8)
    assert np.array_equal(SliceReader(image, channel_axis=2, channels=(4, 2, 1)).read(), image[..., [4, 2, 1]])


def test_one_channel_is_gray(rng: np.random.Generator) -> None:
    stack = rng.integers(0, 256, (5, 8, 9), dtype=np.uint8)
    image = SliceReader(stack, channel_axis=0, channels=(3,)).read()
    assert all(np.array_equal(image[..., channel], stack[3]) for channel in range(3))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 9), {"rgb": True}, "last axis of size 3 or 4"),
        ((8, 9, 3), {"rgb": True, "channel_axis": 0}, "already has channels"),
        ((9,), {}, "fewer than two axes"),
        ((2, 9), {"channel_axis": 0}, "fewer than two axes"),
        ((2, 8, 9), {"channel_axis": 3}, "no channel axis 3"),
        ((2, 8, 9), {"channel_axis": 0, "channels": (0, 2)}, "no channel 2"),
        ((5, 8, 9), {"channel_axis": 0, "channels": (0, 1, 2, 3)}, "one to 3"),
        ((5, 8, 9), {"channel_axis": 0, "channels": ()}, "one to 3"),
        ((0, 9), {}, "no pixel"),
    ],
)
def test_what_does_not_fit(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        SliceReader(np.zeros(shape, np.uint8), **options)


def test_complex_numbers_are_no_image() -> None:
    with pytest.raises(ImageError, match="complex64"):
        SliceReader(np.zeros((4, 4), np.complex64))


@pytest.mark.parametrize("index", [(), (3,), (-1,), (0, 0)])
def test_no_such_slice(index: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="no slice"):
        SliceReader(np.zeros((3, 4, 4), np.uint8)).read(index)


def test_an_axis_that_is_not_there_is_no_other_axis() -> None:
    assert [axis_of(text, 3) for text in ("0", "2", "-1")] == [0, 2, 2]
    with pytest.raises(ImageError, match="no channel axis 3; the layer has the axes 0 to 2"):
        axis_of("3", 3)
