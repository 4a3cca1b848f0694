"""From polygons back to pixels: masks by pycocotools, and the partition that a coverage makes of an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from tcl_core.polygons.arcs import EdgeGraph
from tcl_core.polygons.simplify import FittedArcs
from tcl_core.types import Region

__all__ = ["is_far_outside", "mask_iou", "partition_of_arcs", "polygon_iou", "polygon_to_mask"]


def polygon_to_mask(
    polygon: shapely.Polygon, size: tuple[int, int], *, origin: tuple[float, float] = (0, 0)
) -> NDArray[np.bool_]:
    """Rasterize a polygon with pycocotools, holes left out.

    Every ring is rasterized by itself and the rings are combined by the even-odd rule, so a hole is really
    open; the polygon list of a COCO file would fill it.

    Args:
        polygon: in pixel-edge coordinates (pixel ``(r, c)`` covers ``[c, c+1] x [r, r+1]``).
        size: height and width of the mask in pixels.
        origin: ``(x, y)`` of the mask's top left corner.

    Returns:
        bool ``[H, W]``.

    Examples:
        >>> polygon_to_mask(shapely.box(1, 0, 3, 2), (2, 4)).astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    height, width = size
    if polygon.is_empty or height == 0 or width == 0:
        return np.zeros(size, dtype=bool)
    rings = [polygon.exterior, *polygon.interiors]
    flat = [(shapely.get_coordinates(ring)[:-1] - origin).ravel().tolist() for ring in rings]
    drawn = coco_mask.decode(coco_mask.frPyObjects(flat, height, width))
    return np.asarray(drawn.sum(axis=2) % 2 == 1)


def is_far_outside(ring: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether a ring leaves its image so far that pycocotools, which walks along outlines, may run out of memory.

    Args:
        ring: x, y, x, y, ... in pixels, finite.
        size: height and width of the image.

    Example:
        >>> is_far_outside([0, 0, 9, 0, 9, 9], (4, 4)), is_far_outside([0, 0, 1e30, 0, 9, 9], (4, 4))
        (False, True)
    """
    return min(ring) < -size[1] - size[0] or max(ring) > 2 * (size[0] + size[1])


def mask_iou(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of one shape; 1.0 where both are empty.

    Examples:
        >>> mask_iou(np.array([True, True, False]), np.array([True, False, False]))
        0.5
    """
    union = int(np.count_nonzero(one | two))
    return 1.0 if union == 0 else int(np.count_nonzero(one & two)) / union


def polygon_iou(region: Region) -> float:
    """IoU of a region's polygon, rasterized by pycocotools, to its mask.

    Args:
        region: with a polygon.

    Returns:
        In ``[0, 1]``.

    Raises:
        ValueError: the region has no polygon.
    """
    if region.polygon is None:
        raise ValueError("this region has no polygon")
    x, y, width, height = region.bbox
    min_x, min_y, max_x, max_y = region.polygon.bounds
    # The polygon may reach a little beyond the mask's box: compare on a frame that holds both.
    left, top = min(x, int(min_x)), min(y, int(min_y))
    right, bottom = max(x + width, int(np.ceil(max_x))), max(y + height, int(np.ceil(max_y)))
    mask = np.zeros((bottom - top, right - left), dtype=bool)
    mask[y - top : y - top + height, x - left : x - left + width] = region.mask
    return mask_iou(polygon_to_mask(region.polygon, mask.shape, origin=(left, top)), mask)


def partition_of_arcs(graph: EdgeGraph, arcs: FittedArcs) -> NDArray[np.int64]:
    """Which face holds the center of each pixel, for all faces at once.

    One sweep over every arc gives the crossings with the rows of pixel centers; a pixel belongs to the face on
    the right of the last crossing before it. The result is only meaningful where no two arcs cross.

    Args:
        graph: the faces on both sides of each arc.
        arcs: the graph's arcs, simplified; the frame's arcs must lie on the frame.

    Returns:
        int64 ``[H, W]``, face numbers.
    """
    height, width = graph.size
    arc = np.repeat(np.arange(len(graph.left)), np.diff(arcs.starts))
    inside = arc[1:] == arc[:-1]
    start, end, arc = arcs.points[:-1][inside], arcs.points[1:][inside], arc[:-1][inside]
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first_row = np.maximum(np.ceil(low - 0.5).astype(np.int64), 0)
    last_row = np.minimum(np.ceil(high - 0.5).astype(np.int64), height)  # half-open: low <= center < high
    count = np.maximum(last_row - first_row, 0)
    which = np.repeat(np.arange(len(count)), count)
    row = first_row[which] + np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    share = (row + 0.5 - start[which, 1]) / (end[which, 1] - start[which, 1])
    x = start[which, 0] + share * (end[which, 0] - start[which, 0])
    # Walking south, the left hand points east.
    southward = end[which, 1] > start[which, 1]
    face = np.where(southward, graph.left[arc[which]], graph.right[arc[which]])
    column = np.ceil(x - 0.5).astype(np.int64).clip(0, width)
    order = np.lexsort((x, row))
    position = (row * (width + 1) + column)[order]
    crossed = np.zeros(height * (width + 1), dtype=np.int64)
    crossed[position] = np.arange(1, len(position) + 1)  # of crossings at one pixel the last assignment stays
    latest = np.maximum.accumulate(crossed)
    filled = np.append(0, face[order])[latest]
    return np.asarray(filled.reshape(height, width + 1)[:, :width])
