"""Semantic masks: one PNG an image, whose pixels are the numbers of labels."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl_core.errors import ExportError
from tcl_core.export.base import ImageRegions, register_exporter
from tcl_core.export.folder import FolderExporter
from tcl_core.vocabulary import Vocabulary

__all__ = ["IGNORED", "SemanticPngExporter", "values_of"]

IGNORED = 255
"""In masks of 8 bits no label has this number: by convention it is what nobody judged."""


@register_exporter("semantic-png")
class SemanticPngExporter(FolderExporter):
    """A folder with ``masks/NAME.png`` for each image and ``classes.json``.

    A pixel is 0 where there is no label, else the label's ``value`` in the label file, or its place in it counted from
    1. Masks have a palette of the labels' colors; beyond a value of 254 they have 16 bits, and no palette. Where
    regions overlap the later one wins.
    """

    files = "masks"
    ending = ".png"

    def __init__(self) -> None:
        super().__init__()
        self._table: NDArray[np.uint16] = np.zeros(1, dtype=np.uint16)
        self._palette: bytes | None = None

    @property
    def needs_polygons(self) -> bool:
        """Masks are enough."""
        return False

    def settings(self) -> dict[str, Any]:
        """Nothing besides the regions."""
        return {}

    def open(self, out: Path, vocabulary: Vocabulary, info: Mapping[str, Any]) -> None:
        """Begin a folder; see `tcl_core.export.base.Exporter.open`."""
        values = values_of(vocabulary)
        self._table = np.array([0, *values], dtype=np.uint16)
        self._palette = None
        if max(values) < IGNORED:
            colors = np.zeros((256, 3), dtype=np.uint8)
            colors[values] = vocabulary.colors
            self._palette = colors.tobytes()
        super().open(out, vocabulary, info)

    def describe(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        """``classes.json``: value, name and color of each label."""
        classes = [
            {"value": value, "name": name, "color": list(color)}
            for value, name, color in zip(values_of(vocabulary), vocabulary.names, vocabulary.colors, strict=True)
        ]
        lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in classes)
        return {"classes.json": f"[\n{lines}\n]\n"}

    def add(self, image: ImageRegions) -> None:
        """Write an image; see `tcl_core.export.base.Exporter.add`."""
        if image.height < 1 or image.width < 1:
            raise ExportError(f"{image.file_name} has a size of {image.width}x{image.height}")
        mask = np.zeros((image.height, image.width), dtype=np.uint16)
        for region in image.regions:
            x, y, width, height = region.bbox
            mask[y : y + height, x : x + width][region.mask] = self._table[region.label_id]
        if self._palette is None:
            png = Image.fromarray(mask)
        else:
            png = Image.fromarray(mask.astype(np.uint8))
            png.putpalette(self._palette)
        data = io.BytesIO()
        png.save(data, "PNG")
        self.write(image.file_name, data.getvalue())


def values_of(vocabulary: Vocabulary) -> list[int]:
    """The number of each label in masks: its ``value``, or else its place counted from 1.

    Raises:
        ExportError: two labels have one number.
    """
    values = [label.value or place for place, label in enumerate(vocabulary.labels, start=1)]
    for place, value in enumerate(values):
        if value in values[:place]:
            first, second = vocabulary.names[values.index(value)], vocabulary.names[place]
            raise ExportError(
                f"the labels {first!r} and {second!r} would both have the value {value} in masks; give each its own "
                "value in the label file"
            )
    return values
