"""Regions and polygons for the COCO tests, made without the package's own region and polygon code."""

from __future__ import annotations

import numpy as np
import shapely
from pycocotools import mask as coco_mask
from scipy import ndimage

from tcl_core.types import Region


def pixel_union(mask: np.ndarray) -> shapely.Geometry:
    rows, columns = np.nonzero(mask)
    return shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))


def polygons_of(mask: np.ndarray) -> list[shapely.Polygon]:
    return list(shapely.get_parts(pixel_union(mask)))


def regions_of(label_map: np.ndarray, *, polygons: bool = True, scores: np.random.Generator | None = None) -> list:
    regions = []
    for label_id in range(1, int(label_map.max()) + 1):
        pieces, count = ndimage.label(label_map == label_id)
        for piece in range(1, count + 1):
            mask = pieces == piece
            ys, xs = np.nonzero(mask)
            x, y, w, h = int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
            regions.append(
                Region(
                    label_id=label_id,
                    label=f"label {label_id}",
                    score=0.5 if scores is None else float(scores.random()),
                    area=int(mask.sum()),
                    bbox=(x, y, w, h),
                    mask=mask[y : y + h, x : x + w],
                    polygon=pixel_union(mask) if polygons else None,
                )
            )
    return regions


def drawn(segmentation: dict | list, size: tuple[int, int]) -> np.ndarray:
    """The mask as ``COCO.annToMask`` makes it."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
    else:
        rle = segmentation
    return coco_mask.decode(rle).astype(bool)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def blobs(seed: int, size: tuple[int, int] = (48, 64), labels: int = 4) -> np.ndarray:
    """A label map of smooth blobs with holes and islands, a quarter of it background."""
    generator = np.random.default_rng(seed)
    planes = ndimage.gaussian_filter(generator.normal(size=(labels + 1, *size)), (0, 2.0, 2.0))
    return planes.argmax(axis=0).astype(np.int32)
