"""YOLO's segmentation format: one text file an image, one line an instance, coordinates as shares of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from tcl_core.export.base import ImageRegions, register_exporter
from tcl_core.export.coco.annotations import regions_to_annotations
from tcl_core.export.folder import FolderExporter
from tcl_core.vocabulary import Vocabulary

__all__ = ["YoloSegExporter", "joined_ring", "yolo_lines"]

_DIGITS = 7


@register_exporter("yolo-seg")
class YoloSegExporter(FolderExporter):
    """A folder with ``data.yaml`` and ``labels/NAME.txt`` for each image; the images belong into ``images/``.

    A line is one instance and one polygon, so the simple rings that COCO gets of a region are joined to one: see
    `joined_ring`.
    """

    files = "labels"
    ending = ".txt"

    def settings(self) -> dict[str, Any]:
        """Nothing besides the regions."""
        return {}

    def describe(self, vocabulary: Vocabulary) -> Mapping[str, str]:
        """``data.yaml``, which a trainer is given."""
        data = {"train": "images", "val": "images", "names": dict(enumerate(vocabulary.names))}
        return {"data.yaml": yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}

    def prepare(self, image: ImageRegions) -> list[str]:
        """The lines of an image."""
        size = (image.height, image.width)
        return yolo_lines(regions_to_annotations(image.regions, size, "polygon"), size)

    def add(self, image: ImageRegions) -> None:
        """Write an image; see `tcl_core.export.base.Exporter.add`."""
        self.add_again(image.file_name, image.height, image.width, self.prepare(image))

    def add_again(self, file_name: str, height: int, width: int, content: Any) -> None:
        """Write the lines of `prepare`."""
        self.write(file_name, "".join(f"{line}\n" for line in content).encode("ascii"))


def yolo_lines(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[str]:
    """Lines of annotations.

    Args:
        annotations: with ``category_id`` from 1 and a ``segmentation`` of rings.
        size: ``(height, width)`` of the image.

    Returns:
        ``class x y x y ...`` each, classes from 0, x and y in ``[0, 1]`` with seven digits, which tell hundredths of a
        pixel apart in any image up to 65,535 pixels wide.

    Example:
        >>> yolo_lines([{"category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]]}], (8, 16))
        ['1 0 0 0.25 0 0.25 0.5']
    """
    height, width = size
    lines = []
    for annotation in annotations:
        ring = joined_ring([np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in annotation["segmentation"]])
        shares = np.clip(ring / (width, height), 0, 1).ravel().tolist()
        lines.append(" ".join([str(annotation["category_id"] - 1), *(f"{share:.{_DIGITS}g}" for share in shares)]))
    return lines


def joined_ring(rings: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One ring through all rings: from the nearest vertices there and back.

    Rings that meet in a vertex, as pieces of a region that was cut at a hole do, are joined there, so that filling by
    parity gives the region and leaves the hole.

    Args:
        rings: float64 ``[n, 2]`` each, the first vertex not repeated at the end.

    Returns:
        float64 ``[m, 2]``.

    Example:
        >>> joined_ring([np.array([[0, 0], [1, 0], [1, 1]]), np.array([[3, 0], [2, 0], [3, 1]])]).tolist()
        [[0, 0], [1, 0], [2, 0], [3, 1], [3, 0], [2, 0], [1, 0], [1, 1]]
    """
    whole, rest = np.asarray(rings[0]), [np.asarray(ring) for ring in rings[1:]]
    while rest:
        tree = cKDTree(whole)
        found = [tree.query(ring) for ring in rest]
        nearest = min(range(len(rest)), key=lambda place: (found[place][0].min(), place))
        ring, at = rest.pop(nearest), int(found[nearest][0].argmin())
        here = int(found[nearest][1][at])
        whole = np.concatenate([whole[: here + 1], np.roll(ring, -at, axis=0), ring[at : at + 1], whole[here:]])
    return whole
