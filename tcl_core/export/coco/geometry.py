"""From a region's mask and polygon to a COCO ``segmentation`` that gives the mask back.

* ``polygon``: simple rings in pixel-edge coordinates; a region with a hole is cut into pieces without one.
* ``keyhole``: one ring for each part, its holes joined by bridges of no width.
* ``rle``: the exact mask, always.

A file has one geometry: readers that take polygons drop or refuse RLE, and simplified polygons beside exact masks would
cover pixels of their common borders twice or not at all. ``polygon`` is the one that no reader drops, see
``docs/coco-readers.md``.

A simplified polygon that no longer describes its mask (a speck that rasterizes to nothing, a cut-off spur: see
`describes`) is replaced by the mask's exact outline along the pixel edges, which rasterizes to the mask itself.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import shapely
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from scipy import ndimage
from shapely import MultiPolygon, Polygon
from shapely.geometry.polygon import orient

from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.export.coco.rle import Runs, counts_of_crop, decode_counts, encode_counts
from tcl_core.export.coco.simple_rings import cut_mask, simple_rings

__all__ = [
    "GEOMETRIES",
    "MIN_IOU",
    "Geometry",
    "describes",
    "drawn_twice",
    "has_hole",
    "pixel_outline",
    "polygon_rings",
    "rasterize_rings",
    "rings_of",
]

Geometry = Literal["polygon", "keyhole", "rle"]
GEOMETRIES: tuple[Geometry, ...] = get_args(Geometry)

MIN_IOU = 0.5
"""Below this overlap with its mask a simplified polygon is replaced by the exact outline.

No higher, because an exact outline beside simplified neighbors covers pixels of the border twice, or leaves some
out."""

_DECIMALS = 2


def has_hole(mask: NDArray[np.bool_]) -> bool:
    """Whether pixels outside a mask are shut in by it (looking through edges, not corners).

    Args:
        mask: bool ``[h, w]``.

    Example:
        >>> has_hole(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool))
        True
    """
    _, pieces = ndimage.label(~np.pad(mask, 1))
    return bool(pieces > 1)


def pixel_outline(mask: NDArray[np.bool_], origin: tuple[int, int] = (0, 0)) -> Polygon | MultiPolygon:
    """Exact outline of a mask along its pixels' edges.

    Args:
        mask: bool ``[h, w]`` with at least one pixel.
        origin: ``(x, y)`` of the mask's upper left pixel.

    Returns:
        A valid polygon with integer corners; several where pieces meet at corners only.
    """
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    x, y = origin
    union = shapely.union_all(shapely.box(starts + x, rows + y, stops + x, rows + y + 1))
    return shapely.simplify(union, 0)


def polygon_rings(
    polygon: Polygon | MultiPolygon, size: tuple[int, int], geometry: Geometry = "polygon"
) -> list[list[float]]:
    """COCO's rings of a polygon.

    Coordinates are rounded to two decimals; where that would make the polygon invalid it is snapped to the grid of
    hundredths by `shapely.set_precision`, which keeps it valid.

    Args:
        polygon: valid, in pixel-edge coordinates.
        size: ``(height, width)`` of the image.
        geometry: ``"polygon"`` cuts parts with holes into simple rings, ``"keyhole"`` joins holes by bridges.

    Returns:
        ``[[x0, y0, x1, y1, ...], ...]``, each with at least three points; whole numbers as int. Empty where nothing
        is left.
    """
    rounded = shapely.transform(polygon, lambda xy: np.round(xy, _DECIMALS))
    if not rounded.is_valid:
        rounded = shapely.set_precision(polygon, 10.0**-_DECIMALS)
    parts = [part for part in shapely.get_parts(rounded) if isinstance(part, Polygon) and part.area > 0]
    rings: list[list[float]] = []
    for part in parts:
        pieces = simple_rings(part) if geometry == "polygon" else [keyhole_ring(part)]
        if pieces is None:
            # The pixels that its bridges would draw: more vertices, but the same pixels.
            drawn = rasterize_rings([_plain_numbers(keyhole_ring(part))], size)
            rings += _outline_rings(drawn.pixels(), (0, 0))
        else:
            rings += [_plain_numbers(piece) for piece in pieces]
    return rings


def _outline_rings(mask: NDArray[np.bool_], origin: tuple[int, int]) -> list[list[float]]:
    """Simple rings along a mask's pixel edges, which meet in points alone."""
    x, y = origin
    rings = []
    for (left, top), piece, cut in cut_mask(mask):
        ring = shapely.get_coordinates(orient(pixel_outline(piece, (x + left, y + top))).exterior)[:-1]
        if cut:
            # Too little for pycocotools to see.
            ring[ring[:, 1] == y + top, 1] += 10.0**-_DECIMALS
        rings.append(_plain_numbers(np.round(ring, _DECIMALS)))
    return rings


def rasterize_rings(rings: list[list[float]], size: tuple[int, int]) -> Runs:
    """Union of rings as ``pycocotools`` draws them in an image of ``size`` (height, width).

    Args:
        rings: each at least three points, inside the image.
        size: ``(height, width)`` in pixels.
    """
    merged = coco_mask.merge(coco_mask.frPyObjects(rings, size[0], size[1]))
    return Runs(decode_counts(merged["counts"].decode("ascii")), size)


def drawn_twice(rings: list[list[float]], drawn: Runs) -> int:
    """Pixels that rings share, counted once for each ring but the first.

    Args:
        rings: each at least three points, inside the image.
        drawn: their union, from `rasterize_rings`.
    """
    if len(rings) < 2:
        return 0
    return int(coco_mask.area(coco_mask.frPyObjects(rings, *drawn.size)).sum()) - drawn.area


def describes(rings: list[list[float]], runs: Runs) -> bool:
    """Whether rings, once rasterized, stand for a mask: their overlap (IoU) is at least `MIN_IOU`.

    Args:
        rings: COCO rings.
        runs: the exact mask.
    """
    if not rings:
        return False
    pair = [encode_counts(one.counts, one.size) for one in (rasterize_rings(rings, runs.size), runs)]
    return float(coco_mask.iou(pair[:1], pair[1:], [0])[0, 0]) >= MIN_IOU


def rings_of(
    mask: NDArray[np.bool_],
    origin: tuple[int, int],
    polygon: Polygon | MultiPolygon | None,
    size: tuple[int, int],
    geometry: Geometry,
) -> list[list[float]]:
    """A region's COCO ``segmentation`` as rings.

    Args:
        mask: bool ``[h, w]``, the exact mask, cropped, at least one pixel.
        origin: ``(x, y)`` of the crop's upper left pixel.
        polygon: the region's outline in pixel-edge coordinates; ``None`` takes the mask's exact outline.
        size: ``(height, width)`` of the image.
        geometry: ``"polygon"`` or ``"keyhole"``.

    Raises:
        ValueError: the mask sticks out of the image.
    """
    rings = [] if polygon is None else polygon_rings(polygon, size, geometry)
    if describes(rings, Runs(counts_of_crop(mask, origin, size), size)):
        return rings
    if geometry == "polygon":
        return _outline_rings(mask, origin)
    return polygon_rings(pixel_outline(mask, origin), size, geometry)


def _plain_numbers(ring: NDArray[np.float64]) -> list[float]:
    return [int(value) if value.is_integer() else value for value in ring.ravel().tolist()]
