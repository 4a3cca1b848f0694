"""A plan and the bytes of an image become Label Studio results; everything here runs where the model is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import shapely
import torch.nn.functional as F
from numpy.typing import NDArray
from shapely import Polygon
from torch import Tensor

from labelstudio_backend.labeling_config import Control, LabelingConfig
from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.prompts import Added
from labelstudio_backend.requests import Corners, Plan
from labelstudio_backend.results import overall_score, region_results
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import VocabularyError
from tcl_core.images import load_image
from tcl_core.polygons.rasterize import polygon_to_mask
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, SimilarityCache
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["Prediction", "Predictor", "Routed", "image_digest"]

_PLANES_SHARE = 8
"""One part in so many of the cache is for score maps, the rest for features."""


@dataclass(frozen=True)
class Prediction:
    """What was found in an image.

    Attributes:
        results: in Label Studio's form.
        score: see :func:`labelstudio_backend.results.overall_score`.
        size: ``(height, width)`` of the upright image.
        notes: prompts that were left out, and why.
    """

    results: list[dict[str, Any]]
    score: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Routed:
    """The label that takes a typed prompt.

    Attributes:
        label: its value.
        similarity: cosine of the prompt to the label's nearest prompt, in ``[-1, 1]``.
    """

    label: str
    similarity: float


@dataclass
class _Labels:
    """The part of a plan's vocabulary that the model knows."""

    values: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def image_digest(image: bytes) -> str:
    """SHA-256 (hex) of an image's bytes."""
    return hashlib.sha256(image).hexdigest()


