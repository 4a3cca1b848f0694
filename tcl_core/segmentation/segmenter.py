"""From an image and a vocabulary to a label map, in two steps: encode once, segment for any number of vocabularies.

Everything that segments (command line, annotation back ends, viewers, evaluation) goes through `Segmenter`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.backends.calibration import Calibration
from tcl_core.devices import precision_name
from tcl_core.errors import SettingsError
from tcl_core.images import ResizedImage
from tcl_core.methods.base import PromptEmbeddings
from tcl_core.refinement.base import ScoreRefiner
from tcl_core.segmentation.argmax import label_map_from_parts
from tcl_core.segmentation.background_names import BackgroundNames, NameChoice, owners, strongest_names
from tcl_core.segmentation.encoding import ImageEncoder
from tcl_core.segmentation.features import FeatureCache, FeatureKey, ImageFeatures, check_image
from tcl_core.segmentation.model import SegmentationModel
from tcl_core.segmentation.name_plane import NamePlane
from tcl_core.segmentation.scoring import ImageScorer
from tcl_core.segmentation.specks import speck_area
from tcl_core.segmentation.texts import Texts
from tcl_core.types import Segmentation, Unlabeled
from tcl_core.vocabulary import Vocabulary
from tcl_core.vocabulary.common_names import common_names_version

__all__ = ["Segmenter"]


class Segmenter:
    """A model with the settings of inference (the protocol of arXiv 2212.00785: resize, slide, average, arg-max).

    An image is resized so that its short side has the model's working length, unless its long side would grow beyond
    the limit; square windows slide over it, and each pixel's score is the mean over the windows that cover it. Safe to
    use from several threads.

    Args:
        model: from `tcl_core.models.load_model`.
        refine: make the masks follow the image's edges.
        refiner: how; by default the method's choice, PAMR.
        options: values of the method's options, such as ``{"kp_weight": 0.2}``; those left out are the model's.
        cache: keeps features of images; ``None`` keeps none. It may be shared.
        batch_size: most windows that go through the network together; memory grows with it.

    Raises:
        SettingsError: an option is unknown or out of range, or ``batch_size`` is, or precision int8 was not measured.

    Attributes:
        network_identity: what the network depends on, as canonical JSON.

    Example::

        segmenter = Segmenter(load_model("playground"))
        features = segmenter.encode(load_image("room.jpg"))
        sofas = segmenter.segment(features, Vocabulary.from_options(["Sofa=sofa,couch"]))
    """

    def __init__(
        self,
        model: SegmentationModel,
        *,
        refine: bool = True,
        refiner: ScoreRefiner | None = None,
        options: Mapping[str, Any] | None = None,
        cache: FeatureCache | None = None,
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}; give at least 1.")
        self.model = model
        self.method = model.method.configured(options) if options else model.method
        self.refine = refine
        chosen = self.method.default_refiner() if refiner is None else refiner
        self.refiner: ScoreRefiner | None = chosen if refine else None
        self._texts = Texts(model, self.method)
        self._names = BackgroundNames(model, self.method, self._texts.embed)
        self._score_identities: dict[str, str] = {}
        network = {
            "model": model.name,
            "weights": model.weights_sha256,
            "method": self.method.name,
            "options": self.method.options.affecting("features"),
        }
        self.network_identity = json.dumps(network, sort_keys=True)
        self._calibration = self._checked_calibration()
        settings = json.dumps(
            {
                # Its name holds the configuration under which a CLIP's file is used.
                "model": model.name,
                "method": self.method.name,
                "options": self.method.options.affecting("features"),
                "preprocess": model.preprocess.to_dict(),
                "refiner": None if self.refiner is None else dict(self.refiner.identity()),
                "precision": precision_name(model.precision),
                "device": str(model.device),
                "backend": model.backend.name,
                **({} if self._calibration is None else {"calibration": self._calibration.digest}),
            },
            sort_keys=True,
        )
        encode_windows = model.backend.encoder(self.method, self.network_identity, model.precision)
        self._encoder = ImageEncoder(model, self.method, self.refiner, encode_windows, settings, cache, batch_size)
        self._scorer = ImageScorer(model, self.method, self.refiner)

    @property
    def cache(self) -> FeatureCache | None:
        """Where features of images are kept."""
        return self._encoder.cache

    @property
    def batch_size(self) -> int:
        """Most windows that go through the network together."""
        return self._encoder.batch_size

    def _checked_calibration(self) -> Calibration | None:
        if self.model.precision != torch.int8:
            return None
        found = self.model.backend.calibration(self.network_identity)
        if found is None and self.model.backend.name == "openvino":
            raise SettingsError(
                f"precision int8 was not measured for the model {self.model.name} with these options, weights and "
                "versions of OpenVINO and NNCF; run 'tcl-annotate models quantize MODEL IMAGE... --labels FILE' on "
                "your images, or use another precision."
            )
        return found

    def settings(self) -> dict[str, Any]:
        """What a result depends on besides image and vocabulary, as plain JSON values (for COCO's ``info``)."""
        source = self._names.own_source
        return {
            "model": self.model.name,
            "weights_sha256": self.model.weights_sha256,
            "method": self.method.name,
            "options": self.method.options.model_dump(mode="json"),
            "refine": self.refine,
            "refiner": None if self.refiner is None else dict(self.refiner.identity()),
            "background_threshold": self.background_threshold,
            "background_names": f"common names, version {common_names_version()}" if source == "common" else source,
            "templates": self.model.templates,
            "precision": precision_name(self.model.precision),
            "backend": self.model.backend.name,
            "preprocess": self.model.preprocess.to_dict(),
            **self._measured_int8(),
        }

    def _measured_int8(self) -> dict[str, Any]:
        if self._calibration is None:
            return {}
        return {"int8": {**self._calibration.measured, "calibration": self._calibration.digest}}

    @property
    def background_threshold(self) -> float | None:
        """Height of the background plane where a vocabulary says none; ``None`` for a method without such a plane."""
        if self.method.background.kind == "none":
            return None
        name = "plain" if self.refiner is None else self.refiner.name
        heights = self.model.background_threshold
        height = heights.get(name, heights.get("plain"))
        return self.method.background.height(name) if height is None else float(height)

    def speck_area(self, size: tuple[int, int]) -> int:
        """Pixels below which a region of an image of ``size`` (height, width) is noise; see `specks.speck_area`."""
        return speck_area(self.model, size)

    def score_identity(self, vocabulary_templates: str | None) -> str:
        """What scores depend on besides features and prompts, as canonical JSON; with them a key of cached scores."""
        templates = self._templates_of(vocabulary_templates)
        # Asked for every label whenever a threshold moves, and the same each time.
        if templates not in self._score_identities:
            self._score_identities[templates] = json.dumps(
                {
                    "options": self.method.options.affecting("scores"),
                    "templates": templates,
                    "debiased": self.model.debiasing is not None,
                },
                sort_keys=True,
            )
        return self._score_identities[templates]

    def feature_key(self, image: NDArray[np.uint8] | ResizedImage) -> FeatureKey:
        """What the features of an image depend on: its pixels, the weights and the settings.

        Args:
            image: uint8 ``[H, W, 3]``, RGB, or what `resized` made of it.
        """
        return self._encoder.feature_key(image)

    # -- the image ---------------------------------------------------------------------------------------------

    def resized(self, image: NDArray[np.uint8] | ResizedImage) -> ResizedImage:
        """An image at the working size, which gives the same features; of large images little is left.

        Args:
            image: uint8 ``[H, W, 3]``, RGB, or an image that was resized for a model with the same working size.

        Raises:
            ImageError: the array is not such an image, or was resized for another working size.
        """
        check_image(image)
        return self._encoder.resized(image)

    def encode(
        self, image: NDArray[np.uint8] | ResizedImage, on_progress: Callable[[int, int], None] | None = None
    ) -> ImageFeatures:
        """Compute all that depends on the image alone, or find it in the cache.

        Args:
            image: uint8 ``[H, W, 3]``, RGB, or what `resized` made of it.
            on_progress: called with the number of windows done and of all, before the first batch and after each;
                what it raises ends the work and is passed on.

        Raises:
            ImageError: the array is not such an image.
        """
        return self.encode_batch([image], on_progress)[0]

    def encode_batch(
        self,
        images: Sequence[NDArray[np.uint8] | ResizedImage],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[ImageFeatures]:
        """Encode several images; windows of one size go through the network together, ``batch_size`` at a time.

        Images of one working size (such as all photographs of a camera) share batches. Equal images are computed
        once.

        Args:
            images: uint8 ``[H, W, 3]`` each, RGB, of any sizes, or what `resized` made of them.
            on_progress: see `encode`; it is not called if all images are in the cache.

        Returns:
            Features in the order of the images.

        Raises:
            ImageError: one of the arrays is not such an image.
        """
        return self._encoder.encode_batch(images, on_progress)

    # -- the prompts ---------------------------------------------------------------------------------------------

    def embed_prompts(self, prompts: Sequence[str], templates: str | None = None) -> PromptEmbeddings:
        """Embed prompts in a template set; each prompt is computed once per template set.

        Args:
            prompts: P texts.
            templates: name of the template set; ``None`` takes the model's.

        Returns:
            P entries of the method's kind.

        Raises:
            VocabularyError: the set is unknown, or the model does not know a word of a prompt or of the templates.
        """
        return self._texts.embed(prompts, self._templates_of(templates))

    def embed_vocabulary(
        self, vocabulary: Vocabulary, on_progress: Callable[[int, int], None] | None = None
    ) -> NameChoice:
        """Embed the prompts of a vocabulary and the names that compete with them.

        Texts that are embedded together differ in the last bits from single ones, so jobs, commands and machines that
        have to agree all begin with this.

        Args:
            vocabulary: the labels.
            on_progress: see `background_names`.

        Returns:
            The names that compete.

        Raises:
            VocabularyError: the model does not know a word of a prompt, or of a name that the vocabulary gives.
        """
        prompts = [prompt for _, prompt in vocabulary.prompts]
        # Wrong words are found in a moment, whereas a long list of names can take minutes.
        self.model.check_prompts(prompts)
        choice = self.background_names(vocabulary, on_progress)
        self.embed_prompts(prompts, vocabulary.templates)
        self.embed_prompts(choice.names, vocabulary.templates)
        return choice

    def background_names(
        self, vocabulary: Vocabulary, on_progress: Callable[[int, int], None] | None = None
    ) -> NameChoice:
        """The names that compete with the labels and leave what they win unlabeled.

        The first time all names of the list are embedded, which takes seconds to minutes with a large text tower; they
        are kept on disk for the next run.

        Args:
            vocabulary: the labels.
            on_progress: called with the number of names embedded and of all, where any are; what it raises ends the
                work and is passed on.

        Raises:
            VocabularyError: the model does not know a word of a prompt, or of a name that the vocabulary gives.
        """
        if vocabulary.background and vocabulary.background_names is None:
            self.embed_background_names(vocabulary.templates, on_progress)
        return self._names.choose(vocabulary, self._templates_of(vocabulary.templates))

    def embed_background_names(
        self, templates: str | None = None, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Embed all names that can compete where a vocabulary lists none, so that `background_names` answers soon.

        Args:
            templates: name of the template set; ``None`` takes the model's.
            on_progress: as for `background_names`.
        """
        chosen = self._templates_of(templates)
        self._texts.embed_list(self._names.own(chosen), chosen, on_progress)

    def nearness(self, names: Sequence[str], prompts: Sequence[str]) -> Tensor | None:
        """How near names are to prompts, see `tcl_core.segmentation.background_names.BackgroundNames.nearness`."""
        return self._names.nearness(names, prompts, self.model.templates)

    def knows_background_names(self, vocabulary: Vocabulary) -> bool:
        """Whether `background_names` answers at once."""
        return self._names.is_chosen(vocabulary, self._templates_of(vocabulary.templates))

    def _templates_of(self, chosen: str | None) -> str:
        return self.model.templates if chosen is None else chosen

    # -- both ----------------------------------------------------------------------------------------------------

    def similarities(
        self,
        features: ImageFeatures,
        prompts: PromptEmbeddings,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Similarities of the whole image with prompts, averaged over the windows, before the method finishes them.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            prompts: P of them, from `embed_prompts`.
            on_progress: called before each batch of windows with the number of windows done and of all; what it raises
                ends the work and is passed on.

        Returns:
            float32 ``[P, h, w]`` at the features' ``score_size``, on the model's device.

        Raises:
            SettingsError: the features come from another model or other settings.
        """
        self._check_features(features)
        return self._scorer.similarities(features, prompts, on_progress)

    def name_winners(
        self,
        features: ImageFeatures,
        names: Sequence[str],
        templates: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """The strongest of some background names at each place of every window, before refinement.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            names: at least one; memory grows with them.
            templates: name of the template set; ``None`` takes the model's.
            on_progress: as for `similarities`.

        Returns:
            float32 ``[n, 2, h, w]``: the greatest value, and the place of the name that has it.

        Raises:
            SettingsError: the features come from another model or other settings.
            VocabularyError: the model does not know a word of a name.
        """
        self._check_features(features)
        embedded = self.embed_prompts(names, templates)
        return self._scorer.name_winners(features, embedded, on_progress)

    def finish(self, features: ImageFeatures, merged: Tensor, labels: Sequence[int]) -> Tensor:
        """Score maps float32 ``[K, h, w]`` in ``[0, 1]`` of merged similarities; see `tcl_core.methods.Method.finish`.

        Args:
            features: of the image.
            merged: float32 ``[P, h, w]`` of `similarities`.
            labels: the label of each of the P prompts, from 0; -1 for names of the background.
        """
        return self._scorer.finish(features, merged, labels)

    @torch.no_grad()
    def score_maps(
        self,
        features: ImageFeatures,
        vocabulary: Vocabulary,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Score every pixel for every label.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            vocabulary: K labels.
            on_progress: called before each batch of windows, for each group of prompts if there are very many, with the
                number of windows done and of all; what it raises ends the work and is passed on.

        Returns:
            float32 ``[K, h, w]`` in ``[0, 1]`` at the features' ``score_size``, on the model's device; one plane more,
            the last, where names of the background compete.

        Raises:
            SettingsError: the features come from another model or other settings.
            VocabularyError: the model does not know a word of a prompt.
        """
        return self._score_maps(features, vocabulary, on_progress)[0]

    def _score_maps(
        self,
        features: ImageFeatures,
        vocabulary: Vocabulary,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, NamePlane | None]:
        """The score maps, and what is known of the background's names where there are any."""
        parts, names, plane = self._score_parts(features, vocabulary, on_progress)
        kept = [*parts, names] if len(names) else list(parts)
        return kept[0] if len(kept) == 1 else torch.cat(kept), plane

    def _score_parts(
        self,
        features: ImageFeatures,
        vocabulary: Vocabulary,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Iterator[Tensor], Tensor, NamePlane | None]:
        """Score maps of the labels in parts, each made when it is asked for, and that of the background's names.

        Methods whose labels depend on each other make all of them at once.
        """
        self._check_features(features)
        labels, choice = vocabulary.labels, self.background_names(vocabulary)
        texts = [prompt for label in labels for prompt in label.prompts]
        plane = None
        if choice.names and choice.pooled:
            plane = self._name_plane(features, choice, vocabulary.templates, on_progress)
        pooled = [] if plane is None else [plane.best]
        if not (self.method.independent_prompts and self.method.independent_labels):
            names = [] if choice.pooled else list(choice.names)
            # A prompt that two labels share is asked once, or it would count twice among the names.
            asked = list(dict.fromkeys(texts + names))
            merged = self.similarities(features, self.embed_prompts(asked, vocabulary.templates), on_progress)
            if asked != texts + names:
                merged = merged[[asked.index(text) for text in texts + names]]
            if names:
                plane = NamePlane.of(names, merged[len(texts) :])
            planes = torch.cat([merged, *pooled]) if pooled else merged
            scores = self.finish(features, planes, owners(labels, len(names) + len(pooled)))
            return iter([scores[: len(labels)]]), scores[len(labels) :], plane
        prompts = self.embed_prompts(texts, vocabulary.templates)

        def parts() -> Iterator[Tensor]:
            first = 0
            for group in self._scorer.label_groups(labels, features):
                places = owners(group)
                merged = self.similarities(features, prompts[first : first + len(places)], on_progress)
                yield self.finish(features, merged, places)
                first += len(places)

        none = torch.zeros(0, *features.score_size, device=self.model.device)
        return parts(), self.finish(features, pooled[0], [-1]) if pooled else none, plane

    def _name_plane(
        self,
        features: ImageFeatures,
        choice: NameChoice,
        templates: str | None,
        on_progress: Callable[[int, int], None] | None,
    ) -> NamePlane:
        names = choice.names
        if not choice.few:
            winners = [self.name_winners(features, group, templates, on_progress) for group in choice.groups]
            names = strongest_names(choice.groups, winners)
        at_once = self._scorer.at_once(features)
        groups = [names[first : first + at_once] for first in range(0, len(names), at_once)]
        parts = (
            NamePlane.of(group, self.similarities(features, self.embed_prompts(group, templates), on_progress))
            for group in groups
        )
        return reduce(NamePlane.joined, parts)

    def _check_features(self, features: ImageFeatures) -> None:
        if (features.key.weights, features.key.settings) != (self.model.weights_sha256, self._encoder.settings):
            raise SettingsError(
                "these features come from another model or other settings; encode the image with this segmenter."
            )

    @torch.no_grad()
    def segment(self, features: ImageFeatures, vocabulary: Vocabulary) -> Segmentation:
        """Decide each pixel's label, at the size of the original image.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            vocabulary: the labels that compete.

        Raises:
            SettingsError: the features come from another model or other settings.
            VocabularyError: the model does not know a word of a prompt.
        """
        parts, names, _ = self._score_parts(features, vocabulary)
        height = self.background_threshold
        label_map, score_map = label_map_from_parts(parts, vocabulary, height, features.size, names)
        return Segmentation(label_map, score_map, vocabulary)

    @torch.no_grad()
    def explain(self, features: ImageFeatures, vocabulary: Vocabulary) -> tuple[Segmentation, Unlabeled]:
        """`segment`, and which background names won the pixels that have no label.

        Args:
            features: from `encode` of a segmenter with the same model and settings.
            vocabulary: the labels that compete.

        Raises:
            SettingsError: the features come from another model or other settings.
            VocabularyError: the model does not know a word of a prompt.
        """
        parts, names, plane = self._score_parts(features, vocabulary)
        height = self.background_threshold
        label_map, score_map = label_map_from_parts(parts, vocabulary, height, features.size, names)
        if plane is None:
            unlabeled = Unlabeled((), np.zeros(features.size, np.int32))
        else:
            unlabeled = plane.unlabeled(names[-1], vocabulary.floor(height), label_map)
        return Segmentation(label_map, score_map, vocabulary), unlabeled

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
        self.embed_vocabulary(vocabulary)
        return self.segment(self.encode(image), vocabulary)
