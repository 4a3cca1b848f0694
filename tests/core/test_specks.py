from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import label as components

from tcl_core.errors import SettingsError
from tcl_core.models import load_model
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.specks import check_min_area, read_min_area, speck_area, without_specks
from tcl_core.specks import absorb_small
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

label_maps = arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))


def one_by_one(label_map: np.ndarray, min_area: int) -> np.ndarray:
    """The rule, word for word: all is labeled anew after every step."""
    result = label_map.copy()
    while True:
        pieces = components(result, connectivity=1, background=-1)
        candidates = []
        for number in range(1, pieces.max() + 1):
            piece = pieces == number
            if piece.sum() < min_area and not piece.all():
                candidates.append((piece.sum(), np.flatnonzero(piece)[0], number))
        if not candidates:
            return result
        piece = pieces == min(candidates)[2]
        borders: dict[int, int] = {}
        for y, x in zip(*np.nonzero(piece), strict=True):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                row, column = y + dy, x + dx
                if 0 <= row < result.shape[0] and 0 <= column < result.shape[1] and not piece[row, column]:
                    other = int(result[row, column])
                    borders[other] = borders.get(other, 0) + 1
        result[piece] = min(borders, key=lambda other: (-borders[other], other))


@given(label_maps, st.integers(0, 12))
@settings(max_examples=300, deadline=None)
def test_specks_are_merged_as_if_one_by_one(label_map: np.ndarray, min_area: int) -> None:
    before = label_map.copy()
    assert np.array_equal(absorb_small(label_map, min_area), one_by_one(label_map, min_area))
    assert np.array_equal(label_map, before)


@pytest.mark.parametrize("background", [0, 3])
def test_a_hole_is_filled_whatever_is_in_it(background: int) -> None:
    label_map = np.ones((9, 9), dtype=np.int32)
    label_map[4, 4] = background
    assert (absorb_small(label_map, 2) == 1).all()


@pytest.mark.parametrize("min_area", [0, 1])
def test_nothing_is_a_speck_below_two_pixels(min_area: int) -> None:
    label_map = np.random.default_rng(0).integers(0, 4, (9, 9), dtype=np.int32)
    assert np.array_equal(absorb_small(label_map, min_area), label_map)


def test_the_default_is_a_square_half_a_patch_wide_at_the_images_size() -> None:
    # The embedded model has patches of 8 pixels and works at 112 on the shorter side.
    segmenter = Segmenter(load_model("playground"))
    assert speck_area(segmenter.model, (112, 112)) == segmenter.speck_area((112, 200)) == 16
    assert speck_area(segmenter.model, (1120, 1120)) == 1600
    # A long side beyond the limit of 1024 makes the image smaller than 112 pixels on the shorter one.
    assert speck_area(segmenter.model, (100, 2048)) == 64


def test_specks_of_a_prediction_join_their_surroundings_and_scores_stay() -> None:
    model = load_model("playground")
    label_map = np.ones((112, 112), dtype=np.int32)
    label_map[:3, :5] = 2
    label_map[50:54, 50:54] = 2
    scores = np.full(label_map.shape, 0.5, dtype=np.float32)
    found = Segmentation(label_map, scores, Vocabulary.from_options(["one", "two"]))
    cleaned = without_specks(found, model, "auto")
    assert (cleaned.label_map[:3, :5] == 1).all() and (cleaned.label_map[50:54, 50:54] == 2).all()
    assert cleaned.score_map is scores
    assert np.array_equal(without_specks(found, model, 0).label_map, label_map)


@pytest.mark.parametrize("text", ["", "-1", "1.5", "none", "²"])
def test_an_area_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="give auto, or a number of pixels"):
        read_min_area(text)


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "5"])
def test_a_setting_that_is_no_area_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match="give auto, or a number of pixels, 0 or more"):
        check_min_area(value)
