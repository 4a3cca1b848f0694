"""How good the polygons are: IoU to the mask, vertices, gaps and overlaps over a few hundred label maps.

The comparison is Douglas-Peucker (``skimage.measure.approximate_polygon``) on the contours of each region alone:
for every region the tolerance is searched, on the sub-pixel contour of ``find_contours`` and on the pixel-edge
outline, that needs the fewest vertices for at least the IoU our polygon has; the smaller of the two counts. A
shared border
counts for every polygon that carries it, for it is there that an annotator meets its vertices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from scipy import ndimage
from skimage.measure import approximate_polygon, find_contours
from tqdm import tqdm

from tcl_core.benchmarks.label_maps import label_maps
from tcl_core.polygons import simplify_coverage, tolerance_in_pixels
from tcl_core.polygons.arcs import faces_of
from tcl_core.polygons.rasterize import mask_iou, polygon_to_mask

__all__ = ["KindFigures", "PolygonFigures", "fewest_vertices", "format_table", "image", "run"]

SMALLEST_REGION = 64
MEAN_IOU, LOWEST_IOU, LARGEST_RATIO = 0.98, 0.95, 0.5
_TOLERANCES = (0.0, 0.25, 0.5, 0.6, *(0.71 * 1.15 ** np.arange(20)))
_EQUAL = 1e-9
# A little off the pixel center, where no vertex or line of ours lies, so that a sample is never on a border.
_SAMPLE = (0.5 + 0.0012345, 0.5 - 0.0023456)


@dataclass
class KindFigures:
    """What was measured on the label maps of one kind; regions are those of 64 pixels or more.

    Attributes:
        maps: how many label maps.
        ious: IoU of polygon and mask by pycocotools, one per region.
        vertices: vertices of the polygons.
        contour_vertices: vertices of the best Douglas-Peucker on ``find_contours``.
        outline_vertices: the same on the pixel-edge outline.
        best_vertices: the smaller of the two for each region on its own, summed.
        invalid: maps whose coverage GEOS finds fault with, or with an invalid polygon.
        faulty_pixels: pixels not covered exactly once.
        full_ious: IoU at tolerance 0 of hole-free regions of any size.
    """

    maps: int = 0
    ious: list[float] = field(default_factory=list)
    vertices: int = 0
    contour_vertices: int = 0
    outline_vertices: int = 0
    best_vertices: int = 0
    invalid: int = 0
    faulty_pixels: int = 0
    full_ious: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Our vertices per vertex of the comparison that needs fewer; 0 where there is no region."""
        others = min(self.contour_vertices, self.outline_vertices)
        return self.vertices / others if others else 0.0

    def add(self, other: KindFigures) -> None:
        """Add the figures of other maps to these."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class PolygonFigures:
    """Result of :func:`run`: figures by kind of label map, and whether they meet the targets."""

    tolerance: float
    kinds: dict[str, KindFigures]

    @property
    def total(self) -> KindFigures:
        """All kinds together."""
        total = KindFigures()
        for figures in self.kinds.values():
            total.add(figures)
        return total

    def targets(self) -> list[tuple[str, float, bool]]:
        """Every target: what it says, the measured figure, whether it is met.

        The IoU and vertex targets are for the default tolerance; they are listed at any.
        """
        total = self.total
        mean, lowest = float(np.mean(total.ious or [1.0])), min(total.ious, default=1.0)
        full = min(total.full_ious, default=1.0)
        return [
            (f"mean IoU at least {MEAN_IOU}", mean, mean >= MEAN_IOU),
            (f"lowest IoU at least {LOWEST_IOU}", lowest, lowest >= LOWEST_IOU),
            (f"vertices per contour vertex at most {LARGEST_RATIO}", total.ratio, total.ratio <= LARGEST_RATIO),
            ("maps with an invalid coverage 0", total.invalid, total.invalid == 0),
            ("pixels in a gap or an overlap 0", total.faulty_pixels, total.faulty_pixels == 0),
            ("lowest IoU at tolerance 0, no holes, 1", full, full == 1.0),
        ]

    @property
    def passed(self) -> bool:
        """Whether every target is met."""
        return all(met for _, _, met in self.targets())

    @property
    def exit_code(self) -> int:
        """0 if every target is met, else 1."""
        return 0 if self.passed else 1


def run(count: int = 200, seed: int = 0, tolerance: str | float = "default", progress: bool = True) -> PolygonFigures:
    """Measure polygons on label maps drawn from a seed.

    Args:
        count: label maps, the kinds of :data:`tcl_core.benchmarks.label_maps.KINDS` in turn.
        seed: of the maps.
        tolerance: see :func:`tcl_core.polygons.tolerance_in_pixels`.
        progress: show a progress bar.

    Returns:
        The figures.

    Raises:
        SettingsError: an unknown tolerance.
    """
    pixels = tolerance_in_pixels(tolerance)
    result = PolygonFigures(pixels, {})
    for kind, label_map in tqdm(label_maps(count, seed), total=count, unit="map", disable=not progress):
        result.kinds.setdefault(kind, KindFigures()).add(_measure(label_map, pixels))
    return result


def format_table(figures: PolygonFigures) -> str:
    """Lay the figures out as text: one line per kind, then every target with its verdict."""
    head = f"{'kind':12} {'maps':>5} {'regions':>8} {'mean IoU':>9} {'lowest':>7} {'vertices':>9} "
    lines = [head + f"{'contours':>9} {'outlines':>9} {'better':>8} {'ratio':>6}"]
    for name, kind in [*figures.kinds.items(), ("all", figures.total)]:
        mean, lowest = np.mean(kind.ious or [1.0]), min(kind.ious, default=1.0)
        lines.append(
            f"{name:12} {kind.maps:5} {len(kind.ious):8} {mean:9.4f} {lowest:7.4f} {kind.vertices:9} "
            f"{kind.contour_vertices:9} {kind.outline_vertices:9} {kind.best_vertices:8} {kind.ratio:6.3f}"
        )
    lines.append("")
    lines += [f"{'met   ' if met else 'MISSED'} {text}: {value:.4g}" for text, value, met in figures.targets()]
    return "\n".join(lines)


def fewest_vertices(contours: list[NDArray[np.float64]], mask: NDArray[np.bool_], iou: float) -> int:
    """Vertices that ``skimage.measure.approximate_polygon`` needs on a region's contours for a given IoU.

    A ladder of tolerances (one for all contours of the region) is climbed with GEOS's Douglas-Peucker, which is fast
    and keeps nearly the same points; scikit-image's own then decides around the best rung. A hole or an island is
    kept as our polygon keeps it: where a tolerance would leave fewer than three points of a contour, the contour
    stays as it was one rung lower.

    Args:
        contours: closed contours ``[N, 2]`` (``x, y``, first point repeated), holes among them.
        mask: bool ``[H, W]``.
        iou: to be reached by the even-odd fill of the simplified contours, by pycocotools.

    Returns:
        The smallest number on the ladder that reaches the IoU.
    """
    lines = [shapely.LineString(contour) for contour in contours]
    rings = [contour[:-1] for contour in contours]
    rungs, best, missed = [], 0, 0
    for rung, tolerance in enumerate(_TOLERANCES):
        simpler = [shapely.get_coordinates(s)[:-1] for s in shapely.simplify(lines, tolerance, preserve_topology=False)]
        rings = [new if len(new) >= 3 else old for new, old in zip(simpler, rings, strict=True)]
        rungs.append(rings)
        if mask_iou(_fill(rings, mask.shape), mask) >= iou - _EQUAL:
            best, missed = rung, 0
        else:
            missed += 1
        if missed == 3:  # IoU is not strictly monotone in the tolerance, but nearly
            break
    fewest = None
    for rung in [*range(min(best + 2, len(rungs) - 1), -1, -1)]:
        simpler = [approximate_polygon(contour, _TOLERANCES[rung])[:-1] for contour in contours]
        rings = [new if len(new) >= 3 else old for new, old in zip(simpler, rungs[rung], strict=True)]
        if mask_iou(_fill(rings, mask.shape), mask) >= iou - _EQUAL:
            count = sum(map(len, rings))
            fewest = count if fewest is None else min(fewest, count)
        if rung < best and fewest is not None:
            break
    return sum(len(contour) - 1 for contour in contours) if fewest is None else fewest


def image(
    path: str | Path, count: int = 6, seed: int = 0, tolerance: str | float = "default", *, scale: int = 5
) -> None:
    """Draw label maps with their polygons, so that one can see what the figures mean.

    Args:
        path: PNG file to write.
        count: label maps, one under the other.
        seed: of the maps.
        tolerance: see :func:`tcl_core.polygons.tolerance_in_pixels`.
        scale: image pixels per label-map pixel; the part drawn is at most 128 x 192 pixels.

    Raises:
        SettingsError: an unknown tolerance.
    """
    panels = []
    colors = np.random.default_rng(1).integers(120, 256, (64, 3)).astype(np.uint8)
    colors[0] = 40
    for _, full_map in label_maps(count, seed):
        label_map = full_map[:128, :192]
        faces = faces_of(label_map)
        label_of = np.zeros(int(faces.max()) + 1, dtype=np.int64)
        label_of[faces] = label_map
        polygons = simplify_coverage(faces, tolerance, wanted=label_of[1:] > 0)
        panel = Image.fromarray(colors[label_map % len(colors)]).resize(
            (label_map.shape[1] * scale, label_map.shape[0] * scale), Image.Resampling.NEAREST
        )
        draw = ImageDraw.Draw(panel)
        for polygon in polygons[label_of[1:] > 0]:
            for ring in (polygon.exterior, *polygon.interiors):
                points = [(round(x * scale), round(y * scale)) for x, y in ring.coords]
                draw.line(points, fill=(0, 0, 0), width=1)
                for x, y in points[1:]:
                    draw.rectangle((x - 2, y - 2, x + 2, y + 2), fill=(220, 0, 0))
        panels.append(panel)
    sheet = Image.new("RGB", (max(p.width for p in panels), sum(p.height + 8 for p in panels)), (255, 255, 255))
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height + 8
    sheet.save(path)


def _measure(label_map: NDArray[np.int32], pixels: float) -> KindFigures:
    faces = faces_of(label_map)
    label_of = np.zeros(int(faces.max()) + 1, dtype=np.int64)
    label_of[faces] = label_map
    area = np.bincount(faces.ravel())
    wanted = label_of[1:] > 0
    polygons = simplify_coverage(faces, pixels, wanted=wanted)
    exact = polygons if pixels == 0 else simplify_coverage(faces, "exact")
    figures = KindFigures(maps=1)
    labeled = polygons[wanted]
    sound = shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons)
    figures.invalid = int(not (sound and shapely.coverage_is_valid(labeled)))
    figures.faulty_pixels = _faulty_pixels(polygons, faces.shape)
    boxes = ndimage.find_objects(faces)
    for face in np.flatnonzero(wanted):
        rows, columns = boxes[face]
        top, left = max(rows.start - 2, 0), max(columns.start - 2, 0)
        mask = faces[top : rows.stop + 2, left : columns.stop + 2] == face + 1
        rings = [shapely.get_coordinates(ring) - (left, top) for ring in _rings_of(exact[face])]
        if len(rings) == 1:
            figures.full_ious.append(mask_iou(_fill([rings[0][:-1]], mask.shape), mask))
        if area[face + 1] < SMALLEST_REGION:
            continue
        iou = mask_iou(polygon_to_mask(polygons[face], mask.shape, origin=(left, top)), mask)
        contours = [c[:, ::-1] - 0.5 for c in find_contours(np.pad(mask, 1).astype(np.float64), 0.5)]
        by_contour, by_outline = fewest_vertices(contours, mask, iou), fewest_vertices(rings, mask, iou)
        figures.ious.append(iou)
        figures.vertices += sum(len(ring.coords) - 1 for ring in _rings_of(polygons[face]))
        figures.contour_vertices += by_contour
        figures.outline_vertices += by_outline
        figures.best_vertices += min(by_contour, by_outline)
    return figures


def _rings_of(polygon: shapely.Polygon) -> list[shapely.LinearRing]:
    return [polygon.exterior, *polygon.interiors]


def _fill(rings: list[NDArray[np.float64]], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Even-odd fill by pycocotools, bool ``[H, W]``."""
    if not rings:
        return np.zeros(size, dtype=bool)
    drawn = coco_mask.decode(coco_mask.frPyObjects([ring.ravel().tolist() for ring in rings], *size))
    return np.asarray(drawn.sum(axis=2) % 2 == 1)


def _faulty_pixels(polygons: NDArray[np.object_], size: tuple[int, ...]) -> int:
    """Pixels whose sample point is not in exactly one polygon, each polygon asked alone."""
    covered = np.zeros(size, dtype=np.int64)
    shapely.prepare(polygons)
    for polygon in polygons:
        left, top, right, bottom = polygon.bounds
        rows = np.arange(max(int(top) - 1, 0), min(int(bottom) + 2, size[0]))
        columns = np.arange(max(int(left) - 1, 0), min(int(right) + 2, size[1]))
        y, x = np.meshgrid(rows + _SAMPLE[1], columns + _SAMPLE[0], indexing="ij")
        covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += shapely.contains_xy(polygon, x, y)
    return int(np.count_nonzero(covered != 1))
