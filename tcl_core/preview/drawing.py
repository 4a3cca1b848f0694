"""Drawing regions over images: as SVG paths for the preview page, and as pixels for a single overlay."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tcl_core.preview.markup import render_regions
from tcl_core.types import Region, Segmentation, Unlabeled
from tcl_core.vocabulary.colors import Color

__all__ = ["draw_overlay", "draw_unlabeled", "muted_color", "regions_to_svg", "sample_unlabeled", "thumbnail"]

_MAX_REGIONS = 500
_MASK_OPACITY = 0.45
_REDUCED_PIXELS = 32_000_000
"""Larger images are made smaller by a whole factor first ..."""
_SPARE = 4
"""... to so many times the thumbnail's sides."""
_ROWS = 64
_UNSEEN = 0.4
"""Units of the drawing below which a detail of an outline is not worth its points."""
_MAX_VERTICES = 5_000
"""Vertices of one image up to which all are drawn, so that they can be looked at."""


def thumbnail(image: NDArray[np.uint8], max_side: int = 800) -> Image.Image:
    """A copy of ``image`` (uint8 ``[H, W, 3]``) whose longer side is at most ``max_side`` pixels; never enlarged."""
    scale = max_side / max(image.shape[:2])
    if scale >= 1:
        return Image.fromarray(image)
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    factor = int(1 / (_SPARE * scale)) if image.shape[0] * image.shape[1] > _REDUCED_PIXELS else 1
    drawing = Image.fromarray(image) if factor < 2 else _reduced(image, factor)
    return drawing.resize((width, height), Image.Resampling.BOX if scale < 0.25 else Image.Resampling.LANCZOS)


