"""Groups without labels: of an image, in the preview, and in the files of a segmented image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver.common.by import By
from torch import Tensor

from tcl_core.cli.main import run
from tcl_core.errors import ImageError, SettingsError
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs.inputs import find_images
from tcl_core.jobs.job import run_prelabel
from tcl_core.methods.training_free.last_block import MaskCLIP
from tcl_core.segmentation.groups import has_groups, image_groups, named_groups
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary
from tests.chromium import chromium
from tests.contract.examples import example_image, model_of

VOCABULARY = Vocabulary.from_options(["cat", "sky"], background_names=())


class Halves(MaskCLIP):
    """Groups by hand: the darkest patches, the brightest and a group that nobody joins."""

    def segments(self, features: object) -> Tensor:
        dense = features.enlarged(features.dense[:, :1])  # type: ignore[attr-defined]
        middle = dense.flatten(1).quantile(0.7, dim=1).view(-1, 1, 1, 1)
        bright = (dense > middle).float()
        return torch.cat([torch.zeros_like(bright), bright, 1 - bright], dim=1)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    method = MaskCLIP.example()
    method.__class__ = Halves
    return Segmenter(model_of(method))


def test_the_largest_group_comes_first(segmenter: Segmenter) -> None:
    image = example_image(50, 70)
    groups = image_groups(segmenter, image)
    assert groups.shape == (50, 70) and groups.dtype == np.int32
    counts = np.bincount(groups.ravel())
    assert counts[0] == 0 and len(counts) == 3 and counts[1] > counts[2] > 0
    assert np.array_equal(groups, image_groups(segmenter, image))
    with pytest.raises(ImageError):
        image_groups(segmenter, image.astype(np.float32))  # type: ignore[arg-type]


def test_other_methods_make_none() -> None:
    segmenter = Segmenter(model_of(MaskCLIP.example()))
    assert not has_groups(segmenter)
    with pytest.raises(SettingsError, match=r"method 'maskclip' .* makes no groups"):
        image_groups(segmenter, example_image())


def test_names_for_drawing() -> None:
    groups = named_groups(np.array([[1, 3], [2, 2]], np.int32))
    assert groups.names == ("group 1", "group 2", "group 3")
    assert groups.shares() == {"group 2": 0.5, "group 1": 0.25, "group 3": 0.25}
    assert named_groups(np.zeros((0, 0), np.int32)).names == ()


@pytest.mark.slow
def test_the_preview_shows_them(segmenter: Segmenter, tmp_path: Path) -> None:
    """A layer of its own, off until its button is pressed; other methods have no such button."""
    pages = {}
    for name, made in (("groups", segmenter), ("none", Segmenter(model_of(MaskCLIP.example())))):
        (tmp_path / name).mkdir()
        Image.fromarray(example_image(50, 70)).save(tmp_path / name / "a.png")
        images = find_images([str(tmp_path / name / "a.png")])
        pages[name] = run_prelabel(
            images, made, VOCABULARY, tmp_path / name / "out.json", CocoExporter(), preview=tmp_path / name / "page"
        ).preview
    with chromium(tmp_path / "profile") as browser:
        browser.get(str(pages["groups"] and pages["groups"].as_uri()))
        button = browser.find_element(By.CSS_SELECTOR, "[data-layer=groups]")
        layer = browser.find_element(By.CSS_SELECTOR, ".overlay-groups")
        assert not layer.is_displayed() and button.get_attribute("aria-pressed") == "false"
        button.click()
        assert layer.is_displayed()
        shown = tmp_path / "groups" / "page" / str(layer.get_attribute("src")).partition("/page/")[2]
        drawn = np.asarray(Image.open(shown))
        expected = image_groups(segmenter, example_image(50, 70))
        assert drawn.shape == (50, 70, 4) and (drawn[..., 3] == 255).all()
        assert len(np.unique(drawn.reshape(-1, 4), axis=0)) == expected.max() == 2
        browser.get(str(pages["none"] and pages["none"].as_uri()))
        assert not browser.find_elements(By.CSS_SELECTOR, "[data-layer=groups], .overlay-groups")


def test_segment_draws_them(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tcl_core.cli import segment as command

    Image.fromarray(example_image(50, 70)).save(tmp_path / "a.png")
    monkeypatch.setattr(command, "make_segmenter", lambda *_: segmenter)
    asked = ["segment", str(tmp_path / "a.png"), "--label", "cat", "--background-names", "none"]
    assert run([*asked, "--groups", str(tmp_path / "g.png")]) == 0
    assert Image.open(tmp_path / "g.png").width == 160
    monkeypatch.setattr(command, "make_segmenter", lambda *_: Segmenter(model_of(MaskCLIP.example())))
    assert run([*asked, "--groups", str(tmp_path / "h.png")]) == 2
    assert not (tmp_path / "h.png").exists()
