"""A plan and the bytes of an image become Label Studio results; everything here runs where the model is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import shapely
import torch.nn.functional as F
from numpy.typing import NDArray
from shapely import Polygon
from torch import Tensor

from labelstudio_backend.brush_rle import decode_brush
from labelstudio_backend.decoding import decode_image
from labelstudio_backend.drawing import Decided, Drawing, Prediction, find_regions
from labelstudio_backend.labeling_config import LabelingConfig
from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.prompts import Added
from labelstudio_backend.requests import Corners, Drawn, Plan
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.polygons.rasterize import polygon_to_mask
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, SimilarityCache
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["SPECKS_OF_A_REGION", "Prediction", "Predictor", "Routed", "Wanted", "image_digest"]

SPECKS_OF_A_REGION = 8
"""Two patches: of smaller regions that nobody asked for, most are wrong (docs/label-studio.md), and each has to be
removed by hand."""
_PLANES_SHARE = 8
"""One part in so many of the cache is for score maps, the rest for features."""


@dataclass(frozen=True)
class Routed:
    """The label that takes a typed prompt.

    Attributes:
        label: its value.
        similarity: cosine of the prompt to the label's nearest prompt, in ``[-1, 1]``.
    """

    label: str
    similarity: float


@dataclass(frozen=True)
class Wanted:
    """A plan with the part of its vocabulary that the model knows.

    Attributes:
        plan: what to find.
        vocabulary: the labels that compete.
        values: the value of each of them.
        notes: prompts that were left out, and why.
    """

    plan: Plan
    vocabulary: Vocabulary
    values: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Known:
    """Labels with prompts that the model knows."""

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

    def predict(self, image: bytes, plan: Plan) -> Prediction:
        """Find a plan's regions in an image.

        Args:
            image: the encoded file.
            plan: what to find.

        Raises:
            ImageError: the image cannot be read.
            VocabularyError: the model knows no prompt that the plan needs.
            SettingsError: what was drawn does not fit the image.
        """
        wanted = self.wanted(plan)
        features = self._encode(image_digest(image), image)
        if plan.label is None:
            return self.decide(wanted, features).prediction()
        session, tolerance = self._session(features), self._tolerance(plan)
        place = wanted.values.index(plan.label)
        if plan.drawn is None:
            # One label's regions have no neighbors in the answer, and somebody waits for it.
            found = session.segment_label(wanted.vocabulary, place)
            regions = self._regions(found, tolerance)
        else:
            regions = self._drawn_regions(session, wanted.vocabulary, place, plan.drawn, tolerance)
        return Drawing(plan, wanted.values, wanted.notes).prediction(regions, features.size)

    def wanted(self, plan: Plan) -> Wanted:
        """What of a plan the model can look for.

        Raises:
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
        if not known.values or (plan.label is not None and plan.label not in known.values):
            raise VocabularyError(known.notes[0] if known.notes else f"there is no label {plan.label!r}")
        vocabulary = replace(vocabulary, labels=tuple(known.labels))
        return Wanted(plan, vocabulary, tuple(known.values), tuple(known.notes))

    def decide(self, wanted: Wanted, features: ImageFeatures, id_seed: str | None = None) -> Decided:
        """Decide the label of each pixel of an image.

        Args:
            wanted: all labels of an image.
            features: of the image.
            id_seed: see :class:`labelstudio_backend.drawing.Drawing`.
        """
        session = self._session(features)
        found = session.segment(wanted.vocabulary)
        drawing = Drawing(wanted.plan, wanted.values, wanted.notes, id_seed=id_seed)
        label = wanted.plan.config.background_label
        if label is not None and not wanted.plan.config.background_skipped:
            found = _with_background(session, found)
            drawing = replace(drawing, values=(*wanted.values, label), background=True)
        min_area = self._min_area(found.size, SPECKS_OF_A_REGION)
        return Decided(found, drawing, min_area, self._tolerance(wanted.plan))

    def _session(self, features: ImageFeatures) -> ImageSession:
        # Nobody moves a threshold here, so score maps at the image's size would only take memory.
        return ImageSession(self.segmenter, features, self._similarities, plane_bytes=0)

    def _tolerance(self, plan: Plan) -> str | float | None:
        return self.options.tolerance if any(control.kind == "polygon" for control in plan.controls()) else None

    def _min_area(self, size: tuple[int, int], specks: int = 1) -> int:
        wanted = self.options.min_area
        return specks * self.segmenter.speck_area(size) if wanted == "auto" else wanted

    def _drawn_regions(
        self, session: ImageSession, vocabulary: Vocabulary, place: int, drawn: Drawn, tolerance: str | float | None
    ) -> list[Region]:
        """Regions of a label inside an area, or those that are marked."""
        # Whoever draws says that the label is there, but not that it fills what was drawn.
        vocabulary = replace(vocabulary, background=True)
        if drawn.outline:
            found = session.segment_label(vocabulary, place, rivals=False)
            inside = _area_mask(drawn.outline, session.size)
            found = replace(found, label_map=np.where(inside, found.label_map, 0))
            return self._regions(found, tolerance)
        marks = _marks(drawn, session.size)
        # What is marked belongs to the label: where another one wins, it is the region that there would be without it.
        for rivals in (True, False):
            found = session.segment_label(vocabulary, place, rivals=rivals)
            if not (found.label_map[marks] > 0).any():
                continue
            regions = [each for each in self._regions(found, tolerance) if _touches(each, marks)]
            if regions:
                return regions
        return []

    def _regions(self, segmentation: Segmentation, tolerance: str | float | None) -> list[Region]:
        return find_regions(segmentation, self._min_area(segmentation.size), tolerance, borders="apart")

    def _known(self, vocabulary: Vocabulary, values: Sequence[str]) -> _Known:
        """Leave out prompts with words that the model never learned: one of them must not cost all other labels."""
        known = _Known()
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
            features = self.segmenter.encode(decode_image(image, self.options.max_pixels))
            self._features.put(key, features)
        return features


