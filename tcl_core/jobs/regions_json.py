"""Regions as plain JSON values and back, without any loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from shapely import Polygon

from tcl_core.types import Region
from tcl_core.vocabulary import Vocabulary

__all__ = ["region_from_json", "region_to_json"]


def region_to_json(region: Region) -> dict[str, Any]:
    """A region as plain values: label id, score, box, exact run lengths of the mask inside the box, and outline.

    Example:
        >>> dot = Region(1, "dot", 0.5, 1, (2, 1, 1, 1), np.ones((1, 1), dtype=bool))
        >>> region_to_json(dot)
        {'label_id': 1, 'score': 0.5, 'bbox': [2, 1, 1, 1], 'counts': '01'}
    """
    counts = coco_mask.encode(np.asfortranarray(region.mask, dtype=np.uint8))["counts"].decode("ascii")
    entry: dict[str, Any] = {
        "label_id": int(region.label_id),
        "score": float(region.score),
        "bbox": [int(value) for value in region.bbox],
        "counts": counts,
    }
    if region.polygon is not None:
        rings = shapely.get_rings(region.polygon)
        entry["polygon"] = [shapely.get_coordinates(ring).ravel().tolist() for ring in rings]
    return entry


def region_from_json(entry: Mapping[str, Any], vocabulary: Vocabulary) -> Region:
    """The inverse of `region_to_json`.

    Args:
        entry: of a journal.
        vocabulary: names the labels.
    """
    x, y, width, height = entry["bbox"]
    mask: NDArray[np.bool_] = coco_mask.decode({"size": [height, width], "counts": entry["counts"].encode()}) > 0
    polygon = None
    if "polygon" in entry:
        shell, *holes = (np.asarray(ring).reshape(-1, 2) for ring in entry["polygon"])
        polygon = Polygon(shell, holes)
    label_id = int(entry["label_id"])
    return Region(
        label_id=label_id,
        label=vocabulary.names[label_id - 1],
        score=float(entry["score"]),
        area=int(mask.sum()),
        bbox=(x, y, width, height),
        mask=mask,
        polygon=polygon,
    )
