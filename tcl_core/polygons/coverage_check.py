"""What is wrong with a simplified coverage: faces that are not valid, regions that lost too much."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.arcs import EdgeGraph
from tcl_core.polygons.misplaced import Misplaced
from tcl_core.polygons.moves import Sweeps
from tcl_core.polygons.rasterize import polygon_to_mask
from tcl_core.polygons.run_map import RunMap

__all__ = ["CoverageCheck"]

_LOSS, _LOSS_GROWTH = 0.02, 0.85  # of its IoU at a tolerance of one pixel, and the power of the tolerance
_LARGEST_LOSS = 0.25
_MARGIN = 2
_DRAWN_LOSS = 2.0
_SMALL_AREA = 64  # pixels; one pixel is so much of a smaller region that it may lose more
# A side of a box may move by whole pixels up to this share of it, and by so much more, which hardly draws a pixel.
_BOX_SHARE, _BOX_OF_FINE, _BOX_OF_COARSE = 0.05, 0.65, 0.45
_SPECK_AREA = 2  # pixels
_BROAD = 6.0  # pixels of area by pixels of border
_SLIGHT_IOU = 0.65  # of a polygon's area and the pixels, for regions so small or thin that centers say little:
_SLIGHT_AREA, _SLIGHT_WIDTH = 4, 1.05
_ROUNDED = 0.2  # pixels that pycocotools misplaces by rounding, per pixel of border; seen are up to 0.09


@dataclass(frozen=True)
class CoverageCheck:
    """Finds the faces that were simplified too far.

    Attributes:
        graph: the pixel edges.
        faces: the face of each pixel.
        wanted: bool ``[F]``, faces whose IoU is held.
        pixels: the tolerance.
        area: int64 ``[F]``, pixels of each face.
        border: float64 ``[F]``, the length of its pixel edges.
        boxes: float64 ``[F, 4]``, left, top, right and bottom of its box.
    """

    graph: EdgeGraph
    faces: RunMap
    wanted: NDArray[np.bool_]
    pixels: float
    area: NDArray[np.int64]
    border: NDArray[np.float64]
    boxes: NDArray[np.float64]

    @classmethod
    def of(cls, graph: EdgeGraph, faces: RunMap, wanted: NDArray[np.bool_], pixels: float) -> CoverageCheck:
        """Measure the faces from their borders."""
        count = len(wanted) + 1
        length = np.diff(graph.starts) - 1.0
        border = np.bincount(graph.left, length, minlength=count) + np.bincount(graph.right, length, minlength=count)
        # Green's theorem: the step that goes down x pixels from the left adds x pixels to the face on its right.
        down = np.diff(graph.points[:, 1], append=0) * graph.points[:, 0]
        down[graph.starts[1:] - 1] = 0
        swept = np.add.reduceat(down, graph.starts[:-1])
        area = np.bincount(graph.right, swept, minlength=count) - np.bincount(graph.left, swept, minlength=count)
        boxes = np.concatenate([np.full((count, 2), np.inf), np.full((count, 2), -np.inf)], axis=1)
        low = np.minimum.reduceat(graph.points, graph.starts[:-1], axis=0)
        high = np.maximum.reduceat(graph.points, graph.starts[:-1], axis=0)
        for side in (graph.left, graph.right):
            np.minimum.at(boxes[:, :2], side, low)
            np.maximum.at(boxes[:, 2:], side, high)
        whole_area = np.rint(area[1:]).astype(np.int64)
        return cls(graph, faces, wanted, pixels, whole_area, border[1:].astype(np.float64), boxes[1:])

    def reach(self) -> NDArray[np.float64]:
        """Pixels by which each face's box may change, float64 ``[F, 2]``, across and down: at most the tolerance.

        COCO tools compare boxes with polygons, so that a large tolerance does not mean as much for them.
        """
        size = self.boxes[:, 2:] - self.boxes[:, :2]
        more = _BOX_OF_FINE if self.pixels <= 1 else _BOX_OF_COARSE
        return np.minimum(self.pixels, np.floor(_BOX_SHARE * size) + more)

    def allowed_loss(self) -> NDArray[np.float64]:
        """What each face may lose of its IoU, float64 ``[F]``; infinite for those that are not wanted."""
        loss = _LOSS * self.pixels**_LOSS_GROWTH * np.sqrt(np.maximum(1, _SMALL_AREA / self.area))
        return np.where(self.wanted, np.minimum(loss, _LARGEST_LOSS), np.inf)

    def room(self, misplaced: Misplaced) -> NDArray[np.float64]:
        """How many pixels more each face may lose, in the sense of :meth:`loads`; float64 ``[F + 1]``, from face 0."""
        # (area - losses) / (area + gains) >= 1 - allowed, solved for what counts.
        allowed = np.append(np.inf, self.allowed_loss())
        finite = np.where(np.isfinite(allowed), allowed, 0.0)
        losses = np.bincount(misplaced.right, misplaced.length, minlength=len(allowed))
        gains = np.bincount(misplaced.wrong, misplaced.length, minlength=len(allowed))
        used = losses + (1 - finite) * gains
        return np.where(np.isfinite(allowed), finite * np.append(0, self.area) - used, np.inf)

    def loads(self, sweeps: Sweeps) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """What moves cost each face: a lost pixel 1, a gained one ``1 - allowed loss``.

        Args:
            sweeps: the pixels that change sides.

        Returns:
            Move, face and cost of each pair of them.
        """
        allowed = np.append(0.0, self.allowed_loss())
        share = np.where(np.isfinite(allowed), 1 - allowed, 0.0)
        right = self.faces[sweeps.pixel]
        lost, found = right == sweeps.before, right == sweeps.after
        moves = np.concatenate([sweeps.move, sweeps.move])
        beside = np.concatenate([sweeps.before, sweeps.after])
        cost = np.concatenate([np.where(lost, 1.0, -share[sweeps.before]), np.where(found, -1.0, share[sweeps.after])])
        key, index = np.unique(moves * len(allowed) + beside, return_inverse=True)
        return key // len(allowed), key % len(allowed), np.bincount(index, cost).astype(np.float64)

    def breadth(self) -> NDArray[np.float64]:
        """Float64 ``[A]`` in ``(0, 1]``: how broad the narrower face beside each arc is, up to what matters.

        A pixel is a large part of a narrow region, so that a vertex less is worth less there.
        """
        breadth = np.append(1.0, np.minimum(self.area / self.border / _BROAD, 1.0))
        breadth[1:][~self.wanted] = 1.0
        return np.asarray(np.minimum(breadth[self.graph.left], breadth[self.graph.right]))

    @cached_property
    def _exact(self) -> NDArray[np.object_]:
        """Polygons of all faces along the pixel edges."""
        return self.graph.polygons(self.graph.points.astype(np.float64), self.graph.starts)

    def slight(self) -> NDArray[np.bool_]:
        """Bool ``[F]``: faces so small or thin that pixel centers say little about their polygon."""
        return np.asarray((self.area <= _SLIGHT_AREA) | (2 * self.area < _SLIGHT_WIDTH * self.border))

    def specks(self) -> NDArray[np.bool_]:
        """Bool ``[A]``: arcs around few pixels, which keep all their corners, almost where they are."""
        return np.asarray(self.arcs_of(self.area <= _SPECK_AREA))

    def arcs_of(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool ``[A]``: the arcs of the faces for which ``which`` (bool ``[F]``) is true."""
        padded = np.append(False, which)
        return np.asarray(padded[self.graph.left] | padded[self.graph.right])

    def invalid(self, polygons: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Bool ``[F]``: faces whose polygon is not valid, or has a ring that is turned inside out.

        That is enough for a coverage. Every arc is walked once by the face on either side, so around any point in the
        frame the rings of all faces wind once in all. A valid polygon with its rings the right way round winds once
        around what it covers and not at all around the rest: each point is covered by exactly one.
        """
        rings, face = shapely.get_rings(polygons, return_index=True)
        points, ring = shapely.get_coordinates(rings, return_index=True)
        first = np.append(0, np.flatnonzero(np.diff(ring)) + 1)
        points = points - points[first][ring]
        shoelace = points[:-1, 0] * points[1:, 1] - points[1:, 0] * points[:-1, 1]
        area = np.add.reduceat(np.where(ring[1:] == ring[:-1], shoelace, 0.0), first.clip(max=len(shoelace) - 1))
        is_hole = np.append(False, face[1:] == face[:-1])
        result = ~shapely.is_valid(polygons)
        # y points down: a shell with the face on its left has a negative sign.
        result[face[np.where(is_hole, area <= 0, area >= 0)]] = True
        return np.asarray(result)

    def drawn_badly(
        self, polygons: NDArray[np.object_], asked: NDArray[np.int64], misplaced: Misplaced
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Wanted faces that lose too much when pycocotools draws them, or whose polygon covers too little of them.

        It rounds to fifths of a pixel, which can cost a thin region more than the pixel centers say; only faces that
        are thin enough are drawn.

        Args:
            polygons: of all faces.
            asked: int64, faces to look at, from 0.
            misplaced: what lies on the wrong side by pixel centers.

        Returns:
            Bool ``[F]``, and float64 ``[P, 2]``, the centers ``(x, y)`` of the pixels that these faces misplace.
        """
        height, width = self.graph.size
        allowed = np.minimum(_DRAWN_LOSS * self.allowed_loss(), _LARGEST_LOSS)
        low = np.zeros(len(self.wanted), dtype=bool)
        pixels: list[NDArray[np.float64]] = [np.empty((0, 2))]
        slight = asked[(self.wanted & self.slight())[asked]]
        if len(slight):
            exact = self._exact[slight]
            common = shapely.area(shapely.intersection(polygons[slight], exact))
            union = shapely.area(polygons[slight]) + self.area[slight] - common
            low[slight] = common < _SLIGHT_IOU * union
        room = allowed - (1 - misplaced.iou(self.area))
        thin = _ROUNDED * self.border > room * self.area
        for face in asked[(self.wanted & thin)[asked]]:
            left, top, right, bottom = shapely.bounds(polygons[face])
            left, top = max(int(left) - _MARGIN, 0), max(int(top) - _MARGIN, 0)
            right, bottom = min(int(right) + _MARGIN + 1, width), min(int(bottom) + _MARGIN + 1, height)
            mask = self.faces.window(slice(top, bottom), slice(left, right)) == face + 1
            drawn = polygon_to_mask(polygons[face], mask.shape, origin=(left, top))
            # What lies outside this window is lost.
            inside = int(np.count_nonzero(mask & drawn))
            union = self.area[face] + int(np.count_nonzero(drawn)) - inside
            if low[face] or inside < (1 - allowed[face]) * union:
                low[face] = True
                row, column = np.nonzero(mask != drawn)
                pixels.append(np.stack([column + left + 0.5, row + top + 0.5], axis=1).astype(np.float64))
        return low, np.concatenate(pixels)
