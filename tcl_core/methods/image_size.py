"""Scores that are finished at the size of the image, as the evaluations of training-free methods do it."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.base import Method
from tcl_core.refinement.base import Guide, ScoreRefiner
from tcl_core.refinement.pamr import Pamr

__all__ = ["FinishedAtImageSize"]


class FinishedAtImageSize(Method):
    """A method whose option ``finish_pixels`` says up to how many pixels scores are finished at the image's size."""

    def default_refiner(self) -> ScoreRefiner:
        """PAMR with the dilations of the training-free methods' evaluations."""
        return Pamr(dilations=(8, 16))

    def score_size(self, working: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
        """The image's own size, or a smaller one of as many pixels as the option says."""
        share = min(1.0, (cast(Any, self.options).finish_pixels / (image[0] * image[1])) ** 0.5)
        return max(1, round(image[0] * share)), max(1, round(image[1] * share))

    def image_guide(self, refiner: ScoreRefiner, image: Tensor, size: tuple[int, int]) -> Guide:
        """The guide of the whole image at the size of the scores."""
        return refiner.prepare(F.interpolate(image, size=size, mode="bilinear"), size)
