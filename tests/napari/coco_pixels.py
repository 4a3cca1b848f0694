"""COCO files read back as label maps, by pycocotools alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["label_maps_of"]


def label_maps_of(path: Path) -> dict[str, NDArray[np.int64]]:
    """The label map of each image by file name; category ids, 0 for nothing. Annotations must not overlap."""
    data = json.loads(path.read_text(encoding="utf-8"))
    maps: dict[str, NDArray[np.int64]] = {}
    for image in data["images"]:
        label_map = np.zeros((image["height"], image["width"]), np.int64)
        for annotation in data["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
                assert not label_map[mask].any(), "two annotations share a pixel"
                label_map[mask] = annotation["category_id"]
        maps[image["file_name"]] = label_map
    return maps