class Predictor:
    """A model with caches for images and prompts. Not for several threads at once.

    Args:
        segmenter: the model.
        options: how regions are drawn; the model's own settings are the segmenter's.
        cache_bytes: bound of all that is kept of images.
    """

    def __init__(self, segmenter: Segmenter, options: ModelOptions, cache_bytes: int) -> None:
        self.segmenter = segmenter
        self.options = options
        planes = cache_bytes // _PLANES_SHARE
        self._features = ByteBoundedCache[str, ImageFeatures](cache_bytes - planes, lambda features: features.nbytes)
        self._similarities = SimilarityCache(planes)

    def route(self, text: str, config: LabelingConfig, added: Added) -> Routed:
        """Find the label that is nearest to a prompt.

        Raises:
            VocabularyError: the model does not know a word of the prompt, or no label.
        """
        known = self._known(config.vocabulary(added), config.values)
        if not known.labels:
            raise VocabularyError(f"the model knows none of the labels' prompts ({known.notes[0]})")
        vocabulary = Vocabulary(tuple(known.labels))
        asked = self.segmenter.embed_prompts([text])
        prompts = self.segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts])
        similarity = self.segmenter.method.prompt_similarity(prompts, asked)[:, 0]
        best = int(similarity.argmax())
        return Routed(known.values[vocabulary.prompts[best][0]], float(similarity[best]))

    def predict(self, image: bytes, plan: Plan, controls: Sequence[Control] | None = None) -> Prediction:
        """Find a plan's regions in an image.

        Args:
            image: the encoded file.
            plan: what to find.
            controls: tags to draw with; by default all of the plan that are not skipped.

        Raises:
            ImageError: the image cannot be read.
            VocabularyError: the model knows no prompt that the plan needs.
        """
        vocabulary = plan.config.vocabulary(plan.added)
        if plan.label is not None and plan.prompts is not None:
            place = plan.config.values.index(plan.label)
            labels = list(vocabulary.labels)
            labels[place] = replace(labels[place], prompts=plan.prompts)
            self.segmenter.model.check_prompts(plan.prompts)
            vocabulary = replace(vocabulary, labels=tuple(labels))
        known = self._known(vocabulary, plan.config.values)
        if not known.labels or (plan.label is not None and plan.label not in known.values):
            raise VocabularyError(known.notes[0] if known.notes else f"there is no label {plan.label!r}")
        vocabulary = replace(vocabulary, labels=tuple(known.labels))
        features = self._encode(image_digest(image), image)
        # Nobody moves a threshold here, so score maps at the image's size would only take memory.
        session = ImageSession(self.segmenter, features, self._similarities, plane_bytes=0)
        values = list(known.values)
        if plan.label is None:
            found = session.segment(vocabulary)
        else:
            found = session.segment_label(vocabulary, values.index(plan.label), rivals=plan.box is None)
        label_map, score_map = found.label_map, found.score_map
        if plan.box is not None:
            label_map = np.where(_box_mask(plan.box, features.size), label_map, 0)
        background = plan.config.background_label
        if background is not None and plan.label is None and not plan.config.background_skipped:
            values.append(background)
            nothing = label_map == 0
            score_map = np.where(
                nothing, 1 - _best(session.scores(vocabulary)[: len(known.labels)], features.size), score_map
            )
            # Not before the scores: the background is no name that competes.
            vocabulary = replace(vocabulary, labels=(*vocabulary.labels, Label("(background)")))
            label_map = np.where(nothing, len(values), label_map).astype(np.int32)
        wanted = plan.config.drawing if controls is None else controls
        tolerance = self.options.tolerance if any(control.kind == "polygon" for control in wanted) else None
        # One label's regions have no neighbors in the answer, and somebody waits for it.
        regions = self._regions(Segmentation(label_map, score_map, vocabulary), tolerance, shared=plan.label is None)
        drawn = [(values[region.label_id - 1], region) for region in _from_the_back(regions, len(values), background)]
        meta = None if plan.note is None else {"text": [plan.note]}
        results = region_results(plan.config, drawn, features.size, controls=wanted, meta=meta)
        return Prediction(results, overall_score(drawn), features.size, tuple(known.notes))

    def _regions(self, segmentation: Segmentation, tolerance: str | float | None, *, shared: bool) -> list[Region]:
        """Regions, found in the part of the image that has any: a prompt often concerns a small part."""
        rows = np.flatnonzero(segmentation.label_map.any(axis=1))
        columns = np.flatnonzero(segmentation.label_map.any(axis=0))
        if not rows.size:
            return []
        wanted = self.options.min_area
        min_area = self.segmenter.speck_area(segmentation.size) if wanted == "auto" else wanted
        # A margin, so that only the image's own frame is taken for a frame, and that none of the background around is
        # taken for a speck.
        shorter = min(int(np.ptp(rows)), int(np.ptp(columns))) + 1
        margin = max(1, -(-min_area // shorter))
        top, left = max(int(rows[0]) - margin, 0), max(int(columns[0]) - margin, 0)
        part = slice(top, int(rows[-1]) + margin + 1), slice(left, int(columns[-1]) + margin + 1)
        cropped = Segmentation(segmentation.label_map[part], segmentation.score_map[part], segmentation.vocabulary)
        regions = label_map_to_regions(cropped, min_area=min_area, small="merge", tolerance=tolerance, shared=shared)
        return [_moved(region, left, top) for region in regions] if (top, left) != (0, 0) else regions

    def _known(self, vocabulary: Vocabulary, values: Sequence[str]) -> _Labels:
        """Leave out prompts with words that the model never learned: one of them must not cost all other labels."""
        known = _Labels()
        for value, label in zip(values, vocabulary.labels, strict=True):
            kept = []
            for prompt in label.prompts:
                try:
                    self.segmenter.model.check_prompts([prompt])
                    kept.append(prompt)
                except VocabularyError as error:
                    known.notes.append(f"label {value!r}, {error}")
            if kept:
                known.values.append(value)
                known.labels.append(replace(label, prompts=tuple(kept)))
        return known

    def _encode(self, key: str, image: bytes) -> ImageFeatures:
        features = self._features.get(key)
        if features is None:
            pixels = load_image(image, max_pixels=self.options.max_pixels, name="the image")
            features = self.segmenter.encode(pixels)
            self._features.put(key, features)
        return features


def _moved(region: Region, left: int, top: int) -> Region:
    x, y, width, height = region.bbox
    polygon = region.polygon
    if polygon is not None:
        polygon = shapely.transform(polygon, lambda points: points + (left, top))
    return replace(region, bbox=(x + left, y + top, width, height), polygon=polygon)


def _best(scores: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    best = scores.amax(dim=0)[None, None]
    return F.interpolate(best, size=size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def _box_mask(box: Corners, size: tuple[int, int]) -> NDArray[np.bool_]:
    corners = Polygon([(x * size[1], y * size[0]) for x, y in box])
    inside = corners.intersection(shapely.box(0, 0, size[1], size[0]))
    if not isinstance(inside, Polygon):
        return np.zeros(size, dtype=bool)
    return polygon_to_mask(inside, size)


def _from_the_back(regions: list[Region], labels: int, background: str | None) -> list[Region]:
    """Background first, so that it lies below all others where Label Studio draws it."""
    if background is None:
        return regions
    return sorted(regions, key=lambda region: region.label_id != labels)
