"""Merging specks costs nothing: the playground's mean IoU does not fall."""

from __future__ import annotations

import pytest

from tcl_core.evaluation.miou import MeanIoU
from tcl_core.evaluation.playground import held_out_scene
from tcl_core.models import load_model
from tcl_core.playground import CLASS_NAMES
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.specks import without_specks
from tcl_core.vocabulary import Label, Vocabulary

SCENES = 24


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("refine", [False, True])
def test_the_mean_iou_does_not_fall(refine: bool, background: bool) -> None:
    vocabulary = Vocabulary(tuple(Label(name) for name in CLASS_NAMES), background=background)
    segmenter = Segmenter(load_model("playground"), refine=refine)
    plain, merged = MeanIoU(len(CLASS_NAMES)), MeanIoU(len(CLASS_NAMES))
    for number in range(SCENES):
        scene = held_out_scene("held-out", number)
        found = segmenter.segment_image(scene.image, vocabulary)
        plain.update(scene.label_map, found.label_map)
        merged.update(scene.label_map, without_specks(found, segmenter.model, "auto").label_map)
    # A hundredth of a point is chance on so few scenes.
    assert merged.compute(slice(None)) >= plain.compute(slice(None)) - 1e-4
