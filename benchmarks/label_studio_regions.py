"""What annotators get to correct in Label Studio: regions and vertices on playground scenes, before and after.

Run ``python -m benchmarks.label_studio_regions``. *Before* are the former defaults: polygons, and brush masks for what
has a hole, regions from a quarter of a patch on, and exact outlines wherever a simplified polygon shared less than 98 %
with its mask. *After* is what ``tcl-annotate label-studio setup`` and ``serve`` give today.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import shapely

from labelstudio_backend.config_writer import labeling_config_xml
from labelstudio_backend.labeled_shapes import join_labels
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.predictor import SPECKS_OF_A_REGION, Prediction, Predictor
from labelstudio_backend.requests import Plan
from labelstudio_backend.shapes import mask_of_value
from tcl_core.export.coco.geometry import has_hole, pixel_outline
from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.images import load_image
from tcl_core.playground.export import sample_scene, write_scenes
from tcl_core.playground.scenes import CLASS_NAMES
from tcl_core.polygons.rasterize import polygon_iou
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Vocabulary

SIZE = (240, 320)
SMALL = 150
"""Pixels of a 320 x 240 image: a square of 12 x 12."""
MIN_IOU_BEFORE = 0.98


@dataclass
class Counts:
    """What was drawn on all scenes together."""

    scenes: int = 0
    areas: list[int] = field(default_factory=list)
    vertices: list[int] = field(default_factory=list)
    brushes: int = 0

    def line(self, name: str) -> str:
        """A row of the table."""
        areas, vertices = np.array(self.areas), np.array(self.vertices)
        return (
            f"| {name} | {len(areas) / self.scenes:.1f} | {vertices.mean():.0f} | {np.median(vertices):.0f} "
            f"| {vertices.max()} | {(areas < SMALL).mean():.0%} | {self.brushes} |"
        )


def add_before(counts: Counts, segmentation: Segmentation, min_area: int) -> None:
    """Regions as they were drawn formerly."""
    for region in label_map_to_regions(segmentation, min_area=min_area, small="merge", tolerance="easy-to-edit"):
        counts.areas.append(region.area)
        if has_hole(region.mask):
            counts.brushes += 1
        else:
            counts.vertices.append(len(keyhole_ring(_outline_before(region))))


def add_after(counts: Counts, found: Prediction) -> None:
    """Regions as they are drawn now."""
    for result in join_labels(found.results):
        counts.vertices.append(len(result["value"]["points"]))
        counts.areas.append(int(mask_of_value(result["type"], result["value"], found.size).sum()))


def print_right(segmenter: Segmenter, scenes: int, seed: int) -> None:
    """How many regions have the label that most of their pixels have in the ground truth, by size in patches."""
    found: dict[str, list[bool]] = {"a quarter of a patch to two patches": [], "two patches and more": []}
    small, large = found
    with TemporaryDirectory() as folder:
        for index, path in enumerate(write_scenes(Path(folder), scenes, seed, SIZE)):
            vocabulary = Vocabulary.from_file(Path(folder) / "labels.yaml")
            segmentation = segmenter.segment(segmenter.encode(load_image(path)), vocabulary)
            truth = np.array(["", *CLASS_NAMES])[sample_scene(seed, index, SIZE).label_map]
            least = segmenter.speck_area(SIZE)
            for region in label_map_to_regions(segmentation, min_area=least, small="merge", tolerance=None):
                x, y, width, height = region.bbox
                own = truth[y : y + height, x : x + width][region.mask]
                found[large if region.area >= SPECKS_OF_A_REGION * least else small].append(
                    (own == region.label).mean() > 0.5
                )
    for size, right in found.items():
        print(f"{size}: {len(right)} regions, {np.mean(right):.0%} right")


def _outline_before(region: Region) -> shapely.Polygon:
    if region.polygon is not None and region.polygon.is_valid and polygon_iou(region) >= MIN_IOU_BEFORE:
        return region.polygon
    (outline,) = shapely.get_parts(pixel_outline(region.mask, region.bbox[:2]))
    return outline


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--right", action="store_true", help="count how many regions are right, by their size")
    chosen = parser.parse_args()
    options = ModelOptions()
    segmenter = options.load()
    if chosen.right:
        print_right(segmenter, chosen.scenes, chosen.seed)
        return
    predictor = Predictor(segmenter, options, cache_bytes=256 << 20)
    before, after = Counts(chosen.scenes), Counts(chosen.scenes)
    with TemporaryDirectory() as folder:
        paths = write_scenes(Path(folder), chosen.scenes, chosen.seed, SIZE)
        vocabulary = Vocabulary.from_file(Path(folder) / "labels.yaml")
        config = parse_labeling_config(labeling_config_xml(vocabulary))
        for path in paths:
            add_after(after, predictor.predict(path.read_bytes(), Plan(config)))
            segmentation = segmenter.segment(segmenter.encode(load_image(path)), vocabulary)
            add_before(before, segmentation, segmenter.speck_area(segmentation.size))
    print("| | regions per image | vertices per polygon | median | most | under 150 px | brush masks |")
    print("|---|---|---|---|---|---|---|")
    print(before.line("before"))
    print(after.line("after"))


if __name__ == "__main__":
    main()