def _with_background(session: ImageSession, found: Segmentation) -> Segmentation:
    """Give what no label wins to one label more, that of the background."""
    count = len(found.vocabulary.labels)
    scores = session.scores(found.vocabulary)[:count]
    nothing = found.label_map == 0
    score_map = np.where(nothing, 1 - _best(scores, session.size), found.score_map)
    label_map = np.where(nothing, count + 1, found.label_map).astype(np.int32)
    # Not before the scores: the background is no name that competes.
    vocabulary = replace(found.vocabulary, labels=(*found.vocabulary.labels, Label("(background)")))
    return Segmentation(label_map, score_map, vocabulary)


def _best(scores: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    best = scores.amax(dim=0)[None, None]
    return F.interpolate(best, size=size, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def _area_mask(outline: Corners, size: tuple[int, int]) -> NDArray[np.bool_]:
    area = Polygon([(x * size[1], y * size[0]) for x, y in outline])
    mask = np.zeros(size, dtype=bool)
    # A hand draws outlines that cross themselves.
    inside = shapely.intersection(shapely.make_valid(area), shapely.box(0, 0, size[1], size[0]))
    for part in shapely.get_parts(inside):
        if isinstance(part, Polygon):
            mask |= polygon_to_mask(part, size)
    return mask


def _marks(drawn: Drawn, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of key points or strokes.

    Raises:
        SettingsError: a stroke was drawn on an image of another size, or cannot be read.
    """
    mask = np.zeros(size, dtype=bool)
    for x, y in drawn.points:
        if 0 <= x <= 1 and 0 <= y <= 1:
            mask[min(int(y * size[0]), size[0] - 1), min(int(x * size[1]), size[1] - 1)] = True
    for stroke in drawn.strokes:
        if stroke.size != size:
            raise SettingsError(
                f"the stroke was drawn on an image of {stroke.size[1]} x {stroke.size[0]} pixels, but this one has "
                f"{size[1]} x {size[0]}; open the task again"
            )
        try:
            mask |= decode_brush(stroke.rle, size)
        except ValueError as error:
            raise SettingsError(f"the stroke cannot be used: {error}") from error
    return mask


def _touches(region: Region, marks: NDArray[np.bool_]) -> bool:
    x, y, width, height = region.bbox
    return bool((region.mask & marks[y : y + height, x : x + width]).any())
