"""Scenes as files: images, a vocabulary and, if wanted, the exact ground truth as COCO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from tcl_core.export.coco import ImageResult, coco_file_name, regions_to_annotations, write_coco_file
from tcl_core.playground.scenes import CLASS_NAMES, Scene, draw_scene, scene_rng
from tcl_core.playground.world import SYNONYMS
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["sample_scene", "world_vocabulary", "write_scenes"]

_SAMPLE_STREAM = 1


def sample_scene(seed: int, index: int, size: tuple[int, int]) -> Scene:
    """A scene for looking at; objects grow with the image as a camera would see them.

    Args:
        seed: same seed, same scenes.
        index: number of the scene, from 0.
        size: height and width in pixels.
    """
    rng = scene_rng(seed, index, _SAMPLE_STREAM)
    return draw_scene(rng, size, (3, 6), (16, 32), combinations="all", zoom=min(size) / 128)


def world_vocabulary(names: tuple[str, ...] = CLASS_NAMES) -> Vocabulary:
    """Labels for classes of the world, each with its name and its other words as prompts, without background."""
    labels = tuple(Label(name, (name, *SYNONYMS.get(name, ()))) for name in names)
    return Vocabulary(labels, background=False)


def write_scenes(
    folder: Path, count: int, seed: int, size: tuple[int, int], *, ground_truth: bool = False
) -> list[Path]:
    """Write ``scene-0001.png`` and so on, and ``labels.yaml`` with what occurs in them.

    Args:
        folder: made if it is missing.
        count: number of scenes.
        seed: same seed, same scenes.
        size: height and width in pixels.
        ground_truth: also write ``ground_truth.json``, the exact masks as COCO run lengths.

    Returns:
        The images' paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scene-{index:04d}.png" for index in range(1, count + 1)]
    found: set[int] = set()
    for index, path in enumerate(paths):
        scene = sample_scene(seed, index, size)
        Image.fromarray(scene.image).save(path)
        found.update(np.unique(scene.label_map).tolist())
    present = np.array(sorted(found))
    vocabulary = world_vocabulary(tuple(CLASS_NAMES[value - 1] for value in present if value))
    entries = [{"name": label.name, "prompts": list(label.prompts)} for label in vocabulary.labels]
    text = yaml.safe_dump({"background": False, "labels": entries}, sort_keys=False)
    (folder / "labels.yaml").write_text(text, encoding="utf-8")
    if ground_truth:
        ids = np.zeros(len(CLASS_NAMES) + 1, np.int32)
        ids[present[present > 0]] = np.arange(1, len(vocabulary.labels) + 1)

        def result(index: int) -> ImageResult:
            # Drawn once more instead of kept: memory must not grow with the number of scenes.
            label_map = ids[sample_scene(seed, index, size).label_map]
            segmentation = Segmentation(label_map, (label_map > 0).astype(np.float32), vocabulary)
            annotations = regions_to_annotations(label_map_to_regions(segmentation), size, geometry="rle")
            return ImageResult(coco_file_name(paths[index].name), *size, annotations)

        results = map(result, range(count))
        write_coco_file(
            folder / "ground_truth.json", results, vocabulary, {"source": "playground", "seed": seed}, overwrite=True
        )
    return paths
