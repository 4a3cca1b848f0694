"""From an image and a vocabulary to a label map, in two steps: encode once, segment for any number of vocabularies.

Everything that segments (command line, annotation back ends, viewers, evaluation) goes through `Segmenter`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.caching import ByteBoundedCache, FeatureCache
from tcl_core.devices import autocast, precision_name
from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.methods.base import WindowEmbeddings
from tcl_core.refinement.pamr import PamrAffinity
from tcl_core.segmentation.features import FeatureKey, ImageFeatures, check_image, content_hash, join, resize_image
from tcl_core.segmentation.sliding_window import merge_windows, split_windows, working_size
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.templates import apply_templates

if TYPE_CHECKING:
    from tcl_core.models import Model

__all__ = ["SCORE_ROUNDING", "Segmenter", "label_map_from_scores"]

_TEXT_CACHE_BYTES = 64 << 20
# Score maps of all prompts at once would grow with the vocabulary; beyond this they are worked off in groups.
_SCORE_BYTES = 256 << 20
# Score maps made together: enough that fixed costs do not count, few enough that a cancelled work ends soon.
_MAPS_TOGETHER = 64
SCORE_ROUNDING = 1e-5
"""By how much a resized score can exceed the scores around it."""


@dataclass(frozen=True)
class _Prepared:
    """An image cut into normalized windows ``[n, 3, h, w]``."""

    windows: Tensor
    origins: tuple[tuple[int, int], ...]
    working_size: tuple[int, int]
    size: tuple[int, int]
    key: FeatureKey


class Segmenter:
    """A model with the settings of inference (the protocol of arXiv 2212.00785: resize, slide, average, arg-max).

    An image is resized so that its short side has the model's working length, unless its long side would grow beyond
    the limit; square windows slide over it, and each pixel's score is the mean over the windows that cover it. Safe to
    use from several threads.

    Args:
        model: from `tcl_core.models.load_model`.
        refine: smooth the masks along the image's edges (PAMR).
        kp_weight: share in ``[0, 1]`` of CLIP's own dense map in the scores; ``None`` takes the model's.
        cache: keeps features of images; ``None`` keeps none. It may be shared.
        batch_size: most windows that go through the network together; memory grows with it.

    Raises:
        SettingsError: ``kp_weight`` or ``batch_size`` is out of range.

    Example::

        segmenter = Segmenter(load_model("playground"))
        features = segmenter.encode(load_image("room.jpg"))
        sofas = segmenter.segment(features, Vocabulary.from_options(["Sofa=sofa,couch"]))
    """

    def __init__(
        self,
        model: Model,
        *,
        refine: bool = True,
        kp_weight: float | None = None,
        cache: FeatureCache | None = None,
        batch_size: int = 8,
    ) -> None:
        if kp_weight is None:
            kp_weight = float(model.method.config_to_dict().get("kp_weight", 0.0))
        if not 0 <= kp_weight <= 1:
            raise SettingsError(f"kp_weight is {kp_weight}; give a number from 0 to 1.")
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}; give at least 1.")
        self.model = model
        self.refine = refine
        self.kp_weight = kp_weight
        self.cache = cache
        self.batch_size = batch_size
        self._texts = ByteBoundedCache[tuple[str, str], Tensor](_TEXT_CACHE_BYTES, _tensor_bytes)
        self._feature_settings = json.dumps(
            {
                "preprocess": model.preprocess.to_dict(),
                "refine": refine,
                "precision": precision_name(model.precision),
                "device": str(model.device),
            },
            sort_keys=True,
        )

    def settings(self) -> dict[str, Any]:
        """What a result depends on besides image and vocabulary, as plain JSON values (for COCO's ``info``)."""
        return {
            "model": self.model.name,
            "weights_sha256": self.model.weights_sha256,
            "refine": self.refine,
            "kp_weight": self.kp_weight,
            "background_threshold": self._default_background_threshold(),
            "templates": self.model.templates,
            "precision": precision_name(self.model.precision),
            "preprocess": self.model.preprocess.to_dict(),
        }

    # -- the image ---------------------------------------------------------------------------------------------

    def encode(self, image: NDArray[np.uint8], on_progress: Callable[[int, int], None] | None = None) -> ImageFeatures:
        """Compute all that depends on the image alone, or find it in the cache.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            on_progress: called with the number of windows done and of all, before the first batch and after each;
                what it raises ends the work and is passed on.

        Raises:
            ImageError: the array is not such an image.
        """
        return self.encode_batch([image], on_progress)[0]

    @torch.no_grad()
    def encode_batch(
        self, images: Sequence[NDArray[np.uint8]], on_progress: Callable[[int, int], None] | None = None
    ) -> list[ImageFeatures]:
        """Encode several images; windows of one size go through the network together, ``batch_size`` at a time.

        Images of one working size (such as all photographs of a camera) share batches. Equal images are computed
        once.

        Args:
            images: uint8 ``[H, W, 3]`` each, RGB, of any sizes.
            on_progress: see `encode`; it is not called if all images are in the cache.

        Returns:
            Features in the order of the images.

        Raises:
            ImageError: one of the arrays is not such an image.
        """
        for image in images:
            check_image(image)
        keys = [FeatureKey(content_hash(image), self.model.weights_sha256, self._feature_settings) for image in images]
        found: dict[FeatureKey, ImageFeatures] = {}
        missing: dict[FeatureKey, NDArray[np.uint8]] = {}
        for key, image in dict(zip(keys, images, strict=True)).items():
            cached = None if self.cache is None else self.cache.get(key)
            if cached is None:
                missing[key] = image
            else:
                found[key] = cached
        by_window: dict[tuple[int, ...], list[_Prepared]] = {}
        for key, image in missing.items():
            prepared = self._prepare(image, key)
            by_window.setdefault(tuple(prepared.windows.shape[1:]), []).append(prepared)
        total = sum(len(prepared.windows) for group in by_window.values() for prepared in group)
        done = 0

        def advance(windows: int) -> None:
            nonlocal done
            done += windows
            if on_progress is not None:
                on_progress(done, total)

        if total:
            advance(0)
        while by_window:
            _, group = by_window.popitem()
            for features in self._embed(group, advance):
                found[features.key] = features
                if self.cache is not None:
                    self.cache.put(features.key, features)
        return [found[key] for key in keys]

    def _prepare(self, image: NDArray[np.uint8], key: FeatureKey) -> _Prepared:
        preprocess = self.model.preprocess
        height, width = image.shape[:2]
        size = working_size(height, width, preprocess.short_side, preprocess.max_long_side)
        mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        std = torch.tensor(preprocess.std).view(3, 1, 1)
        pixels = resize_image(image, size).div_(255).sub_(mean).div_(std)
        windows, origins = split_windows(pixels, preprocess.window, preprocess.stride)
        return _Prepared(windows, tuple(origins), size, (height, width), key)

    def _embed(self, group: list[_Prepared], advance: Callable[[int], None]) -> Iterator[ImageFeatures]:
        """Run images whose windows have one size through the network; each is given out once it is complete."""
        queue = ((image, index) for image in group for index in range(len(image.windows)))
        embeddings: list[WindowEmbeddings] = []
        affinities: list[PamrAffinity] = []
        while batch := list(islice(queue, self.batch_size)):
            windows = torch.stack([image.windows[index] for image, index in batch]).to(self.model.device)
            with autocast(self.model.device, self.model.precision):
                embedded = self.model.method.embed_windows(windows)
            affinity = self.model.method.refinement(windows) if self.refine else None
            start = 0
            for stop in range(1, len(batch) + 1):
                image, index = batch[stop - 1]
                complete = index == len(image.windows) - 1
                if not complete and stop < len(batch):
                    continue
                embeddings.append(embedded[start:stop])
                if affinity is not None:
                    affinities.append(affinity[start:stop])
                start = stop
                if complete:
                    yield ImageFeatures(
                        windows=join(embeddings),
                        affinity=join(affinities) if affinities else None,
                        origins=image.origins,
                        working_size=image.working_size,
                        size=image.size,
                        key=image.key,
                    )
                    embeddings, affinities = [], []
            advance(len(batch))

    # -- the prompts ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str], templates: str | None = None) -> Tensor:
        """Embed prompts as the mean over a template set; each prompt is computed once per template set.

        Args:
            prompts: P texts.
            templates: name of the template set; ``None`` takes the model's.

        Returns:
            float32 ``[P, E]``, L2-normalized.

        Raises:
            VocabularyError: the set is unknown, or the model does not know a word of a prompt or of the templates.
        """
        chosen = self.model.templates if templates is None else templates
        found = {prompt: self._texts.get((prompt, chosen)) for prompt in dict.fromkeys(prompts)}
        missing = [prompt for prompt, embedding in found.items() if embedding is None]
        if missing:
            for prompt, embedding in zip(missing, self._embed_texts(missing, chosen), strict=True):
                found[prompt] = embedding
                # A clone, because a row of the batch would keep all of it.
                self._texts.put((prompt, chosen), embedding.clone())
        rows = [embedding for embedding in (found[prompt] for prompt in prompts) if embedding is not None]
        return torch.stack(rows) if rows else torch.zeros(0, self.model.clip.embed_dim, device=self.model.device)

    def _embed_texts(self, prompts: list[str], templates: str) -> Tensor:
        self.model.check_prompts(prompts)
        texts = [apply_templates(prompt, templates) for prompt in prompts]
        for prompt, filled in zip(prompts, texts, strict=True):
            # Templates can bring their own words, or make a new one of the prompt ("{}s").
            self._check_templates(prompt, filled, templates)
        tokens = self.model.tokenizer([text for filled in texts for text in filled])
        tokens = tokens.unflatten(0, (len(prompts), -1)).to(self.model.device)
        embedded = self.model.method.embed_prompts(tokens).float()
        return embedded if self.model.debiasing is None else self.model.debiasing(prompts, embedded)

    def _check_templates(self, prompt: str, filled: list[str], templates: str) -> None:
        unknown = self.model.tokenizer.unknown_words
        if words := list(dict.fromkeys(word for text in filled for word in unknown(text))):
            raise VocabularyError(
                f"templates {templates!r} around the prompt {prompt!r}: the model {self.model.name} does not know "
                f"{_listed(words)}; use its own templates, {self.model.templates!r}, or another model."
            )

    # -- both ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score_maps(
        self,
        features: ImageFeatures,
        vocabulary: Vocabulary,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Score every pixel for every label: the maximum over the label's prompts.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            vocabulary: K labels.
            on_progress: called before each batch of windows, for each group of prompts if there are very many, with the
                number of windows done and of all; what it raises ends the work and is passed on.

        Returns:
            float32 ``[K, h, w]`` in ``[0, 1]`` at the working resolution, on the model's device.

        Raises:
            SettingsError: the features come from another model or other settings.
            VocabularyError: the model does not know a word of a prompt.
        """
        if (features.key.weights, features.key.settings) != (self.model.weights_sha256, self._feature_settings):
            raise SettingsError(
                "these features were made with another model or other settings; encode the image with this segmenter."
            )
        labels = [label for label, _ in vocabulary.prompts]
        text = self.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
        height, width = features.working_size
        scores = torch.zeros(len(vocabulary.labels), height, width, device=text.device)
        at_once = max(1, _SCORE_BYTES // (4 * height * width))
        for first in range(0, len(labels), at_once):
            group = text[first : first + at_once]
            windows = self._window_scores(features, group, on_progress)
            averaged = merge_windows(windows, features.origins, (height, width))
            for label, plane in zip(labels[first : first + at_once], averaged, strict=True):
                torch.maximum(scores[label], plane, out=scores[label])
        # Refinement weights sum to one only up to rounding.
        return scores.clamp_(max=1)

    def _window_scores(
        self, features: ImageFeatures, text: Tensor, on_progress: Callable[[int, int], None] | None
    ) -> Iterator[Tensor]:
        """Score maps ``[P, h, w]`` of the windows, one after the other."""
        pixels = features.windows.size[0] * features.windows.size[1]
        at_once = max(1, min(_MAPS_TOGETHER, _SCORE_BYTES // (4 * pixels)) // len(text))
        for first in range(0, len(features.origins), at_once):
            if on_progress is not None:
                on_progress(first, len(features.origins))
            group = slice(first, first + at_once)
            affinity = None if features.affinity is None else features.affinity[group]
            yield from self.model.method.score_maps(features.windows[group], text, affinity, self.kp_weight)

    def segment(self, features: ImageFeatures, vocabulary: Vocabulary) -> Segmentation:
        """Decide each pixel's label, at the size of the original image.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            vocabulary: the labels that compete.

        Raises:
            SettingsError: the features come from another model or other settings.
            VocabularyError: the model does not know a word of a prompt.
        """
        scores = self.score_maps(features, vocabulary)
        label_map, score_map = label_map_from_scores(
            scores, vocabulary, self._default_background_threshold(), features.size
        )
        return Segmentation(label_map, score_map, vocabulary)

    def segment_image(self, image: NDArray[np.uint8], vocabulary: Vocabulary) -> Segmentation:
        """`encode` and `segment` in one call.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            vocabulary: the labels that compete.

        Raises:
            ImageError: the array is not such an image.
            VocabularyError: the model does not know a word of a prompt.
        """
        # Wrong words are found in a moment, the image takes seconds.
        self.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
        return self.segment(self.encode(image), vocabulary)

    def _default_background_threshold(self) -> float:
        return float(self.model.background_threshold["pamr" if self.refine else "plain"])


@torch.no_grad()
def label_map_from_scores(
    scores: Tensor | NDArray[np.float32],
    vocabulary: Vocabulary,
    background_threshold: float,
    size: tuple[int, int],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Arg-max of score maps at the image's size, one label after the other, so that memory does not grow with them.

    A label competes at a pixel where its score, resized bilinearly (``align_corners=False``), is at least its own
    threshold, if it has one. With background, a constant plane competes too. Ties go to the background, then to the
    earlier label; where nothing competes there is no label.

    Args:
        scores: float32 ``[K, h, w]`` in ``[0, 1]``, one plane per label.
        vocabulary: K labels; its own ``background_threshold`` comes before the argument.
        background_threshold: height of the background plane where the vocabulary does not say.
        size: height and width of the result.

    Returns:
        int32 ``[H, W]``: 0 for no label, k for label k counted from 1; and float32 ``[H, W]``: the winner's score, 0
        where there is none.

    Raises:
        ValueError: ``scores`` does not have one plane per label.

    >>> scores = np.array([[[0.9, 0.2, 0.6]], [[0.5, 0.3, 0.6]]], dtype=np.float32)
    >>> label_map, score_map = label_map_from_scores(scores, Vocabulary.from_options(["a", "b"]), 0.4, (1, 3))
    >>> label_map.tolist()
    [[1, 0, 1]]
    """
    planes = torch.as_tensor(scores)
    if planes.ndim != 3 or len(planes) != len(vocabulary.labels):
        raise ValueError(f"expected score maps [{len(vocabulary.labels)}, h, w], got {list(planes.shape)}")
    floor = vocabulary.floor(background_threshold)
    best = torch.full(size, floor, dtype=torch.float32, device=planes.device)
    winner = torch.zeros(size, dtype=torch.int32, device=planes.device)
    for number, (label, plane) in enumerate(zip(vocabulary.labels, planes, strict=True), start=1):
        lowest = floor if label.threshold is None else max(floor, label.threshold)
        # Interpolation exceeds no value by more than rounding, so most of a long vocabulary needs no more than this.
        if float(plane.max()) < lowest - SCORE_ROUNDING:
            continue
        score = F.interpolate(plane[None, None].float(), size=size, mode="bilinear", align_corners=False)[0, 0]
        wins = score > best
        if label.threshold is not None:
            wins &= score >= label.threshold
        winner.masked_fill_(wins, number)
        # In place, because an image of 200 megapixels needs 0.8 GB for each temporary plane.
        torch.maximum(best, score.masked_fill_(~wins, float("-inf")), out=best)
    best.masked_fill_(winner == 0, 0)
    return winner.cpu().numpy(), best.cpu().numpy()


def _tensor_bytes(tensor: Tensor) -> int:
    return tensor.element_size() * tensor.numel()


def _listed(words: Sequence[str]) -> str:
    return ("the word " if len(words) == 1 else "the words ") + ", ".join(repr(word) for word in words)
