"""Regions in Label Studio's form: polygons, brush masks and boxes, in percent of the upright image."""

from __future__ import annotations

import hashlib
import itertools
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from labelstudio_backend.brush_rle import encode_brush
from labelstudio_backend.known_regions import KnownRegions
from labelstudio_backend.labeling_config import Control, LabelingConfig
from tcl_core.export.coco.geometry import has_hole, pixel_outline
from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.types import Region

__all__ = ["overall_score", "region_results", "text_result"]

_SCORE_DECIMALS = 4


def region_results(
    config: LabelingConfig,
    drawn: Sequence[tuple[str, Region]],
    size: tuple[int, int],
    *,
    controls: Sequence[Control] | None = None,
    meta: Mapping[str, Any] | None = None,
    known: KnownRegions | None = None,
    id_seed: str | None = None,
) -> list[dict[str, Any]]:
    """Draw regions with every tag that has their label.

    A region with a hole comes as a brush mask where a brush tag has its label; only where none has, it comes as a
    polygon whose hole is kept by a bridge of no width.

    Args:
        config: the project's configuration.
        drawn: the label's value and the region, in the order they shall have.
        size: ``(height, width)`` of the upright image.
        controls: the tags to draw with; by default all that are not skipped.
        meta: stands in every result.
        known: regions whose ids are taken over by those that replace them.
        id_seed: what the other ids are made from, so that they are the same each time; by default they are random.

    Returns:
        Results of type ``polygonlabels``, ``brushlabels`` and ``rectanglelabels``; or pairs of a ``polygon``, ``brush``
        or ``rectangle`` and its ``labels``. Each region has an id of its own.
    """
    chosen = config.drawing if controls is None else controls
    results: list[dict[str, Any]] = []
    ids = _ids(id_seed)
    for value, region in drawn:
        holed = has_hole(region.mask)
        able = [control for control in chosen if value in control.labels]
        brushed = any(control.kind == "brush" for control in able)
        for control in able:
            if control.holes_only and not holed:
                continue
            if control.kind == "polygon" and holed and brushed:
                continue
            number = (known.take(control, value, region) if known is not None else None) or next(ids)
            results += _results(number, control, config, value, region, size, meta)
    return results


def text_result(config: LabelingConfig, lines: Sequence[str], id_seed: str | None = None) -> list[dict[str, Any]]:
    """Texts in the project's prompt field; nothing where it has none.

    Args:
        config: the project's configuration.
        lines: the texts.
        id_seed: see `region_results`.
    """
    if config.prompt_name is None or not lines:
        return []
    return [
        {
            "id": next(_ids(id_seed)),
            "from_name": config.prompt_name,
            "to_name": config.image_name,
            "type": "textarea",
            "score": 0.0,
            "value": {"text": list(lines)},
        }
    ]


def overall_score(drawn: Sequence[tuple[str, Region]]) -> float:
    """Score of a prediction: the mean over its regions, 0 without regions.

    Each region counts the same, because each may have to be corrected: a large background that is certain would hide
    how uncertain the objects on it are.
    """
    return _score(sum(region.score for _, region in drawn) / len(drawn)) if drawn else 0.0


def _results(
    number: str,
    control: Control,
    config: LabelingConfig,
    value: str,
    region: Region,
    size: tuple[int, int],
    meta: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """A region: one result, or a shape and its label where these are of two tags, as Label Studio writes them."""
    geometry: dict[str, Any]
    if control.kind == "brush":
        geometry = {"format": "rle", "rle": encode_brush(region.full_mask(size))}
    elif control.kind == "polygon":
        geometry = {"points": _percent(keyhole_ring(_outline(region)), size), "closed": True}
    else:
        x, y, width, height = region.bbox
        (left, top), (across, down) = _percent(np.array([[x, y], [width, height]], dtype=np.float64), size)
        geometry = {"x": left, "y": top, "width": across, "height": down, "rotation": 0}
    common = {
        "id": number,
        "to_name": config.image_name,
        "original_width": size[1],
        "original_height": size[0],
        "image_rotation": 0,
        "score": _score(region.score),
    }
    if config.item_index is not None:
        common["item_index"] = config.item_index
    if meta is not None:
        common["meta"] = dict(meta)
    label = [control.written_as(value)]
    if control.labels_name is None:
        kind = f"{control.kind}labels"
        return [{**common, "from_name": control.name, "type": kind, "value": {**geometry, kind: label}}]
    return [
        {**common, "from_name": control.name, "type": control.kind, "value": geometry},
        {**common, "from_name": control.labels_name, "type": "labels", "value": {**geometry, "labels": label}},
    ]


def _outline(region: Region) -> Polygon:
    # How far an outline may leave its mask is the tolerance's business.
    if region.polygon is not None and region.polygon.is_valid:
        return region.polygon
    (outline,) = shapely.get_parts(pixel_outline(region.mask, region.bbox[:2]))
    return outline


def _percent(points: NDArray[np.float64], size: tuple[int, int]) -> list[list[float]]:
    return (points / (size[1], size[0]) * 100).tolist()


def _score(score: float) -> float:
    # Label Studio fails on NaN and stores whatever else it gets.
    return round(min(max(float(score), 0.0), 1.0), _SCORE_DECIMALS) if math.isfinite(score) else 0.0


def _ids(seed: str | None) -> Iterator[str]:
    """Ids of results."""
    for number in itertools.count():
        text = uuid.uuid4().hex if seed is None else hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()
        yield text[:10]