def _reduced(image: NDArray[np.uint8], factor: int) -> Image.Image:
    """A copy smaller by a whole factor, made a few rows at a time: Pillow's copy is larger than the image itself."""
    height, width = (-(-side // factor) for side in image.shape[:2])
    small = Image.new("RGB", (width, height))
    rows = _ROWS * factor
    for top in range(0, image.shape[0], rows):
        small.paste(Image.fromarray(image[top : top + rows]).reduce(factor), (0, top // factor))
    return small


def regions_to_svg(regions: Sequence[Region], scale: float = 1.0, max_regions: int = _MAX_REGIONS) -> str:
    """SVG ``<path>`` elements of the regions' polygons, the largest first so that small ones stay reachable.

    Each path has the classes ``r`` and ``l<label id>`` and a ``<title>`` with label, score and area; holes need
    ``fill-rule: evenodd``. The attributes ``data-score``, ``data-area``, ``data-box`` (x y width height) and
    ``data-vertices`` say in pixels of the image what a table needs. Where an image has thousands of vertices, outlines
    that are drawn smaller than they are lose details too small to be seen.

    Args:
        regions: regions with polygons; those without one are drawn as their box.
        scale: factor from pixels of the image to units of the drawing.
        max_regions: only this many of the largest are drawn.

    Returns:
        Markup in which every text is escaped.
    """
    largest = sorted(regions, key=lambda region: -region.area)[:max_regions]
    vertices = [_vertex_count(region) for region in largest]
    whole = scale >= 1 or sum(vertices) <= _MAX_VERTICES
    return render_regions(
        [(region, _path_data(region, scale, whole), count) for region, count in zip(largest, vertices, strict=True)]
    )


def draw_overlay(image: NDArray[np.uint8], segmentation: Segmentation, opacity: float = _MASK_OPACITY) -> Image.Image:
    """The image under translucent masks with outlines, and a legend below.

    Args:
        image: uint8 ``[H, W, 3]``.
        segmentation: of the same height and width.
        opacity: of the masks, in ``[0, 1]``.

    Returns:
        An RGB image as wide as ``image`` (at least 160 pixels) and a legend higher.

    Examples:
        >>> from tcl_core.vocabulary import Vocabulary
        >>> image, label_map = np.zeros((40, 200, 3), np.uint8), np.ones((40, 200), np.int32)
        >>> found = Segmentation(label_map, label_map.astype(np.float32), Vocabulary.from_options(["Sofa"]))
        >>> draw_overlay(image, found).width
        200
    """
    colors = np.array([(0, 0, 0), *segmentation.vocabulary.colors], dtype=np.float32)
    label_map = segmentation.label_map
    canvas = image.astype(np.float32)
    labeled = label_map > 0
    tint = colors[label_map[labeled]]
    canvas[labeled] = (1 - opacity) * canvas[labeled] + opacity * tint
    edge = _inner_edge(label_map) & labeled
    canvas[edge] = colors[label_map[edge]]
    overlay = Image.fromarray(canvas.round().astype(np.uint8))
    present = [label_id for label_id in np.unique(label_map).tolist() if label_id > 0]
    return _with_legend(overlay, [(segmentation.vocabulary.names[k - 1], colors[k]) for k in present])


def draw_unlabeled(unlabeled: Unlabeled, colors: Mapping[str, Color], size: tuple[int, int]) -> Image.Image:
    """The pixels of background names in flat colors, to be laid over a thumbnail.

    Args:
        unlabeled: what won where in the full-size image.
        colors: of all its names.
        size: width and height of the thumbnail.

    Returns:
        An RGBA image of ``size``: opaque where a name won, transparent elsewhere.

    Examples:
        >>> halves = Unlabeled(("sky",), np.array([[1, 0]], np.int32))
        >>> [pixel[3] for pixel in draw_unlabeled(halves, {"sky": (90, 120, 140)}, (2, 1)).getdata()]
        [255, 0]
    """
    palette = np.array([(0, 0, 0, 0), *((*colors[name], 255) for name in unlabeled.names)], dtype=np.uint8)
    return Image.fromarray(palette[sample_unlabeled(unlabeled, size)])


def sample_unlabeled(unlabeled: Unlabeled, size: tuple[int, int]) -> NDArray[np.integer]:
    """The winners at the centers of a thumbnail's pixels; a mean of two colors would look like a third name.

    Args:
        unlabeled: what won where in the full-size image.
        size: width and height of the thumbnail.

    Returns:
        Unsigned integers ``[height, width]``.
    """
    width, height = size
    rows, columns = (
        (2 * np.arange(small) + 1) * side // (2 * small)
        for small, side in zip((height, width), unlabeled.winner.shape, strict=True)
    )
    return unlabeled.winner[np.ix_(rows, columns)]


def muted_color(number: int) -> Color:
    """The ``number``-th color, counted from 0, of a sequence duller than the default colors of labels.

    Examples:
        >>> len({muted_color(number) for number in range(100)})
        100
    """
    hue = (0.09 + number * 0.6180339887498949) % 1.0
    saturation = (0.34, 0.46, 0.26)[number % 3]
    value = (0.86, 0.60, 0.74)[(number // 2) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _inner_edge(label_map: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels with a 4-neighbor of another label."""
    edge = np.zeros(label_map.shape, dtype=bool)
    across = label_map[:, 1:] != label_map[:, :-1]
    down = label_map[1:] != label_map[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _with_legend(image: Image.Image, entries: list[tuple[str, NDArray[np.float32]]]) -> Image.Image:
    if not entries:
        return image
    size = max(12, min(28, image.width // 40))
    font = ImageFont.load_default(size)
    pad = size // 2
    width = max(image.width, 160)
    places: list[tuple[int, int]] = []
    x, row = pad, 0
    for name, _ in entries:
        needed = size + pad + int(font.getlength(name)) + 2 * pad
        if x + needed > width and x > pad:
            x, row = pad, row + 1
        places.append((x, row))
        x += needed
    line = size + pad
    result = Image.new("RGB", (width, image.height + (row + 1) * line + pad), (255, 255, 255))
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    for (name, color), (left, at_row) in zip(entries, places, strict=True):
        top = image.height + pad + at_row * line
        draw.rectangle((left, top, left + size, top + size - 2), fill=tuple(int(c) for c in color))
        draw.text((left + size + pad, top + size // 2), name, fill=(20, 24, 28), font=font, anchor="lm")
    return result


def _vertex_count(region: Region) -> int:
    if region.polygon is None:
        return 4
    return sum(len(ring.coords) - 1 for ring in (region.polygon.exterior, *region.polygon.interiors))


def _path_data(region: Region, scale: float, whole: bool) -> str:
    if region.polygon is None:
        x, y, width, height = region.bbox
        box = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], dtype=np.float64)
        return _ring_data(box * scale)
    # What is drawn smaller needs no detail that could not be seen; this bounds what one image can cost.
    polygon = region.polygon if whole else region.polygon.simplify(_UNSEEN / scale)
    rings = [polygon.exterior, *polygon.interiors]
    return "".join(_ring_data(np.asarray(ring.coords, dtype=np.float64)[:-1, :2] * scale) for ring in rings)


def _ring_data(points: NDArray[np.float64]) -> str:
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points.tolist()) + "Z"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
