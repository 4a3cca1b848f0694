"""What is wrong with a simplified coverage: lines that cross, faces that are not valid, regions that lost too much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from tcl_core.polygons.arcs import EdgeGraph
from tcl_core.polygons.rasterize import mask_iou, partition_of_arcs, polygon_to_mask
from tcl_core.polygons.simplify import FittedArcs, Runs

__all__ = ["CoverageCheck", "arc_lines", "crossing_lines"]

_LOSS_PER_PIXEL = 0.02
_LARGEST_LOSS = 0.25
_BESIDE = 2.0
_MARGIN = 2
_DRAWN_LOSS = 2.0
_SMALL_AREA = 64  # pixels; one pixel is so much of a smaller region that it may lose more


@dataclass(frozen=True)
class CoverageCheck:
    """Finds the runs that were simplified too far."""

    graph: EdgeGraph
    faces: NDArray[np.int64]
    wanted: NDArray[np.bool_]
    pixels: float

    def area(self) -> NDArray[np.int64]:
        """Pixels of each face, int64 ``[F]``."""
        return np.bincount(self.faces.ravel(), minlength=len(self.wanted) + 1)[1:]

    def allowed_loss(self) -> NDArray[np.float64]:
        """What each face may lose of its IoU, float64 ``[F]``."""
        loss = _LOSS_PER_PIXEL * self.pixels * np.sqrt(np.maximum(1, _SMALL_AREA / self.area()))
        return np.minimum(loss, _LARGEST_LOSS)

    def iou(self, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        """IoU of each face to its pixels, float64 ``[F]``, by pixel centers.

        Args:
            drawn: int64 ``[H, W]``, the face that holds each pixel center.
        """
        count, area = len(self.wanted), self.area()
        moved = self.faces != drawn
        losses = np.bincount(self.faces[moved], minlength=count + 1)[1:]
        gains = np.bincount(drawn[moved], minlength=count + 1)[1:]
        return np.asarray((area - losses) / (area + gains))

    def of_faces(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool ``[A]``: the arcs of the faces for which ``which`` (bool ``[F]``) is true."""
        padded = np.append(False, which)
        return np.asarray(padded[self.graph.left] | padded[self.graph.right])

    def invalid(self, polygons: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Bool ``[F]``: faces whose polygon is not valid or does not match its neighbors."""
        edges = shapely.coverage_invalid_edges(polygons)
        return np.asarray(~shapely.is_valid(polygons) | ~(shapely.is_missing(edges) | shapely.is_empty(edges)))

    def drawn_badly(
        self, polygons: NDArray[np.object_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Wanted faces that lose too much when pycocotools draws them.

        It rounds to fifths of a pixel, which can cost a thin region more than the pixel centers say.

        Returns:
            Bool ``[F]``, and the rows and columns of the misplaced pixels of these faces.
        """
        height, width = self.graph.size
        floor = 1 - np.minimum(_DRAWN_LOSS * self.allowed_loss(), _LARGEST_LOSS)
        low = np.zeros(len(self.wanted), dtype=bool)
        rows, columns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        boxes = ndimage.find_objects(self.faces)
        for face in np.flatnonzero(self.wanted):
            down, across = boxes[face]
            top, left = max(down.start - _MARGIN, 0), max(across.start - _MARGIN, 0)
            bottom, right = min(down.stop + _MARGIN, height), min(across.stop + _MARGIN, width)
            mask = self.faces[top:bottom, left:right] == face + 1
            drawn = polygon_to_mask(polygons[face], mask.shape, origin=(left, top))
            if mask_iou(drawn, mask) < floor[face]:
                low[face] = True
                row, column = np.nonzero(drawn != mask)
                rows.append(row + top)
                columns.append(column + left)
        return low, np.concatenate(rows), np.concatenate(columns)

    def runs_at_fault(
        self, fitted: FittedArcs, polygons: NDArray[np.object_], runs: Runs, loose: NDArray[np.bool_], ease: float
    ) -> NDArray[np.bool_]:
        """Find the runs to be followed more closely.

        Args:
            fitted: the arcs.
            polygons: the faces' polygons made from them.
            runs: the lines of ``fitted``.
            loose: bool ``[A]``, arcs that can be made finer.
            ease: how many times the allowed loss passes; pycocotools is only asked where this is 1.

        Returns:
            Bool ``[R]``: runs that cross, or cost a wanted face too much of its IoU, or belong to an invalid face.
        """
        crossing = crossing_lines(fitted)
        # A line that cannot be made finer any more was moved by the others of its arc.
        stuck = np.zeros(len(loose), dtype=bool)
        stuck[runs.arc[crossing & (runs.price <= 0)]] = True
        drawn = partition_of_arcs(self.graph, fitted)
        low = self.wanted & (self.iou(drawn) < 1 - ease * self.allowed_loss())
        # Where lines cross, the partition is no measure of the faces beside them.
        arcs = runs.arc[crossing]
        faces = np.concatenate([self.graph.left[arcs], self.graph.right[arcs]])
        low[faces[faces > 0] - 1] = False
        row, column = np.nonzero(self.faces != drawn)
        counts = np.append(False, low)
        counts = counts[self.faces[row, column]] | counts[drawn[row, column]]
        fault = crossing | stuck[runs.arc] | self._beside(row[counts], column[counts], low, fitted, runs, loose)
        if not (fault & loose[runs.arc]).any():
            fault = self.of_faces(self.invalid(polygons))[runs.arc]
        if not (fault & loose[runs.arc]).any() and ease == 1:
            low, row, column = self.drawn_badly(polygons)
            fault = self._beside(row, column, low, fitted, runs, loose)
        return fault

    def _beside(
        self,
        row: NDArray[np.int64],
        column: NDArray[np.int64],
        low: NDArray[np.bool_],
        fitted: FittedArcs,
        runs: Runs,
        loose: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Runs of the ``low`` faces nearest to these pixels; all runs of a face where there is none."""
        fault = np.zeros(len(runs.arc), dtype=bool)
        if not low.any():
            return fault
        # Only the lines beside misplaced pixels need to follow the edge more closely.
        index = np.flatnonzero((loose & self.of_faces(low))[runs.arc] & (runs.price > 0))
        if len(index) and len(row):
            tree = shapely.STRtree(arc_lines(fitted)[0][index])
            pixels = shapely.points(column + 0.5, row + 0.5)
            _, nearest = tree.query_nearest(pixels, max_distance=_BESIDE, all_matches=False)
            fault[index[nearest]] = True
        helped = np.zeros(len(low) + 1, dtype=bool)
        helped[self.graph.left[runs.arc[fault]]] = helped[self.graph.right[runs.arc[fault]]] = True
        return np.asarray(fault | self.of_faces(low & ~helped[1:])[runs.arc])


def arc_lines(fitted: FittedArcs) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """Every line of every arc, as shapely lines and as start and end points ``[R, 2]``, in the order of the runs."""
    inside = np.ones(len(fitted.points) - 1, dtype=bool)
    inside[fitted.starts[1:-1] - 1] = False
    start, end = fitted.points[:-1][inside], fitted.points[1:][inside]
    return shapely.linestrings(np.stack([start, end], axis=1)), start, end


def crossing_lines(fitted: FittedArcs) -> NDArray[np.bool_]:
    """Bool ``[R]``: lines that meet another line anywhere but in a common end."""
    lines, start, end = arc_lines(fitted)
    one, two = shapely.STRtree(lines).query(lines, predicate="intersects")
    once = one < two
    one, two = one[once], two[once]
    touching = np.zeros(len(one), dtype=bool)
    for a in (start, end):
        for b in (start, end):
            touching |= (a[one] == b[two]).all(axis=1)
    result = np.zeros(len(lines), dtype=bool)
    result[one[~touching]] = True
    result[two[~touching]] = True
    return result
