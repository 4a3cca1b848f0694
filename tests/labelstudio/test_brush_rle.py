from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from labelstudio_backend.brush_rle import decode_brush, encode_brush


def plain_decoder(rle: list[int]) -> list[int]:
    """The format's description, bit by bit, sharing nothing with the code."""
    bits = "".join(f"{byte:08b}" for byte in rle)

    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, width = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(width)] * length if same else [take(width) for _ in range(length)]
    return values


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24)))
def test_every_mask_comes_back(mask: NDArray[np.bool_]) -> None:
    rle = encode_brush(mask)
    assert plain_decoder(rle) == np.repeat(mask.ravel() * 255, 4).tolist()
    assert np.array_equal(decode_brush(rle, mask.shape), mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 16384), (1, 16385), (300, 700), (2, 3)])
def test_runs_longer_than_their_longest_length(size: tuple[int, int]) -> None:
    for mask in (np.ones(size, dtype=bool), np.zeros(size, dtype=bool)):
        assert np.array_equal(decode_brush(encode_brush(mask), size), mask)


def test_values_that_are_written_out() -> None:
    """The browser writes short runs of different values without repeating them."""
    header = f"{8:032b}" + f"{7:05b}" + "".join(f"{bits - 1:04b}" for bits in (3, 4, 8, 16))
    literal = "0" + "00" + f"{7:03b}" + "".join(f"{value:08b}" for value in (1, 2, 3, 255, 4, 5, 6, 10))
    bits = header + literal
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    assert decode_brush(rle, (1, 2)).tolist() == [[True, False]]


@given(st.lists(st.integers(0, 255), max_size=40))
def test_damaged_masks_are_an_error_and_nothing_else(rle: list[int]) -> None:
    try:
        decode_brush(rle, (3, 5))
    except ValueError:
        pass


@pytest.mark.parametrize("rle", [[], [0, 0, 0, 60], ["a"], [256], [0, 0, 0, 60, 57, 27, 252]])
def test_a_mask_that_ends_early(rle: list[int]) -> None:
    with pytest.raises(ValueError, match="brush mask"):
        decode_brush(rle, (3, 5))


def test_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        decode_brush(encode_brush(np.ones((3, 5), dtype=bool)), (3, 6))
