"""The result of `tcl_core.segment`: label map, regions, COCO export and plot."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl_core.api.summary import LabelShare, label_shares
from tcl_core.errors import ExportError, SettingsError
from tcl_core.export.coco import Geometry, ImageResult, regions_to_annotations, write_coco_file
from tcl_core.preview.drawing import draw_overlay, thumbnail
from tcl_core.preview.markup import render_result
from tcl_core.regions import label_map_to_regions
from tcl_core.specks import absorb_small
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = ["Result", "save_coco"]

_NOTEBOOK_SIDE = 800
"""Long side, in pixels, of the image in a notebook."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The segmentation of one image. A notebook displays it as the image with its masks, and a table of labels.

    Attributes:
        image: uint8 ``[H, W, 3]``, RGB, upright.
        segmentation: the arg-max of the score maps, before small regions are merged.
        min_area: regions with fewer pixels are merged into their surroundings in `label_map` and `regions`.
        file_name: the file name in the COCO file.
        settings: everything besides image and vocabulary that the result depends on; written to ``info`` in the COCO
            file.
    """

    image: NDArray[np.uint8]
    segmentation: Segmentation
    min_area: int
    file_name: str
    settings: Mapping[str, Any]
    _regions: dict[str | float | None, list[Region]] = field(default_factory=dict, init=False)

    @property
    def vocabulary(self) -> Vocabulary:
        """The labels that competed."""
        return self.segmentation.vocabulary

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.segmentation.size

    @cached_property
    def label_map(self) -> NDArray[np.int32]:
        """int32 ``[H, W]``; 0 is background, and k is the k-th label of the vocabulary. Small regions are merged."""
        return absorb_small(self.segmentation.label_map, self.min_area)

    @property
    def score_map(self) -> NDArray[np.float32]:
        """float32 ``[H, W]`` in ``[0, 1]``; the score of the winning label, before small regions are merged."""
        return self.segmentation.score_map

    def mask(self, label: str) -> NDArray[np.bool_]:
        """The mask of a label.

        Args:
            label: name of the label.

        Returns:
            bool ``[H, W]``.

        Raises:
            SettingsError: the vocabulary has no such label.
        """
        names = self.vocabulary.names
        if label not in names:
            raise SettingsError(f"there is no label {label!r}; the labels are: {', '.join(names)}")
        return self.label_map == names.index(label) + 1

    def regions(self, tolerance: str | float | None = "default") -> list[Region]:
        """The connected components of each label, with mask, score, box and polygon.

        Args:
            tolerance: of the polygons; see `tcl_core.polygons.tolerance_in_pixels`. ``None`` computes no polygons.

        Returns:
            Regions ordered by label, then by their first pixel in reading order. Together, their masks are `label_map`.

        Raises:
            SettingsError: the tolerance is invalid.
        """
        if tolerance not in self._regions:
            self._regions[tolerance] = label_map_to_regions(
                self.segmentation, min_area=self.min_area, small="merge", tolerance=tolerance
            )
        return list(self._regions[tolerance])

    def shares(self) -> list[LabelShare]:
        """The number of regions, the share of the image and the mean score of each label in the vocabulary."""
        height, width = self.size
        return label_shares(self.vocabulary, self.regions(None), height * width)

    def save_coco(
        self,
        path: str | os.PathLike[str],
        *,
        geometry: Geometry = "polygon",
        tolerance: str | float = "default",
        overwrite: bool = False,
    ) -> None:
        """Write a COCO file of this image; for several images, see `tcl_core.save_coco`.

        Args:
            path: the file.
            geometry: ``"polygon"``, ``"keyhole"``, or ``"rle"``, which is pixel-exact.
            tolerance: of the polygons; see `regions`.
            overwrite: replace an existing file.

        Raises:
            CocoError: the file exists and ``overwrite`` is not set, or it cannot be written.
        """
        save_coco([self], path, geometry=geometry, tolerance=tolerance, overwrite=overwrite)

    def plot(self, opacity: float = 0.45) -> Image.Image:
        """The image with translucent masks, their outlines, and a legend below.

        Args:
            opacity: of the masks, in ``[0, 1]``.

        Returns:
            An RGB Pillow image, which notebooks display and ``.save("overlay.png")`` writes.

        Raises:
            SettingsError: the opacity is out of range.
        """
        if not 0 <= opacity <= 1:
            raise SettingsError(f"opacity is {opacity}; use a number from 0 to 1")
        return draw_overlay(self.image, replace(self.segmentation, label_map=self.label_map), opacity)

    def __repr__(self) -> str:
        height, width = self.size
        found = ", ".join(f"{share.name} {share.share:.1%}" for share in self.shares() if share.regions)
        return f"Result({self.file_name!r}, {width} x {height} pixels: {found or 'nothing found'})"

    def _repr_png_(self) -> bytes:
        encoded = io.BytesIO()
        thumbnail(np.asarray(self.plot()), _NOTEBOOK_SIDE).save(encoded, "PNG")
        return encoded.getvalue()

    def _repr_html_(self) -> str:
        height, width = self.size
        return render_result(self.file_name, (width, height), self._repr_png_(), self.shares(), self.vocabulary)


def save_coco(
    results: Result | Iterable[Result],
    path: str | os.PathLike[str],
    *,
    geometry: Geometry = "polygon",
    tolerance: str | float = "default",
    overwrite: bool = False,
) -> None:
    """Write several results to one COCO file.

    Args:
        results: results with the same vocabulary, model and settings, such as those of one call of `tcl_core.segment`.
        path: the file.
        geometry: ``"polygon"``, ``"keyhole"``, or ``"rle"``, which is pixel-exact.
        tolerance: of the polygons; see `Result.regions`.
        overwrite: replace an existing file.

    Raises:
        ExportError: there is no result, or the results have different vocabularies or settings.
        CocoError: the file exists and ``overwrite`` is not set, two images have the same name, or the file cannot be
            written.
    """
    found = [results] if isinstance(results, Result) else list(results)
    if not found:
        raise ExportError(f"{path}: there are no results to write; segment at least one image")
    first = found[0]
    for other in found[1:]:
        if other.vocabulary != first.vocabulary or other.settings != first.settings:
            raise ExportError(
                f"{path}: {other.file_name} was segmented with other labels or settings than {first.file_name}; a COCO "
                "file has one list of categories, so write one file for each"
            )
    kept = None if geometry == "rle" else tolerance
    images = (
        ImageResult(result.file_name, *result.size, regions_to_annotations(result.regions(kept), result.size, geometry))
        for result in found
    )
    write_coco_file(Path(path), images, first.vocabulary, first.settings, overwrite=overwrite)
