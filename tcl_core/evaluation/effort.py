"""The correction effort: how many edits turn a prediction into acceptable annotations.

Afterwards, every true region must be covered by a region of its class with an IoU of at least `GOAL`, and no other
region may be left. Regions are 4-connected pieces of one class. Regions below a minimum area count on neither side,
because nobody draws them; in the prediction they join their surroundings, as in ``prelabel``.

1. Predicted regions get the polygons that the package would export. A true region that is drawn by hand takes as many
   vertices as the coarsest Douglas-Peucker polygon of its outline whose IoU with the region reaches the goal.
2. True and predicted regions of a class are paired, highest IoU first, each at most once.
3. A pair below the goal is edited. Its wrong pixels form connected pieces, missing or excess. Fixing a piece means
   moving the vertices of the predicted polygon at the piece to the vertices of the true polygon there; if one polygon
   has more vertices there, the difference is added or deleted; at least one vertex is moved. The pieces that fix the
   most pixels per vertex come first, until the goal is reached.
4. If that costs as much as deleting the region and drawing it from scratch, or more, it is drawn from scratch.
5. True regions without a partner are drawn: one step for the region and one for each vertex. Predicted regions without
   a partner are deleted.

A vertex that two neighbors share counts for each of them. Ignored pixels are in no IoU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely import Polygon

from tcl_core.evaluation.datasets.base import IGNORED
from tcl_core.polygons import simplify_apart, simplify_coverage
from tcl_core.polygons.arcs import faces_of
from tcl_core.specks import absorb_small

__all__ = ["GOAL", "Effort", "correction_effort", "drawn_polygon"]

GOAL = 0.9
"""IoU that every region must reach."""

_COARSEST, _FINER = 64.0, 0.75


@dataclass(frozen=True)
class Effort:
    """Numbers of edits; those of several images can be added.

    Attributes:
        moved: vertices to move.
        added: vertices to add, including those of new regions.
        deleted: vertices to delete.
        regions_added: regions to draw.
        regions_deleted: regions to delete.
        anew_vertices: vertices to draw everything from scratch.
        anew_regions: regions to draw everything from scratch.
    """

    moved: int = 0
    added: int = 0
    deleted: int = 0
    regions_added: int = 0
    regions_deleted: int = 0
    anew_vertices: int = 0
    anew_regions: int = 0

    @property
    def steps(self) -> int:
        """Steps to correct the prediction."""
        return self.moved + self.added + self.deleted + self.regions_added + self.regions_deleted

    @property
    def steps_anew(self) -> int:
        """Steps to draw everything from scratch."""
        return self.anew_vertices + self.anew_regions

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def to_dict(self) -> dict[str, int]:
        """The numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class _Side:
    """The regions of one label map; entry k - 1 of the lists is region k of ``numbers``."""

    numbers: NDArray[np.int64]
    classes: NDArray[np.int64]
    boxes: Sequence[tuple[slice, slice]]
    polygons: Sequence[Polygon]


def correction_effort(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], first_class: int, min_area: int = 0
) -> Effort:
    """The effort of correcting one image; the module describes the algorithm.

    Args:
        truth: integers ``[H, W]``, 0 to K - 1, or -1 where a pixel is ignored.
        prediction: integers ``[H, W]``, 0 to K - 1, or -1 where no class was predicted.
        first_class: number of the first annotated class: 1 if class 0 is the background, otherwise 0.
        min_area: regions with fewer pixels are noise.

    Example:
        >>> truth = np.zeros((20, 20), int)
        >>> truth[5:15, 5:15] = 1
        >>> correction_effort(truth, truth, 1).steps, correction_effort(truth, 0 * truth, 1).steps
        (0, 5)
    """
    counted = truth != IGNORED
    # As in label maps: 0 is no label.
    true_map = np.maximum(truth.astype(np.int32) - first_class + 1, 0)
    predicted_map = absorb_small(np.maximum(prediction.astype(np.int32) - first_class + 1, 0), min_area)
    true = _regions(true_map, counted, min_area, drawn=True)
    predicted = _regions(predicted_map, counted, 0, drawn=False)
    drawn = [_vertices(polygon) for polygon in true.polygons]
    effort = Effort(anew_vertices=sum(drawn), anew_regions=len(drawn))
    pairs = _pairs(true, predicted, counted)
    for mine, its in pairs.items():
        effort += _edit(true, mine, predicted, its, counted, drawn[mine])
    for number, vertices in enumerate(drawn):
        if number not in pairs:
            effort += Effort(added=vertices, regions_added=1)
    return effort + Effort(regions_deleted=len(predicted.polygons) - len(pairs))


def drawn_polygon(outline: Polygon) -> Polygon:
    """The coarsest Douglas-Peucker polygon whose IoU with the exact outline reaches `GOAL`."""
    distance = _COARSEST
    while distance > 0.2:
        simple = shapely.simplify(outline, distance, preserve_topology=True)
        if simple.is_valid and not simple.is_empty:
            shared = shapely.intersection(simple, outline).area
            if shared >= GOAL * (simple.area + outline.area - shared):
                return simple
        distance *= _FINER
    return outline


