from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from tcl_core.export.coco.rle import counts_of_crop, decode_counts, encode_crop, read_rle

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def reference(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@settings(max_examples=150, deadline=None)
@given(masks, st.tuples(*[st.integers(0, 5)] * 4))
def test_a_crop_is_encoded_as_its_whole_image_is(crop: np.ndarray, margins: tuple[int, int, int, int]) -> None:
    left, right, top, bottom = margins
    full = np.pad(crop, ((top, bottom), (left, right)))
    assert encode_crop(crop, (left, top), full.shape) == reference(full)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_decoding_gives_the_runs_area_and_box_of_pycocotools(mask: np.ndarray) -> None:
    rle = reference(mask)
    runs = read_rle(rle, mask.shape)
    flat = np.repeat(np.arange(runs.counts.size) % 2 == 1, runs.counts)
    assert np.array_equal(flat.reshape(mask.shape[::-1]).T, mask)
    assert runs.area == coco_mask.area(rle)
    assert list(runs.bbox) == coco_mask.toBbox(rle).tolist()
    uncompressed = {"size": list(mask.shape), "counts": runs.counts.tolist()}
    assert read_rle(uncompressed, mask.shape).bbox == runs.bbox


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 4)])
@pytest.mark.parametrize("value", [True, False])
def test_full_and_empty_masks(shape: tuple[int, int], value: bool) -> None:
    mask = np.full(shape, value)
    assert encode_crop(mask, (0, 0), shape) == reference(mask)


def test_an_image_far_too_large_to_unfold() -> None:
    rle = encode_crop(np.ones((2, 3), dtype=bool), (40_000, 50_000), (60_000, 60_000))
    assert read_rle(rle, (60_000, 60_000)).bbox == (40_000, 50_000, 3, 2)
    assert coco_mask.area(rle) == 6


def test_runs_are_joined_across_columns() -> None:
    assert counts_of_crop(np.ones((3, 4), dtype=bool), (1, 0), (3, 6)).tolist() == [3, 12, 3]


@pytest.mark.parametrize("origin", [(-1, 0), (0, -1), (3, 0), (0, 2)])
def test_a_crop_outside_its_image_is_refused(origin: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not lie in"):
        encode_crop(np.ones((2, 2), dtype=bool), origin, (3, 4))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "empty"),
        ("1 2", "outside"),
        ("1\x00", "outside"),
        ("p", "outside"),
        ("1é", "not ASCII"),
        ("1o", "in the middle"),
        ("oooooooo0", "too long"),
        ("O", "negative"),
        ("5", "sum to 5"),
        ("999", "sum to"),
        ([3, -1, 10], "negative"),
        ([3, 10**30], "longer than"),
        ([3, 4], "sum to 7"),
        ([3.0, 9.0], "whole numbers"),
        ([True, 11], "whole numbers"),
        (None, "neither"),
    ],
)
def test_counts_that_do_not_decode_are_refused(counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rle({"counts": counts, "size": [3, 4]}, (3, 4))


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), min_size=1, max_size=20))
def test_any_string_either_decodes_as_pycocotools_does_or_is_refused(text: str) -> None:
    try:
        counts = decode_counts(text)
    except ValueError:
        return
    if 0 < counts.sum() < 10_000:
        rle = {"size": [int(counts.sum()), 1], "counts": text}
        assert coco_mask.area(rle) == counts[1::2].sum()
