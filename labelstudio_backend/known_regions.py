"""Regions that a task has already: an answer takes their place instead of lying on top of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelstudio_backend.labeled_shapes import join_labels
from labelstudio_backend.labeling_config import Control, LabelingConfig
from labelstudio_backend.shapes import cropped_mask
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
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in (entry for source in sources if isinstance(source, list) for entry in source):
        listed = entry.get("result") if isinstance(entry, Mapping) else None
        for result in join_labels(listed if isinstance(listed, list) else []):
            number = result.get("id")
            if isinstance(number, str) and 0 < len(number) <= _LONGEST_ID and len(found) < _MOST:
                found.setdefault((number, str(result.get("from_name"))), result)
    return tuple(found.values())


@dataclass(frozen=True)
class _Drawn:
    """A region that is drawn.

    Attributes:
        id: of its result.
        corner: ``(x, y)`` of the mask's first pixel.
        mask: bool ``[h, w]``, the region's part of the image.
        area: number of pixels.
    """

    id: str
    corner: tuple[int, int]
    mask: NDArray[np.bool_]
    area: int

    def shared(self, region: Region) -> int:
        """How many pixels it has in common with a region."""
        x, y, width, height = region.bbox
        left, top = max(x, self.corner[0]), max(y, self.corner[1])
        right = min(x + width, self.corner[0] + self.mask.shape[1])
        bottom = min(y + height, self.corner[1] + self.mask.shape[0])
        if left >= right or top >= bottom:
            return 0
        own = self.mask[top - self.corner[1] : bottom - self.corner[1], left - self.corner[0] : right - self.corner[0]]
        return int(np.count_nonzero(own & region.mask[top - y : bottom - y, left - x : right - x]))


class KnownRegions:
    """The regions of one image that new ones may replace.

    Only those of a label that is drawn anew are made into masks: a task may have hundreds of others.

    Args:
        results: see :func:`results_of_task`.
        config: of the image.
        size: ``(height, width)`` of the upright image.
    """

    def __init__(self, results: Sequence[Mapping[str, Any]], config: LabelingConfig, size: tuple[int, int]) -> None:
        self._size = size
        self._unread: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        self._free: dict[tuple[str, str], list[_Drawn]] = {}
        for result in results:
            label = _label_of(result, config)
            if label is not None:
                self._unread.setdefault((str(result.get("from_name")), label), []).append(result)

    def take(self, control: Control, label: str, region: Region) -> str | None:
        """The id of the region that a new one replaces: in Label Studio, accepting it takes the place of that one.

        Args:
            control: the tag that draws it.
            label: the label's value.
            region: what was found.

        Returns:
            An id, each only once; ``None`` for a region that is new.
        """
        key = control.name, label
        free = self._free.setdefault(key, [])
        free += self._read(self._unread.pop(key, []))
        best, place = 0, -1
        for index, drawn in enumerate(free):
            shared = drawn.shared(region)
            if shared > best and shared / max(1, min(region.area, drawn.area)) >= _SAME:
                best, place = shared, index
        return free.pop(place).id if place >= 0 else None

    def _read(self, results: Sequence[Mapping[str, Any]]) -> Iterator[_Drawn]:
        for result in results:
            try:
                corner, mask = cropped_mask(str(result["type"]), result["value"], self._size)
            except (ValueError, TypeError):
                # Drawn with a tool that nothing is predicted for, or on an image of another size.
                continue
            if mask.any():
                yield _Drawn(str(result["id"]), corner, mask, int(np.count_nonzero(mask)))


def _label_of(result: Mapping[str, Any], config: LabelingConfig) -> str | None:
    """The label of a result of the configuration's image."""
    value = result.get("value")
    if result.get("to_name") != config.image_name or not isinstance(value, Mapping):
        return None
    if config.item_index is not None and (result.get("item_index") or 0) != config.item_index:
        return None
    written = value.get(str(result.get("type")))
    if not isinstance(written, list) or not written:
        return None
    return config.label_of(result.get("from_name"), str(written[0]))
