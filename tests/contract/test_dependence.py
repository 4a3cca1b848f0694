"""Methods whose prompts, or whose labels, depend on each other; no method of the package needs to be one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tcl_core.methods import Method
from tcl_core.methods.tcl.model import TCL
from tcl_core.refinement.pamr import Pamr
from tcl_core.segmentation import scoring
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, SimilarityCache
from tests.contract.examples import example_image, model_of, vocabulary_of


class DependentPrompts(TCL):
    """Similarities are relative to the mean over all prompts; then labels are on their own."""

    independent_prompts = False

    def similarities(self, *arguments: Any) -> Tensor:
        found = super().similarities(*arguments)
        return found - found.mean(dim=1, keepdim=True) + 0.5

    def finish(self, merged: Tensor, labels: Sequence[int], refine: Any = None) -> Tensor:
        return super().finish(merged.clamp(0, 1), labels, refine)


class DependentLabels(TCL):
    """Scores are shares of all labels, so that they depend on which prompts belong together."""

    independent_labels = False

    def finish(self, merged: Tensor, labels: Sequence[int], refine: Any = None) -> Tensor:
        scores = super().finish(merged, labels, refine)
        return scores / scores.sum(dim=0, keepdim=True).clamp(min=1e-6)


@pytest.mark.parametrize("kind", [DependentPrompts, DependentLabels])
def test_session_says_what_the_segmenter_says(kind: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    method = copy.copy(TCL.example())
    method.__class__ = kind
    segmenter = Segmenter(model_of(method), refiner=Pamr(dilations=(1,), iterations=1))
    features = segmenter.encode(example_image())
    session = ImageSession(segmenter, features, SimilarityCache())
    for groups in (
        ((0, 1), (2,)),
        ((0, 1), (2,), (3,)),
        ((0, 1), (2, 3)),
        ((0,), (1, 2), (3,)),
        ((0,), (1,), (2, 3)),
        ((0, 1),),
    ):
        vocabulary = vocabulary_of(method, *groups, background=False)
        expected = segmenter.score_maps(features, vocabulary)
        assert torch.allclose(session.scores(vocabulary), expected, atol=2e-5), groups
        shown = segmenter.segment(features, vocabulary)
        assert abs(session.segment(vocabulary).score_map - shown.score_map).max() < 1e-4
        for place in range(len(groups)):
            fresh = ImageSession(segmenter, features)
            alone = fresh.segment_label(vocabulary, place, rivals=False)
            again = session.segment_label(vocabulary, place, rivals=False)
            assert (alone.label_map == again.label_map).all()
            assert torch.allclose(fresh.scores(vocabulary), expected, atol=2e-5)
        with monkeypatch.context() as patched:
            patched.setattr(scoring, "_SCORE_BYTES", {"cpu": 1})
            assert torch.allclose(segmenter.score_maps(features, vocabulary), expected, atol=2e-5)
