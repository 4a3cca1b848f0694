"""One image, segmented again and again while labels, prompts and thresholds change.

What depends on the image alone is computed once; a new prompt costs its own score map, and a threshold costs only
the arg-max.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.incremental_argmax import Contender, Decided, decide
from tcl_core.segmentation.segmenter import Segmenter, label_map_from_scores
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["ImageSession", "Progress", "ProgressCallback"]

_PLANE_BYTES = 512 << 20

_Key = tuple[tuple[str, ...], str | None]


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        step: ``"encode"`` and ``"scores"`` count windows of the image, ``"prompts"`` labels whose texts are embedded.
        done: how many.
        total: of how many.
    """

    step: Literal["encode", "prompts", "scores"]
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]
"""Told about each step of the work; what it raises ends the work and is passed on, so it can cancel."""


class ImageSession:
    """An image with everything that is known about it.

    Not for several threads at once.

    Args:
        segmenter: the model and its settings; its cache, if it has one, is used.
        image: uint8 ``[H, W, 3]``, RGB.

    Raises:
        ImageError: from the first `segment`, if the array is not such an image.

    Example::

        session = ImageSession(Segmenter(load_model("playground")), load_image("room.jpg"))
        first = session.segment(Vocabulary.from_options(["Seat=chair,sofa"]))
        # The network does not run again:
        again = session.segment(Vocabulary.from_options(["Seat=chair,sofa"], background_threshold=0.6))
    """

    def __init__(self, segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
        self.segmenter = segmenter
        self._image: NDArray[np.uint8] | None = image
        self._features: ImageFeatures | None = None
        self._scores: dict[_Key, Tensor] = {}
        self._planes: dict[_Key, NDArray[np.float32]] = {}
        self._decided: Decided | None = None
        self.size: tuple[int, int] = (int(image.shape[0]), int(image.shape[1]))

    def encode(self, on_progress: ProgressCallback | None = None) -> None:
        """Compute what depends on the image alone, unless that is done.

        Args:
            on_progress: see `ProgressCallback`.

        Raises:
            ImageError: the array is not an image.
        """
        if self._features is not None or self._image is None:
            return

        def report(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(Progress("encode", done, total))

        self._features = self.segmenter.encode(self._image, report)
        # From here on the features stand for the image.
        self._image = None

    def has_scores(self, vocabulary: Vocabulary) -> bool:
        """Whether `segment` costs an arg-max alone, because every label's prompts were scored already."""
        return all(_key(label, vocabulary) in self._scores for label in vocabulary.labels)

    def segment(self, vocabulary: Vocabulary, on_progress: ProgressCallback | None = None) -> Segmentation:
        """Decide each pixel's label; only what changed since the last call is computed.

        The result is that of `tcl_core.segmentation.segmenter.Segmenter.segment`.

        Args:
            vocabulary: the labels that compete.
            on_progress: see `ProgressCallback`; cancelled work leaves the session as it was.

        Raises:
            ImageError: the array is not an image.
            VocabularyError: the model does not know a word of a prompt.
        """
        self._make_scores(vocabulary, on_progress)
        keys = [_key(label, vocabulary) for label in vocabulary.labels]
        scores = [self._scores[key] for key in keys]
        # The winners so far are kept beside the planes.
        if (4 * len(keys) + 6) * self.size[0] * self.size[1] > _PLANE_BYTES:
            self._planes.clear()
            self._decided = None
            label_map, score_map = label_map_from_scores(
                torch.stack(scores), vocabulary, self._default_floor(), self.size
            )
            return Segmentation(label_map, score_map, vocabulary)
        kept = {key: plane for key, plane in self._planes.items() if key in keys}
        for key, score in zip(keys, scores, strict=True):
            if key not in kept:
                kept[key] = _enlarge(score, self.size)
        self._planes = kept
        labels: list[Contender] = [(key, label.threshold) for key, label in zip(keys, vocabulary.labels, strict=True)]
        floor = vocabulary.floor(self._default_floor())
        # What fails half-way leaves nothing behind that is half done.
        before, self._decided = self._decided, None
        decided = decide([kept[key] for key in keys], labels, floor, before)
        self._decided = decided
        label_map = decided.winner.astype(np.int32)
        score_map = np.where(decided.winner == 0, np.float32(0), decided.best)
        return Segmentation(label_map.reshape(self.size), score_map.reshape(self.size), vocabulary)

    def score_map(self, label: Label, templates: str | None = None) -> NDArray[np.float32]:
        """The score map of a label that was segmented, before any threshold.

        Args:
            label: of the last vocabulary.
            templates: the vocabulary's template set.

        Returns:
            float32 ``[H, W]`` in ``[0, 1]``.

        Raises:
            SettingsError: the label has no scores yet.
        """
        score = self._scores.get((label.prompts, templates))
        if score is None:
            raise SettingsError(f"the label {label.name!r} has no scores yet; segment the image with it first")
        return _enlarge(score, self.size).reshape(self.size).copy()

    def _make_scores(self, vocabulary: Vocabulary, on_progress: ProgressCallback | None) -> None:
        """Score the labels whose prompts are new, and forget those that are gone."""

        def report(step: Literal["prompts", "scores"], done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(Progress(step, done, total))

        missing: dict[_Key, Label] = {}
        for label in vocabulary.labels:
            if _key(label, vocabulary) not in self._scores:
                missing.setdefault(_key(label, vocabulary), label)
        # Wrong words are found in a moment, the image takes seconds.
        for done, label in enumerate(missing.values()):
            report("prompts", done, len(missing))
            self.segmenter.embed_prompts(label.prompts, vocabulary.templates)
        self.encode(on_progress)
        known = dict(self._scores)
        if missing and self._features is not None:
            part = replace(vocabulary, labels=tuple(missing.values()))
            scores = self.segmenter.score_maps(self._features, part, partial(report, "scores")).cpu()
            # Clones, because a view would keep the scores of all labels.
            known.update((key, plane.clone()) for key, plane in zip(missing, scores, strict=True))
        self._scores = {_key(label, vocabulary): known[_key(label, vocabulary)] for label in vocabulary.labels}

    def _default_floor(self) -> float:
        return float(self.segmenter.settings()["background_threshold"])


def _key(label: Label, vocabulary: Vocabulary) -> _Key:
    return label.prompts, vocabulary.templates


def _enlarge(score: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a score map as `label_map_from_scores` does; returns float32 ``[H * W]``."""
    enlarged = F.interpolate(score[None, None].float(), size=size, mode="bilinear", align_corners=False)
    return np.asarray(enlarged.reshape(-1).numpy())