def _regions(label_map: NDArray[np.int32], counted: NDArray[np.bool_], least: int, drawn: bool) -> _Side:
    faces = faces_of(label_map)
    count = int(faces.max())
    label = np.zeros(count + 1, np.int64)
    label[faces] = label_map
    area = np.bincount(faces[counted], minlength=count + 1)
    wanted = (label > 0) & (area >= max(least, 1))
    kept = np.flatnonzero(wanted)
    numbers = np.zeros(count + 1, np.int64)
    numbers[kept] = np.arange(1, len(kept) + 1)
    if drawn:
        outlines = simplify_apart(faces, "exact", wanted[1:])[kept - 1]
        polygons = [drawn_polygon(outline) for outline in outlines]
    elif len(kept):
        polygons = list(simplify_coverage(faces, "default", wanted=wanted[1:])[kept - 1])
    else:
        polygons = []
    boxes = ndimage.find_objects(faces)
    return _Side(numbers[faces], label[kept], [boxes[number - 1] for number in kept], polygons)


def _pairs(true: _Side, predicted: _Side, counted: NDArray[np.bool_]) -> dict[int, int]:
    """Predicted region by true region, from 0, the highest IoU first."""
    rows, columns = len(true.polygons), len(predicted.polygons)
    mine, its = true.numbers[counted], predicted.numbers[counted]
    areas = np.bincount(mine, minlength=rows + 1), np.bincount(its, minlength=columns + 1)
    both = (mine > 0) & (its > 0)
    joined, shared = np.unique((mine[both] - 1) * max(columns, 1) + its[both] - 1, return_counts=True)
    first, second = np.divmod(joined, max(columns, 1))
    same = true.classes[first] == predicted.classes[second]
    first, second, shared = first[same], second[same], shared[same]
    iou = shared / (areas[0][first + 1] + areas[1][second + 1] - shared)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    # Equal ones in the order of their regions.
    for place in np.argsort(-iou, kind="stable"):
        one, other = int(first[place]), int(second[place])
        if one not in pairs and other not in taken:
            pairs[one] = other
            taken.add(other)
    return pairs


def _edit(true: _Side, mine: int, predicted: _Side, its: int, counted: NDArray[np.bool_], drawn: int) -> Effort:
    """The cheapest way to correct a pair."""
    boxes = true.boxes[mine], predicted.boxes[its]
    top, left = (min(box[axis].start for box in boxes) for axis in (0, 1))
    box = tuple(slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in (0, 1))
    here = counted[box]
    wanted, found = (true.numbers[box] == mine + 1) & here, (predicted.numbers[box] == its + 1) & here
    shared, union = int((wanted & found).sum()), int((wanted | found).sum())
    if shared >= GOAL * union:
        return Effort()
    lacking, lacks = ndimage.label(wanted & ~found)
    excess, exceeds = ndimage.label(found & ~wanted)
    pieces = np.where(excess > 0, excess + lacks, lacking)
    sizes = np.bincount(pieces.ravel(), minlength=lacks + exceeds + 1)[1:]
    old = _vertices_at(predicted.polygons[its], pieces, (top, left), len(sizes))
    new = _vertices_at(true.polygons[mine], pieces, (top, left), len(sizes))
    costs = np.maximum(np.maximum(old, new), 1)
    effort = Effort()
    for piece in np.argsort(-sizes / costs, kind="stable"):
        if piece < lacks:
            shared += int(sizes[piece])
        else:
            union -= int(sizes[piece])
        effort += Effort(
            moved=int(costs[piece] - abs(old[piece] - new[piece])),
            added=max(0, int(new[piece] - old[piece])),
            deleted=max(0, int(old[piece] - new[piece])),
        )
        if shared >= GOAL * union:
            break
    anew = Effort(added=drawn, regions_added=1, regions_deleted=1)
    return effort if effort.steps < anew.steps else anew


def _vertices(polygon: Polygon) -> int:
    """Vertices of all rings, the last of each, which is the first, not counted."""
    return int(shapely.get_num_coordinates(polygon)) - 1 - len(polygon.interiors)


def _vertices_at(polygon: Polygon, pieces: NDArray[np.int32], corner: tuple[int, int], count: int) -> NDArray[np.int64]:
    """How many vertices of a polygon touch each piece, int64 ``[count]``: a corner touches the pixels around it."""
    rings = [polygon.exterior, *polygon.interiors]
    points = np.concatenate([shapely.get_coordinates(ring)[:-1] for ring in rings])
    columns, rows = np.rint(points - [corner[1], corner[0]]).astype(int).T
    padded = np.pad(pieces, 1)
    rows, columns = np.clip(rows, 0, pieces.shape[0]), np.clip(columns, 0, pieces.shape[1])
    around = np.stack([padded[rows + down, columns + right] for down in (0, 1) for right in (0, 1)], axis=1)
    around.sort(axis=1)
    repeated = np.zeros(around.shape, bool)
    repeated[:, 1:] = around[:, 1:] == around[:, :-1]
    return np.bincount(around[~repeated], minlength=count + 1)[1:]
