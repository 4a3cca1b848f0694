"""Fit a coverage to the pixel edges of an image: fit all lines once, then mend where something is wrong.

Lines that meet or lie on the wrong side of others, and lines beside regions that lost too much, are split into finer
ones; only the vertices beside these are placed again, and only their lines are checked again. After a few rounds what
is still wrong becomes exact, down to the pixel edges of all arcs, which are valid.

Faults grow with the tolerance, and splitting puts vertices back. So nothing coarser than a pixel is fitted: coarser
polygons are made of valid ones, from which vertices are taken as long as they stay valid
(:mod:`tcl_core.polygons.coarsening`).
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.coarsening import coarsen
from tcl_core.polygons.coverage_check import CoverageCheck
from tcl_core.polygons.crossings import crossing_lines, line_tree
from tcl_core.polygons.drawing import Drawing
from tcl_core.polygons.misplaced import Misplaced, RowCrossings, edge_crossings, find_misplaced
from tcl_core.polygons.simplify import merge_runs, solve_vertices, straight_runs
from tcl_core.polygons.vertex_refinement import refine_vertices

__all__ = ["fit_coverage"]

_COARSEST_FIT = 1.0  # pixels
_PRICE = 0.47  # squared distance that a vertex less is worth at a tolerance of one pixel
_SPECK_REACH = 0.2  # pixels that a corner of a speck may move
_FINER = 0.5  # a line at fault gets so much of its price
_ROUNDS = 3  # of mending, then lines at fault become exact at once
_EXACT_BELOW = 0.01  # of the price at the beginning
_PASSES, _LATER_PASSES = 3, 2  # of least squares
_REFINEMENTS, _LATER_REFINEMENTS = 8, 2
_BESIDE = 2.0  # pixels between a misplaced pixel's center and a line that is to blame for it


def fit_coverage(check: CoverageCheck) -> NDArray[np.object_]:
    """Polygons of all faces.

    Args:
        check: the pixel edges, the faces that are wanted, and the tolerance.

    Returns:
        Shapely polygons, a valid coverage; entry ``f - 1`` is face ``f``.
    """
    price = _PRICE * min(check.pixels, _COARSEST_FIT) ** 2
    base = straight_runs(check.graph, price)
    drawing = Drawing.begin(check.graph, base, check.boxes, check.reach())
    specks = check.specks() & ~drawing.on_frame
    base.price[specks[base.arc]] = 0
    # Nobody gains by another shape of one that touches nothing else.
    drawing.keep_near(specks & ~check.graph.is_loop, _SPECK_REACH)
    if not (base.price[~drawing.on_frame[base.arc]] > 0).any():
        return drawing.polygons()
    return _Fit(drawing, check, _EXACT_BELOW * price).run(specks)


class _Fit:
    """A drawing on the way to polygons.

    Attributes:
        drawing: the lines.
        check: what must hold.
        edges: of the pixel edges.
        floor: a price below which a line becomes exact.
        misplaced: what the drawing misplaces now.
    """

    def __init__(self, drawing: Drawing, check: CoverageCheck, floor: float) -> None:
        self.drawing, self.check, self.floor = drawing, check, floor
        self.edges: RowCrossings = edge_crossings(check.graph)
        self.misplaced: Misplaced

    def run(self, specks: NDArray[np.bool_]) -> NDArray[np.object_]:
        """Fit, mend, refine and coarsen; ``specks`` (bool ``[A]``) are arcs that stay exact."""
        drawing, check = self.drawing, self.check
        drawing.runs = merge_runs(drawing.base)
        self._give_rings_three_lines()
        drawing.hold_exact()
        self._place(np.ones(len(drawing.runs.arc), dtype=bool), _PASSES)
        self._mend(None)
        self._refine(_REFINEMENTS)
        for attempt in range(_ROUNDS + 1):
            fault = self._beside_losses()
            if not fault.any():
                break
            before = drawing.place.copy()
            self._mend(fault, exact=attempt == _ROUNDS)
            if attempt < _ROUNDS:
                self._refine(_LATER_REFINEMENTS, drawing.beside((drawing.place != before).any(axis=1)))
        # What was made exact may move and go again, except around specks.
        drawing.keep_sides(check.boxes, check.reach())
        drawing.release(~specks, 2 * self.floor)
        self.misplaced = coarsen(drawing, check, self.edges, self.misplaced, _LATER_REFINEMENTS)
        return self._accept()

    def _refine(self, rounds: int, movable: NDArray[np.bool_] | None = None) -> None:
        self.misplaced = refine_vertices(self.drawing, self.edges, self.check.faces, self.misplaced, rounds, movable)

    def _give_rings_three_lines(self) -> None:
        while True:
            short = self._in_short_rings() & ~self.drawing.exact()
            if not short.any():
                return
            self.drawing.make_finer(short, _FINER, self.floor)

    def _place(self, lines: NDArray[np.bool_], passes: int) -> None:
        """Place the ends of some lines (bool ``[R]``) by least squares, all others staying where they are."""
        drawing = self.drawing
        head, tail = drawing.ends()
        free = np.zeros(len(drawing.home), dtype=bool)
        free[head[lines]] = free[tail[lines]] = True
        free &= ~drawing.held
        used = (free[head] | free[tail]) & ~drawing.on_frame[drawing.runs.arc]
        if not used.any():
            return
        number = np.full(len(drawing.home), -1)
        number[head[used]] = number[tail[used]] = 0
        vertices = np.flatnonzero(number == 0)
        number[vertices] = np.arange(len(vertices))
        fixed = (~free[vertices])[:, None] | (drawing.low == drawing.high)[vertices]
        runs, place, home = drawing.runs.select(used), drawing.place[vertices], drawing.home[vertices]
        placed = solve_vertices(runs, number[head[used]], number[tail[used]], place, home, fixed, passes)
        moved = free[vertices]
        drawing.place[vertices[moved]] = drawing.clip(placed[moved], vertices[moved])

    def _mend(self, fault: NDArray[np.bool_] | None, *, exact: bool = False) -> None:
        """Make lines at fault finer until the lines fit together.

        Args:
            fault: bool ``[R]``; ``None`` looks at all lines first.
            exact: whether lines at fault become exact at once.
        """
        drawing = self.drawing
        changed = None
        rounds = 0
        while True:
            if fault is None:
                self.misplaced = find_misplaced(drawing, self.edges)
                fault = crossing_lines(drawing, changed) | self.misplaced.disordered | self._in_short_rings()
            # A line that can be made no finer was moved by the others of its arc, or is in the way of others.
            stuck = np.zeros(len(drawing.on_frame), dtype=bool)
            stuck[drawing.runs.arc[fault & drawing.exact()]] = True
            fault = (fault | stuck[drawing.runs.arc]) & ~drawing.exact()
            if not fault.any():
                return
            before = drawing.place.copy()
            parts = drawing.make_finer(fault, 0.0 if exact or rounds >= _ROUNDS else _FINER, self.floor)
            drawing.hold_exact()
            self._place(parts, _LATER_PASSES)
            head, tail = drawing.ends()
            moved = (drawing.place != before).any(axis=1)
            changed = parts | moved[head] | moved[tail]
            fault = None
            rounds += 1

    def _beside_losses(self) -> NDArray[np.bool_]:
        """Bool ``[R]``: lines beside the misplaced pixels of faces that lost too much."""
        low = self.misplaced.iou(self.check.area) < 1 - self.check.allowed_loss()
        padded = np.append(False, low)
        spans = padded[self.misplaced.right] | padded[self.misplaced.wrong]
        return self._nearest(low, self.misplaced.centers(spans))

    def _nearest(self, low: NDArray[np.bool_], centers: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Bool ``[R]``: lines of the ``low`` faces nearest to pixel centers; all of a face where there is none."""
        drawing = self.drawing
        fault = np.zeros(len(drawing.runs.arc), dtype=bool)
        if not low.any():
            return fault
        head, tail = drawing.ends()
        lines = np.flatnonzero(self.check.arcs_of(low)[drawing.runs.arc] & ~drawing.exact())
        if len(lines):
            tree = line_tree(drawing.place[head[lines]], drawing.place[tail[lines]])
            _, nearest = tree.query_nearest(shapely.points(centers), max_distance=_BESIDE, all_matches=False)
            fault[lines[nearest]] = True
        left, right = drawing.sides()
        helped = np.zeros(len(low) + 1, dtype=bool)
        helped[left[fault]] = helped[right[fault]] = True
        return (fault | self.check.arcs_of(low & ~helped[1:])[drawing.runs.arc]) & ~drawing.exact()

    def _in_short_rings(self) -> NDArray[np.bool_]:
        """Bool ``[R]``: lines of rings that have fewer than three."""
        graph = self.drawing.graph
        short = self.drawing.lines_of_ring() < 3
        arcs = np.zeros(len(graph.left), dtype=bool)
        if short.any():
            arcs[graph.ring_arcs[np.repeat(short, np.diff(graph.ring_starts))] // 2] = True
        return np.asarray(arcs[self.drawing.runs.arc])

    def _accept(self) -> NDArray[np.object_]:
        """Let GEOS and pycocotools look at the polygons; what they refuse is mended, at last by exact lines."""
        drawing, check = self.drawing, self.check
        asked = np.arange(len(check.wanted))
        rounds = 0
        while True:
            polygons = drawing.polygons()
            refused = np.zeros(len(polygons), dtype=bool)
            refused[asked] = check.invalid(polygons[asked])
            exact = rounds >= _ROUNDS or bool(refused.any())
            if refused.any():
                fault = check.arcs_of(refused)[drawing.runs.arc]
            else:
                refused, centers = check.drawn_badly(polygons, asked, self.misplaced)
                fault = self._nearest(refused, centers)
                if exact:
                    fault |= check.arcs_of(refused)[drawing.runs.arc]
            fault &= ~drawing.exact()
            if not fault.any():
                return polygons
            rounds += 1
            before = drawing.place.copy()
            self._mend(fault, exact=exact)
            head, tail = drawing.ends()
            moved = (drawing.place != before).any(axis=1)
            lines = moved[head] | moved[tail]
            left, right = drawing.sides()
            touched = np.zeros(len(check.wanted) + 1, dtype=bool)
            touched[left[lines]] = touched[right[lines]] = True
            asked = np.flatnonzero(touched[1:] | refused)
