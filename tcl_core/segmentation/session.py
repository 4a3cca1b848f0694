"""One image, segmented again and again while labels, prompts and thresholds change.

What depends on the image alone is computed once; a new prompt costs its own similarities, and a threshold costs only
the arg-max. Every interactive front end uses this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import SettingsError
from tcl_core.segmentation.argmax import (
    Contender,
    Decision,
    decide,
    enlarge,
    label_map_from_scores,
    one_label_from_scores,
)
from tcl_core.segmentation.background_names import NameChoice, owners, strongest_names
from tcl_core.segmentation.features import FeatureKey, ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["ImageSession", "Progress", "ProgressCallback", "SimilarityCache"]

_SIMILARITY_BYTES = 512 << 20
_PLANE_BYTES = 512 << 20

# In the place of a prompt, which is never empty.
_GROUP = ""


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes:
        step: ``"encode"`` and ``"scores"`` count windows of the image or groups of background names, ``"prompts"``
            labels and ``"names"`` background names whose texts are embedded.
        done: how many.
        total: of how many.
    """

    step: Literal["encode", "prompts", "scores", "names"]
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]
"""Told about each step of the work; what it raises ends the work and is passed on, so it can cancel."""

_PromptKey = tuple[FeatureKey, str, tuple[str, ...], str]
_LabelKey = tuple[tuple[str, ...], str, tuple[tuple[str, ...], ...]]


class SimilarityCache(ByteBoundedCache[_PromptKey, Tensor]):
    """Similarities of single prompts with whole images, keyed by everything they depend on; it may be shared.

    Args:
        max_bytes: bound of the maps together.

    Raises:
        SettingsError: ``max_bytes`` is negative.
    """

    def __init__(self, max_bytes: int = _SIMILARITY_BYTES) -> None:
        super().__init__(max_bytes, size_of=lambda plane: plane.nbytes)


