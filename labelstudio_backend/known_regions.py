"""Regions that a task has already: an answer takes their place instead of lying on top of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstudio_backend.labeled_shapes import join_labels
from labelstudio_backend.labeling_config import Control, LabelingConfig
from labelstudio_backend.shapes import mask_of_value
from tcl_core.types import Region

__all__ = ["KnownRegions", "results_of_task"]

_SAME = 0.5
"""Regions of one label are the same object where they share this part of the smaller one."""
_MOST = 1000
_LONGEST_ID = 100


def results_of_task(*sources: object) -> tuple[dict[str, Any], ...]:
    """The results in a task's drafts, annotations and predictions.

    Args:
        *sources: lists as Label Studio sends them, those that count most first.

    Returns:
        Results with labels, one of each id.
    """
    found: dict[tuple[str, object], dict[str, Any]] = {}
    for entry in (entry for source in sources if isinstance(source, list) for entry in source):
        listed = entry.get("result") if isinstance(entry, Mapping) else None
        for result in join_labels(listed if isinstance(listed, list) else []):
            number = result.get("id")
            if isinstance(number, str) and 0 < len(number) <= _LONGEST_ID and len(found) < _MOST:
                found.setdefault((number, result.get("from_name")), result)
    return tuple(found.values())


class KnownRegions:
    """The regions of one image that new ones may replace.

    Args:
        results: see :func:`results_of_task`.
        config: of the image.
        size: ``(height, width)`` of the upright image.
    """

    def __init__(self, results: Sequence[Mapping[str, Any]], config: LabelingConfig, size: tuple[int, int]) -> None:
        self._size = size
        self._free: dict[tuple[str, str], list[tuple[str, NDArray[np.bool_]]]] = {}
        for result in results:
            for label, mask in self._read(result, config):
                self._free.setdefault((str(result.get("from_name")), label), []).append((str(result["id"]), mask))

    def take(self, control: Control, label: str, region: Region) -> str | None:
        """The id of the region that a new one replaces: in Label Studio, accepting it takes the place of that one.

        Args:
            control: the tag that draws it.
            label: the label's value.
            region: what was found.

        Returns:
            An id, each only once; ``None`` for a region that is new.
        """
        free = self._free.get((control.name, label), [])
        x, y, width, height = region.bbox
        best, place = 0.0, -1
        for index, (_, mask) in enumerate(free):
            shared = int((mask[y : y + height, x : x + width] & region.mask).sum())
            part = shared / max(1, min(region.area, int(mask.sum())))
            if part >= _SAME and shared > best:
                best, place = shared, index
        return free.pop(place)[0] if place >= 0 else None

    def _read(self, result: Mapping[str, Any], config: LabelingConfig) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        kind, value = str(result.get("type")), result.get("value")
        if result.get("to_name") != config.image_name or not isinstance(value, Mapping):
            return
        if config.item_index is not None and (result.get("item_index") or 0) != config.item_index:
            return
        written = value.get(kind)
        if not isinstance(written, list) or not written:
            return
        label = config.label_of(result.get("from_name"), str(written[0]))
        try:
            mask = mask_of_value(kind, value, self._size)
        except (ValueError, TypeError):
            # Drawn with a tool that nothing is predicted for, or on an image of another size.
            return
        if label is not None and mask.any():
            yield label, mask
