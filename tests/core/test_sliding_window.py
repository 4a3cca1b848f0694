from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tcl_core.images import working_size
from tcl_core.segmentation.sliding_window import (
    background_plane,
    merge_windows,
    split_windows,
    window_grid,
    window_origins,
)
from tcl_core.towers.padding import pad_to_multiple


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (448, 597)),
        ((640, 480), (597, 448)),
        ((448, 448), (448, 448)),
        ((100, 100), (448, 448)),
        ((300, 3000), (205, 2048)),
        ((1, 20000), (1, 2048)),
        ((20000, 1), (2048, 1)),
        ((1, 1), (448, 448)),
    ],
)
def test_working_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*size, short_side=448, max_long_side=2048) == expected


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_working_size_stays_within_both_limits(height: int, width: int) -> None:
    new = working_size(height, width, 448, 2048)
    assert 1 <= min(new) <= 448 and max(new) <= 2048
    assert min(new) == 448 or max(new) == 2048


@pytest.mark.parametrize("numbers", [(0, 5, 1, 1), (5, -1, 1, 1), (5, 5, 0, 1), (5, 5, 1, 0)])
def test_working_size_of_nothing(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        working_size(*numbers)


@given(st.integers(1, 400), st.integers(1, 120), st.data())
def test_grid_covers_the_axis(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    starts = window_grid(length, window, stride)
    assert len(starts) == max(length - window + stride - 1, 0) // stride + 1
    assert starts == sorted(set(starts)) and starts[0] == 0
    size = min(window, length)
    assert starts[-1] + size == length
    assert {pixel for start in starts for pixel in range(start, start + size)} == set(range(length))


@pytest.mark.parametrize("numbers", [(0, 4, 2), (9, 0, 0), (9, 4, 0), (9, 4, 5)])
def test_grid_with_gaps_is_an_error(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 <= stride <= window"):
        window_grid(*numbers)


def test_origins_are_in_reading_order() -> None:
    assert window_origins((5, 8), window=4, stride=2) == [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4)]


def test_split_cuts_where_the_origins_say() -> None:
    image = torch.arange(3 * 7 * 5).reshape(3, 7, 5)
    windows, origins = split_windows(image, window=4, stride=3)
    assert windows.shape == (len(origins), 3, 4, 4)
    for window, (y, x) in zip(windows, origins, strict=True):
        assert torch.equal(window, image[:, y : y + 4, x : x + 4])
    small, origins = split_windows(image, window=6, stride=3)
    assert small.shape == (2, 3, 6, 5) and origins == [(0, 0), (1, 0)]


def test_merge_undoes_split() -> None:
    image = torch.rand(2, 23, 17)
    windows, origins = split_windows(image, window=8, stride=5)
    torch.testing.assert_close(merge_windows(windows, origins, (23, 17)), image)
    assert torch.equal(merge_windows(iter(windows), origins, (23, 17)), merge_windows(windows, origins, (23, 17)))


def test_merge_is_the_mean_over_the_windows_of_each_pixel() -> None:
    size, window = (9, 11), 4
    origins = window_origins(size, window, 3)
    windows = torch.rand(len(origins), 2, window, window)
    merged = merge_windows(windows, origins, size)
    for y in range(size[0]):
        for x in range(size[1]):
            here = [
                w[:, y - top, x - left]
                for w, (top, left) in zip(windows, origins, strict=True)
                if 0 <= y - top < window and 0 <= x - left < window
            ]
            torch.testing.assert_close(merged[:, y, x], torch.stack(here).mean(dim=0))


@pytest.mark.parametrize(
    ("windows", "origins", "size", "message"),
    [
        (torch.rand(1, 1, 4, 4), [(0, 0)], (4, 5), "cover"),
        (torch.rand(0, 1, 4, 4), [], (4, 4), "cover"),
        (torch.rand(1, 1, 4, 4), [(0, 0), (0, 1)], (4, 5), "zip"),
        ([torch.rand(1, 4, 4), torch.rand(2, 4, 4)], [(0, 0), (0, 1)], (4, 5), "2 score maps"),
    ],
)
def test_merge_of_the_wrong_windows(
    windows: Tensor, origins: list[tuple[int, int]], size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        merge_windows(windows, origins, size)


def test_background_plane_comes_first() -> None:
    scores = torch.rand(2, 3, 4, 5)
    with_background = background_plane(scores, 0.4)
    assert torch.equal(with_background[:, 1:], scores)
    assert torch.equal(with_background[:, 0], torch.full((2, 4, 5), 0.4))
    assert background_plane(scores[0, :0], 0.5).shape == (1, 4, 5)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16))
def test_padding_is_symmetric(height: int, width: int, multiple: int) -> None:
    image = torch.ones(1, height, width)
    padded, (top, left) = pad_to_multiple(image, multiple)
    rows, columns = padded.shape[1:]
    assert rows % multiple == 0 and columns % multiple == 0
    assert rows - height < multiple and columns - width < multiple
    assert (top, left) == ((rows - height) // 2, (columns - width) // 2)
    assert torch.equal(padded[:, top : top + height, left : left + width], image)
    assert float(padded.sum()) == height * width
