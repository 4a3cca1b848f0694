"""The resize of the evaluation protocol, against what OpenCV 5.0.0 wrote (``tests/data/resize/cv2.npz``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.transform import resize as skimage_resize

from tcl_core.images import resize as module
from tcl_core.images.resize import resize_bilinear

RECORD = np.load(Path(__file__).parents[1] / "data" / "resize" / "cv2.npz")
CASES = sorted(key.removesuffix("/image") for key in RECORD if key.endswith("/image"))


def random_image(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_equal_to_opencv_to_the_last_bit(case: str) -> None:
    expected = RECORD[f"{case}/resized"]
    np.testing.assert_array_equal(resize_bilinear(RECORD[f"{case}/image"], expected.shape[:2]), expected)


@pytest.mark.parametrize(("size", "target"), [((480, 640), (448, 597)), ((375, 500), (448, 597)), ((97, 60), (13, 8))])
def test_within_one_gray_level_of_the_exact_formula(size: tuple[int, int], target: tuple[int, int]) -> None:
    image = random_image(*size)
    exact = skimage_resize(image.astype(np.float64), target, order=1, mode="edge", anti_aliasing=False)
    assert np.abs(resize_bilinear(image, target) - exact).max() < 1


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(40, 61)
    whole = resize_bilinear(image, (23, 37))
    monkeypatch.setattr(module, "_STRIP_VALUES", 3 * 37 * 4)
    np.testing.assert_array_equal(resize_bilinear(image, (23, 37)), whole)


def test_views_and_other_channels() -> None:
    image = random_image(20, 30, 4)
    turned = image[::-1, :, 1:2]
    expected = resize_bilinear(np.ascontiguousarray(turned).repeat(3, axis=2), (11, 17))[:, :, :1]
    np.testing.assert_array_equal(resize_bilinear(turned, (11, 17)), expected)


def test_the_same_size_changes_nothing_and_bad_input_is_refused() -> None:
    image = random_image(5, 9)
    assert resize_bilinear(image, (5, 9)) is image
    for wrong, size in ((image.astype(np.float32), (3, 3)), (image[:, :, 0], (3, 3)), (image, (0, 3))):
        with pytest.raises(ValueError, match="cannot resize"):
            resize_bilinear(wrong, size)
