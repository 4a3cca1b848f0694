"""From a decided image to Label Studio's results.

Nothing here needs the model or imports PyTorch, so that worker processes can do it while the network runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import shapely

from labelstudio_backend.known_regions import KnownRegions
from labelstudio_backend.requests import Plan
from labelstudio_backend.results import overall_score, region_results
from tcl_core.jobs.stages import packed_map
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation

__all__ = ["Decided", "Drawing", "Prediction", "find_regions"]

_WORDS_SHOWN = 5


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
class Drawing:
    """How the regions of an image become a prediction.

    Attributes:
        plan: what was to be found.
        values: the value of each label in the label map, that of label 1 first.
        notes: prompts that were left out, and why.
        background: whether the last value is that of the label for what no other label wins.
        id_seed: what ids of results are made from, so that they are the same in every run; by default they are random.
    """

    plan: Plan
    values: tuple[str, ...]
    notes: tuple[str, ...] = ()
    background: bool = False
    id_seed: str | None = None

    def prediction(self, regions: Sequence[Region], size: tuple[int, int]) -> Prediction:
        """Draw regions.

        Args:
            regions: of the image.
            size: ``(height, width)`` of the upright image.
        """
        background = len(self.values) if self.background else None
        # Label Studio draws and clicks in this order: what is small must lie on what is large.
        regions = sorted(regions, key=lambda region: (region.label_id != background, -region.area))
        drawn = [(self.values[region.label_id - 1], region) for region in regions]
        plan = self.plan
        results = region_results(
            plan.config,
            drawn,
            size,
            controls=plan.controls(),
            meta=None if plan.note is None else {"text": [plan.note]},
            known=KnownRegions(plan.known, plan.config, size),
            id_seed=self.id_seed,
        )
        reason = "" if results else self._why_empty(bool(regions))
        return Prediction(results, overall_score(drawn), size, self.notes, reason)

    def _why_empty(self, found: bool) -> str:
        """Why a prediction has no results, as a sentence for the annotator."""
        plan = self.plan
        if found:
            return "regions were found, but no tag of the labeling configuration draws them"
        if plan.drawn is not None:
            where = "inside" if plan.drawn.outline else "under"
            return f"no region of {plan.drawn.label!r} was found {where} the {plan.drawn.word}"
        if plan.label is not None:
            words = plan.prompts or plan.config.labels[plan.label][0] or (plan.label,)
            listed = ", ".join(repr(word) for word in words[:_WORDS_SHOWN])
            return (
                f"{plan.label!r} was not found with {listed}: the background or another label scores higher everywhere"
            )
        values = self.values[:-1] if self.background else self.values
        listed = ", ".join(repr(value) for value in values[:_WORDS_SHOWN])
        more = len(values) - _WORDS_SHOWN
        listed += f" and {more} more" if more > 0 else ""
        unknown = f"; {self.notes[0]}" if self.notes else ""
        return f"nothing was found: the background scores higher than {listed} everywhere{unknown}"


@dataclass(frozen=True)
class Decided:
    """The label of every pixel of an image, and how it is drawn.

    Attributes:
        segmentation: its label map may be of any whole numbers.
        drawing: what to make of the regions.
        min_area: pixels below which a region is merged into its surroundings.
        tolerance: of the polygons; ``None`` makes none.
    """

    segmentation: Segmentation
    drawing: Drawing
    min_area: int
    tolerance: str | float | None

    def packed(self) -> Decided:
        """The same with a label map in as few bytes as it needs, for the way to another process."""
        return replace(self, segmentation=replace(self.segmentation, label_map=packed_map(self.segmentation.label_map)))

    def prediction(self) -> Prediction:
        """Trace the regions and draw them."""
        found = self.segmentation
        found = replace(found, label_map=found.label_map.astype(np.int32, copy=False))
        regions = find_regions(found, self.min_area, self.tolerance, borders="shared")
        return self.drawing.prediction(regions, found.size)


def find_regions(
    segmentation: Segmentation,
    min_area: int,
    tolerance: str | float | None,
    borders: Literal["shared", "apart"],
) -> list[Region]:
    """Regions, found in the part of the image that has any: a prompt often concerns a small part.

    Args:
        segmentation: of the whole image.
        min_area: smaller regions are merged into their surroundings.
        tolerance: of the polygons; ``None`` makes none.
        borders: whether neighbors keep one border, or each polygon is simplified by itself, many times faster.
    """
    rows = np.flatnonzero(segmentation.label_map.any(axis=1))
    columns = np.flatnonzero(segmentation.label_map.any(axis=0))
    if not rows.size:
        return []
    # A margin, so that only the image's own frame is taken for a frame, and that none of the background around is
    # taken for a speck.
    shorter = min(int(np.ptp(rows)), int(np.ptp(columns))) + 1
    margin = max(1, -(-min_area // shorter))
    top, left = max(int(rows[0]) - margin, 0), max(int(columns[0]) - margin, 0)
    part = slice(top, int(rows[-1]) + margin + 1), slice(left, int(columns[-1]) + margin + 1)
    cropped = Segmentation(segmentation.label_map[part], segmentation.score_map[part], segmentation.vocabulary)
    regions = label_map_to_regions(
        cropped, min_area=min_area, small="merge", tolerance=tolerance, shared=borders == "shared"
    )
    return [_moved(region, left, top) for region in regions] if (top, left) != (0, 0) else regions


def _moved(region: Region, left: int, top: int) -> Region:
    x, y, width, height = region.bbox
    polygon = region.polygon
    if polygon is not None:
        polygon = shapely.transform(polygon, lambda points: points + (left, top))
    return replace(region, bbox=(x + left, y + top, width, height), polygon=polygon)
