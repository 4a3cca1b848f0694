"""From features and embedded prompts to score maps: in groups, so that memory does not grow with the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tcl_core.methods.base import Method, PromptEmbeddings
from tcl_core.refinement.base import Guide, Refine, ScoreRefiner
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.model import SegmentationModel
from tcl_core.segmentation.sliding_window import merge_windows
from tcl_core.vocabulary import Label

__all__ = ["ImageScorer"]

# Score maps of all prompts at once would grow with the vocabulary; beyond this they are worked off in groups. A GPU
# takes many as fast as a few.
_SCORE_BYTES = {"cpu": 64 << 20}
_SCORE_BYTES_ELSEWHERE = 256 << 20
# Score maps made together: enough that fixed costs do not count, few enough that a cancelled work ends soon.
_MAPS_TOGETHER = 64


class ImageScorer:
    """The half of a `Segmenter` that compares an encoded image with embedded prompts.

    Args:
        model: whose window and device it works with.
        method: the model's, with the options that apply.
        refiner: that made the features' guides; ``None`` without refinement.
    """

    def __init__(self, model: SegmentationModel, method: Method, refiner: ScoreRefiner | None) -> None:
        self.model, self.method, self.refiner = model, method, refiner

    @torch.no_grad()
    def similarities(
        self,
        features: ImageFeatures,
        prompts: PromptEmbeddings,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Similarities float32 ``[P, h, w]`` of the whole image; see `Segmenter.similarities`."""
        if not len(prompts):
            return torch.zeros(0, *features.score_size, device=self.model.device)
        at_once = self.at_once(features) if self.method.independent_prompts else len(prompts)
        refine = self._bound(features.image_guide)
        groups = [
            self.method.settle(
                self._merged(features, prompts[first : first + at_once], on_progress), features.score_size, refine
            )
            for first in range(0, len(prompts), at_once)
        ]
        return groups[0] if len(groups) == 1 else torch.cat(groups)

    @torch.no_grad()
    def name_winners(
        self,
        features: ImageFeatures,
        names: PromptEmbeddings,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The strongest name at each place of every window, float32 ``[n, 2, h, w]``; see `Segmenter.name_winners`."""
        parts = []
        for group in self._window_groups(features, len(names), on_progress):
            best, who = self.method.name_values(features.windows[group], names).max(dim=1)
            parts.append(torch.stack([best, who.to(best.dtype)], dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def finish(self, features: ImageFeatures, merged: Tensor, labels: Sequence[int]) -> Tensor:
        """Score maps float32 ``[K, h, w]`` in ``[0, 1]``; see `Segmenter.finish`."""
        return self.method.finish(merged, labels, self._bound(features.image_guide))

    def label_groups(self, labels: Sequence[Label], features: ImageFeatures) -> Iterator[Sequence[Label]]:
        """Labels whose score maps are made together, so that memory stays bounded."""
        at_once = self.at_once(features)
        group: list[Label] = []
        for label in labels:
            if group and sum(len(other.prompts) for other in (*group, label)) > at_once:
                yield group
                group = []
            group.append(label)
        yield group

    @property
    def _score_bytes(self) -> int:
        return _SCORE_BYTES.get(self.model.device.type, _SCORE_BYTES_ELSEWHERE)

    def at_once(self, features: ImageFeatures) -> int:
        """Number of prompts whose score maps are made together."""
        pixels = max(height * width for height, width in (features.working_size, features.score_size))
        return max(1, self._score_bytes // (4 * pixels))

    def _window_similarities(
        self, features: ImageFeatures, prompts: PromptEmbeddings, on_progress: Callable[[int, int], None] | None
    ) -> Iterator[Tensor]:
        """Similarities ``[P, h, w]`` of the windows, one after the other."""
        for group in self._window_groups(features, len(prompts), on_progress):
            guide = None if features.guide is None else features.guide[group]
            yield from self.method.similarities(features.windows[group], prompts, self._bound(guide))

    def _window_groups(
        self, features: ImageFeatures, planes: int, on_progress: Callable[[int, int], None] | None = None
    ) -> Iterator[slice]:
        """Windows that are worked off together, so that their maps of so many planes stay small."""
        preprocess, (height, width) = self.model.preprocess, features.working_size
        pixels = min(preprocess.window, height) * min(preprocess.window, width)
        at_once = max(1, min(_MAPS_TOGETHER, self._score_bytes // (4 * pixels)) // planes)
        for first in range(0, len(features.origins), at_once):
            if on_progress is not None:
                on_progress(first, len(features.origins))
            yield slice(first, first + at_once)

    def _bound(self, guide: Guide | None) -> Refine | None:
        return None if guide is None or self.refiner is None else partial(self.refiner.refine, guide)

    def _merged(
        self, features: ImageFeatures, prompts: PromptEmbeddings, on_progress: Callable[[int, int], None] | None
    ) -> Tensor:
        prompts = self.method.prompts_for_image(features.windows, prompts)
        if len(features.origins) == 1:
            whole = self.method.similarities_at(features.windows, prompts, features.score_size)
            if whole is not None:
                return whole
        windows = self._window_similarities(features, prompts, on_progress)
        return merge_windows(windows, features.origins, features.working_size)
