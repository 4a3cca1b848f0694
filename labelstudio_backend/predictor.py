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

from labelstudio_backend.brush_rle import decode_brush
from labelstudio_backend.known_regions import KnownRegions
from labelstudio_backend.labeling_config import LabelingConfig
from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.prompts import Added
from labelstudio_backend.requests import Corners, Drawn, Plan
from labelstudio_backend.results import overall_score, region_results
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import ImageError, SettingsError, VocabularyError
from tcl_core.images import exif_orientation, image_size, load_image
from tcl_core.polygons.rasterize import polygon_to_mask
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.features import ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, SimilarityCache
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["SPECKS_OF_A_REGION", "Prediction", "Predictor", "Routed", "image_digest"]

_PNG = b"\x89PNG"
_WORDS_SHOWN = 5
SPECKS_OF_A_REGION = 8
"""Two patches: of smaller regions that nobody asked for, most are wrong (docs/label-studio.md), and each has to be
removed by hand."""
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
        reason: why there are no results, where there are none.
    """

    results: list[dict[str, Any]]
    score: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    reason: str = ""

    @property
    def regions(self) -> int:
        """How many results there are."""
        return len(self.results)


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
        wanted = plan.controls()
        tolerance = self.options.tolerance if any(control.kind == "polygon" for control in wanted) else None
        values = list(known.values)
        if plan.label is None:
            found = self._with_background(session, session.segment(vocabulary), plan.config, values)
            regions = self._regions(found, tolerance, shared=True, specks=SPECKS_OF_A_REGION)
        elif plan.drawn is None:
            # One label's regions have no neighbors in the answer, and somebody waits for it.
            found = session.segment_label(vocabulary, values.index(plan.label))
            regions = self._regions(found, tolerance, shared=False)
        else:
            regions = self._drawn_regions(session, vocabulary, values.index(plan.label), plan.drawn, tolerance)
        # Label Studio draws and clicks in this order: what is small must lie on what is large.
        background = len(values) if len(values) > len(known.values) else None
        regions = sorted(regions, key=lambda region: (region.label_id != background, -region.area))
        drawn = [(values[region.label_id - 1], region) for region in regions]
        meta = None if plan.note is None else {"text": [plan.note]}
        replaced = KnownRegions(plan.known, plan.config, features.size)
        results = region_results(plan.config, drawn, features.size, controls=wanted, meta=meta, known=replaced)
        reason = "" if results else _why_empty(plan, known, bool(regions))
        return Prediction(results, overall_score(drawn), features.size, tuple(known.notes), reason)

    def _with_background(
        self, session: ImageSession, found: Segmentation, config: LabelingConfig, values: list[str]
    ) -> Segmentation:
        """Give what no label wins to the label of the background, whose value is then the last, if there is one."""
        if config.background_label is None or config.background_skipped:
            return found
        scores = session.scores(found.vocabulary)[: len(values)]
        values.append(config.background_label)
        nothing = found.label_map == 0
        score_map = np.where(nothing, 1 - _best(scores, session.size), found.score_map)
        label_map = np.where(nothing, len(values), found.label_map).astype(np.int32)
        # Not before the scores: the background is no name that competes.
        vocabulary = replace(found.vocabulary, labels=(*found.vocabulary.labels, Label("(background)")))
        return Segmentation(label_map, score_map, vocabulary)

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
            return self._regions(found, tolerance, shared=False)
        marks = _marks(drawn, session.size)
        # What is marked belongs to the label: where another one wins, it is the region that there would be without it.
        for rivals in (True, False):
            found = session.segment_label(vocabulary, place, rivals=rivals)
            if not (found.label_map[marks] > 0).any():
                continue
            regions = [each for each in self._regions(found, tolerance, shared=False) if _touches(each, marks)]
            if regions:
                return regions
        return []

    def _regions(
        self, segmentation: Segmentation, tolerance: str | float | None, *, shared: bool, specks: int = 1
    ) -> list[Region]:
        """Regions, found in the part of the image that has any: a prompt often concerns a small part."""
        rows = np.flatnonzero(segmentation.label_map.any(axis=1))
        columns = np.flatnonzero(segmentation.label_map.any(axis=0))
        if not rows.size:
            return []
        wanted = self.options.min_area
        min_area = specks * self.segmenter.speck_area(segmentation.size) if wanted == "auto" else wanted
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
            height, width = image_size(image, name="the image")
            if height * width > self.options.max_pixels:
                raise ImageError(
                    f"the image has {width} x {height} pixels, but max_pixels of the settings is "
                    f"{self.options.max_pixels}; make the image smaller, or raise max_pixels"
                )
            _check_shown_upright(image)
            pixels = load_image(image, max_pixels=self.options.max_pixels, name="the image")
            features = self.segmenter.encode(pixels)
            self._features.put(key, features)
        return features


def _check_shown_upright(image: bytes) -> None:
    """Refuse an image that browsers show in another orientation than ours: its regions would lie elsewhere there.

    Raises:
        ImageError: it has an orientation that Chromium ignores.
    """
    ignored = image[8:12] == b"WEBP" or (image.startswith(_PNG) and 0 <= image.find(b"IDAT") < image.find(b"eXIf"))
    if ignored and exif_orientation(image, name="the image") != 1:
        raise ImageError(
            "the image has an EXIF orientation that browsers ignore (in WebP, and behind the pixels of a PNG), so its "
            "regions would lie elsewhere on the page; save it again as it should be seen, without the orientation"
        )


def _moved(region: Region, left: int, top: int) -> Region:
    x, y, width, height = region.bbox
    polygon = region.polygon
    if polygon is not None:
        polygon = shapely.transform(polygon, lambda points: points + (left, top))
    return replace(region, bbox=(x + left, y + top, width, height), polygon=polygon)


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


def _why_empty(plan: Plan, known: _Labels, found: bool) -> str:
    """Why a prediction has no results, as a sentence for the annotator."""
    if found:
        return "regions were found, but no tag of the labeling configuration draws them"
    if plan.drawn is not None:
        where = "inside" if plan.drawn.outline else "under"
        return f"no region of {plan.drawn.label!r} was found {where} the {plan.drawn.word}"
    if plan.label is not None:
        words = plan.prompts or plan.config.labels[plan.label][0] or (plan.label,)
        listed = ", ".join(repr(word) for word in words[:_WORDS_SHOWN])
        return f"{plan.label!r} was not found with {listed}: the background or another label scores higher everywhere"
    listed = ", ".join(repr(value) for value in known.values[:_WORDS_SHOWN])
    more = len(known.values) - _WORDS_SHOWN
    listed += f" and {more} more" if more > 0 else ""
    unknown = f"; {known.notes[0]}" if known.notes else ""
    return f"nothing was found: the background scores higher than {listed} everywhere{unknown}"