class ImageSession:
    """An image with everything that is known about it.

    Not for several threads at once.

    Args:
        segmenter: the model and its settings; its cache, if it has one, is used.
        image: uint8 ``[H, W, 3]``, RGB, or its features from this segmenter.
        cache: of similarities; by default one of its own.
        plane_bytes: bound of the score maps that are kept at the image's size, for thresholds that move.

    Raises:
        ImageError: from the first `segment`, if the array is not such an image.

    Example::

        session = ImageSession(Segmenter(load_model("playground")), load_image("room.jpg"))
        first = session.segment(Vocabulary.from_options(["Seat=chair,sofa"]))
        # The network does not run again:
        again = session.segment(Vocabulary.from_options(["Seat=chair,sofa"], background_threshold=0.6))
    """

    def __init__(
        self,
        segmenter: Segmenter,
        image: NDArray[np.uint8] | ImageFeatures,
        cache: SimilarityCache | None = None,
        plane_bytes: int = _PLANE_BYTES,
    ) -> None:
        self.segmenter = segmenter
        self._image = None if isinstance(image, ImageFeatures) else image
        self._features = image if isinstance(image, ImageFeatures) else None
        self._similarities = SimilarityCache() if cache is None else cache
        self._plane_bytes = plane_bytes
        self._scores: dict[_LabelKey, Tensor] = {}
        self._planes: dict[_LabelKey, Tensor] = {}
        self._decision: Decision | None = None
        size = image.size if isinstance(image, ImageFeatures) else (int(image.shape[0]), int(image.shape[1]))
        self.size: tuple[int, int] = size

    def encode(self, on_progress: ProgressCallback | None = None) -> ImageFeatures:
        """Compute what depends on the image alone, unless that is done.

        Args:
            on_progress: see `ProgressCallback`.

        Raises:
            ImageError: the array is not an image.
            SettingsError: the session is one of `scores_alone`.
        """
        if self._features is None:
            if self._image is None:
                raise SettingsError("this session keeps scores alone; open the image again to score other labels")

            def report(done: int, total: int) -> None:
                if on_progress is not None:
                    on_progress(Progress("encode", done, total))

            self._features = self.segmenter.encode(self._image, report)
            # From here on the features stand for the image.
            self._image = None
        return self._features

    def scores_alone(self) -> ImageSession:
        """A session of the same image that takes little memory: it knows scores, and cannot score other labels."""
        known = self._image if self._features is None else self._features
        # Of an image that is known by its scores alone only the size is left.
        slim = ImageSession(self.segmenter, np.empty((*self.size, 0), np.uint8) if known is None else known)
        slim._similarities, slim._plane_bytes = SimilarityCache(0), 0
        slim._image = slim._features = None
        slim._scores = dict(self._scores)
        return slim

    @property
    def score_bytes(self) -> int:
        """Memory that the scores of the last vocabulary take."""
        return sum(plane.nbytes for plane in self._scores.values())

    def has_scores(self, vocabulary: Vocabulary) -> bool:
        """Whether `segment` costs an arg-max alone, because every label was scored already."""
        if not self.segmenter.knows_background_names(vocabulary):
            return False
        return all(key in self._scores for key in self._keys(vocabulary, self._choice(vocabulary)))

    def scores(self, vocabulary: Vocabulary, on_progress: ProgressCallback | None = None) -> Tensor:
        """Score maps of the labels, of which only what is new is computed.

        Args:
            vocabulary: K labels.
            on_progress: see `ProgressCallback`; cancelled work leaves the session as it was.

        Returns:
            float32 ``[K, h, w]`` in ``[0, 1]`` at the features' ``score_size``, on the CPU; one plane more, the last,
            where names of the background compete.

        Raises:
            ImageError: the array is not an image.
            VocabularyError: the model does not know a word of a prompt.
        """
        choice = self._choice(vocabulary, on_progress)
        keys = self._keys(vocabulary, choice)
        self._score(keys, vocabulary, choice, on_progress)
        return torch.stack([self._scores[key] for key in keys])

    def _score(
        self,
        keys: Sequence[_LabelKey],
        vocabulary: Vocabulary,
        choice: NameChoice,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        """Score the labels of these keys that have no scores yet, and forget all others."""
        known = dict(self._scores)
        missing = [place for place, key in enumerate(keys) if key not in known]
        if missing:
            if not self._one_by_one:
                missing = list(range(len(keys)))
            labels = [vocabulary.labels[place] for place in missing if place < len(vocabulary.labels)]
            named = choice if missing[-1] == len(vocabulary.labels) else None
            found = self._finished(labels, named, vocabulary.templates, on_progress)
            # Clones, because a view would keep the scores of all labels.
            known.update((keys[place], plane.clone()) for place, plane in zip(missing, found, strict=True))
        # What the vocabulary no longer names is forgotten; its similarities stay in their cache for a while.
        self._scores = {key: known[key] for key in keys}

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
        choice = self._choice(vocabulary, on_progress)
        keys = self._keys(vocabulary, choice)
        # The winners so far are kept beside the planes.
        if (4 * len(keys) + 6) * self.size[0] * self.size[1] > self._plane_bytes:
            scores = self.scores(vocabulary, on_progress)
            self._planes.clear()
            self._decision = None
            threshold = self.segmenter.background_threshold
            label_map, score_map = label_map_from_scores(scores, vocabulary, threshold, self.size)
            return Segmentation(label_map, score_map, vocabulary)
        if self._scores.keys() != set(keys):
            self._score(keys, vocabulary, choice, on_progress)
        kept = {key: plane for key, plane in self._planes.items() if key in self._scores}
        for key in keys:
            if key not in kept:
                kept[key] = enlarge(self._scores[key], self.size)
        self._planes = kept
        own = len(vocabulary.labels)
        background = (keys[own], kept[keys[own]]) if len(keys) > own else None
        thresholds = [label.threshold for label in vocabulary.labels]
        labels: list[Contender] = list(zip(keys[:own], thresholds, strict=True))
        floor = vocabulary.floor(self.segmenter.background_threshold)
        # What fails half-way leaves nothing behind that is half done.
        before, self._decision = self._decision, None
        self._decision = decide([kept[key] for key in keys[:own]], labels, floor, before, background)
        label_map, score_map = self._decision.maps(self.size)
        return Segmentation(label_map, score_map, vocabulary)

    def segment_label(self, vocabulary: Vocabulary, place: int, *, rivals: bool = True) -> Segmentation:
        """Decide where one label wins, for an answer that somebody waits for.

        All names of the vocabulary take part in the scores of methods that normalize over them.

        Args:
            vocabulary: the labels that compete.
            place: of the label, from 0.
            rivals: whether the other labels compete in the decision too; otherwise the background alone does.

        Raises:
            ImageError: the array is not an image.
            VocabularyError: the model does not know a word of a prompt.
        """
        # The names are those of the whole vocabulary, because they are the same in every answer.
        choice = self._choice(vocabulary)
        part, inside = vocabulary, place
        if not rivals and self._one_by_one:
            part, inside = replace(vocabulary, labels=(vocabulary.labels[place],)), 0
        keys = self._keys(part, choice)
        self._score(keys, part, choice)
        scores = torch.stack([self._scores[key] for key in keys])
        threshold = self.segmenter.background_threshold
        label_map, score_map = one_label_from_scores(scores, part, threshold, self.size, inside, rivals=rivals)
        if inside != place:
            np.multiply(label_map, np.int32(place + 1), out=label_map)
        return Segmentation(label_map, score_map, vocabulary)

    def score_map(self, label: Label, vocabulary: Vocabulary) -> NDArray[np.float32]:
        """The score map of a label that was segmented, before any threshold.

        Args:
            label: of the vocabulary.
            vocabulary: the last that was segmented.

        Returns:
            float32 ``[H, W]`` in ``[0, 1]``.

        Raises:
            SettingsError: the label has no scores yet.
        """
        keys = dict(zip(vocabulary.labels, self._keys(vocabulary, self._choice(vocabulary)), strict=False))
        score = self._scores.get(keys[label]) if label in keys else None
        if score is None:
            raise SettingsError(f"the label {label.name!r} has no scores yet; segment the image with it first")
        return enlarge(score, self.size).view(self.size).numpy().copy()

    def _finished(
        self,
        labels: Sequence[Label],
        choice: NameChoice | None,
        templates: str | None,
        on_progress: ProgressCallback | None,
    ) -> Tensor:
        """Score maps of some labels, then that of background names; similarities that are known are not computed."""

        def report(step: Literal["prompts", "scores"], done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(Progress(step, done, total))

        # Wrong words are found in a moment, the image takes seconds.
        for done, label in enumerate(labels):
            report("prompts", done, len(labels))
            self.segmenter.embed_prompts(label.prompts, templates)
        features = self.encode(on_progress)
        texts = [prompt for label in labels for prompt in label.prompts]
        names = [] if choice is None else self._competing(choice, features, templates, partial(report, "scores"))
        asked = [texts, names] if self.segmenter.method.independent_prompts else [texts + names]
        planes: dict[str, Tensor] = {}
        for group in asked:
            planes |= self._merged(list(dict.fromkeys(group)), features, templates, partial(report, "scores"))
        merged = [planes[text] for text in texts]
        others = [planes[name] for name in names]
        if choice is not None and choice.pooled:
            others = [reduce(torch.maximum, others)]
        return self.segmenter.finish(features, torch.stack(merged + others), owners(labels, len(others))).cpu()

    def _merged(
        self,
        prompts: list[str],
        features: ImageFeatures,
        templates: str | None,
        on_progress: Callable[[int, int], None],
    ) -> dict[str, Tensor]:
        """Similarities ``[h, w]`` of different prompts; those that are known are not computed."""
        identity = self.segmenter.score_identity(templates)
        company = () if self.segmenter.method.independent_prompts else tuple(prompts)
        planes: dict[str, Tensor] = {}
        for prompt in prompts:
            plane = self._similarities.get((features.key, identity, company, prompt))
            if plane is not None:
                planes[prompt] = plane
        missing = [prompt for prompt in prompts if prompt not in planes]
        if missing and company:
            missing = prompts
        if missing:
            embedded = self.segmenter.embed_prompts(missing, templates)
            found = self.segmenter.similarities(features, embedded, on_progress)
            for prompt, plane in zip(missing, found, strict=True):
                planes[prompt] = plane
                # A clone, because a plane of the batch would keep all of it.
                self._similarities.put((features.key, identity, company, prompt), plane.clone())
        return planes

    def _competing(
        self,
        choice: NameChoice,
        features: ImageFeatures,
        templates: str | None,
        on_progress: Callable[[int, int], None],
    ) -> list[str]:
        """The background names that compete in this image; what is known of a group of names is not computed."""
        if choice.few:
            return list(choice.names)
        identity = self.segmenter.score_identity(templates)
        winners = []
        for done, group in enumerate(choice.groups):
            on_progress(done, len(choice.groups))
            key = (features.key, identity, group, _GROUP)
            found = self._similarities.get(key)
            if found is None:
                found = self.segmenter.name_winners(features, group, templates)
                self._similarities.put(key, found)
            winners.append(found)
        return list(strongest_names(choice.groups, winners))

    @property
    def _one_by_one(self) -> bool:
        """Whether a label's scores do not depend on which others there are."""
        method = self.segmenter.method
        return method.independent_prompts and method.independent_labels

    def _choice(self, vocabulary: Vocabulary, on_progress: ProgressCallback | None = None) -> NameChoice:
        def report(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(Progress("names", done, total))

        return self.segmenter.background_names(vocabulary, report)

    def _keys(self, vocabulary: Vocabulary, choice: NameChoice) -> list[_LabelKey]:
        """What the scores of each label depend on, then those of the background's names, where there are any."""
        names = choice.names
        labels = (*vocabulary.labels, Label("background", names)) if names else vocabulary.labels
        identity = self.segmenter.score_identity(vocabulary.templates)
        if self._one_by_one:
            return [(label.prompts, identity, ()) for label in labels]
        # How many are labels says whether the last are names of the background.
        company = ((str(len(vocabulary.labels)),), *(label.prompts for label in labels))
        # Labels of equal prompts are told apart, because the scores of one depend on the other being there.
        return [(label.prompts, identity, (*company, (str(place),))) for place, label in enumerate(labels)]
