"""Fit a coverage to the pixel edges of an image: fit all lines once, then mend where something is wrong, and only there.

Lines that meet or lie on the wrong side of others, and lines beside regions that lost too much, are split into finer
ones; only the vertices beside these are placed again, and only their lines are checked again. After a few rounds what is
still wrong becomes exact, down to the pixel edges of all arcs, which are valid.
"""

from __future__ import annotations

import os
import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.polygons.coarsening import remove_vertices
from tcl_core.polygons.coverage_check import CoverageCheck
from tcl_core.polygons.crossings import crossing_lines, line_tree
from tcl_core.polygons.drawing import Drawing
from tcl_core.polygons.misplaced import Misplaced, RowCrossings, edge_crossings, find_misplaced
from tcl_core.polygons.simplify import merge_runs, solve_vertices, straight_runs
from tcl_core.polygons.vertex_refinement import refine_vertices

__all__ = ["fit_coverage"]

_FINEST_FIT = 1.0  # pixels; coarser drawings are made from a valid one of this tolerance
_FINER = float(os.environ.get("FINER",.3))  # a line at fault gets so much of its price
_ROUNDS = int(os.environ.get("ROUNDS",6))  # of mending, then lines at fault become exact at once
_EXACT_BELOW = 0.01
_RAMP = eval(os.environ.get('RAMP','(0,.5,1)'))
_WORTH = float(os.environ.get('WORTH', 2.0))
_REFINEMENTS = int(os.environ.get("REF",14))
_LATER_REFINEMENTS = int(os.environ.get("LREF",4))
_BESIDE = 2.0  # pixels between a misplaced pixel's center and a line that is to blame for it
_EASE = float(os.environ.get("EASE",1.3))  # before refinement, which corrects about half of the misplaced pixels, so much more loss passes


STAT={}
def fit_coverage(check: CoverageCheck) -> NDArray[np.object_]:
    """Polygons of all faces.

    Args:
        check: the pixel edges, the faces that are wanted, and the tolerance.

    Returns:
        Shapely polygons, a valid coverage.
    """
    graph, pixels = check.graph, min(check.pixels, _FINEST_FIT)
    base = straight_runs(graph, float(os.environ.get("PRICE", 1)) * pixels**2)
    on_frame = (graph.left == 0) | (graph.right == 0)
    base.price[(check.arcs_of(check.tiny()) & ~on_frame)[base.arc]] = 0
    drawing = Drawing.begin(graph, base, check.pixels)
    edges = edge_crossings(graph)
    drawing.runs = merge_runs(base)
    _mend_short_rings(drawing)
    drawing.hold_exact()
    place_vertices(drawing, np.ones(len(drawing.runs.arc), dtype=bool))
    C=lambda n: STAT.__setitem__(n,STAT.get(n,0)+len(drawing.runs.arc))
    C('0fit')
    misplaced = _mend(drawing, check, edges, None, _EASE)
    C('1mend')
    misplaced = refine_vertices(drawing, edges, check.faces, _REFINEMENTS)
    for attempt in range(_ROUNDS + 1):
        fault = _beside_losses(drawing, check, misplaced, 1.0)
        if not fault.any():
            break
        before = drawing.place.copy()
        misplaced = _mend(drawing, check, edges, fault, 1.0, exact=attempt == _ROUNDS)
        if attempt < _ROUNDS:
            changed = _near(drawing, (drawing.place != before).any(axis=1))
            misplaced = refine_vertices(drawing, edges, check.faces, _LATER_REFINEMENTS, changed)
    C('2losses')
    # Exact lines may move and go again, except those of tiny regions, which cannot be at fault.
    drawing.release(~check.arcs_of(check.tiny()), 2 * _EXACT_BELOW * check.pixels**2)
    for share in _RAMP:
        if remove_vertices(drawing, check, misplaced, share * _WORTH * check.pixels, ~drawing.held):
            misplaced = refine_vertices(drawing, edges, check.faces, _LATER_REFINEMENTS)
    C('3removed')
    r=_accept(drawing, check, edges, misplaced)
    C('4accept')
    return r


def _near(drawing: Drawing, vertices: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Vertices and those at the other ends of their lines."""
    head, tail = drawing.ends()
    result = vertices.copy()
    result[head[vertices[tail]]] = True
    result[tail[vertices[head]]] = True
    return result


def place_vertices(drawing: Drawing, lines: NDArray[np.bool_]) -> None:
    """Place the ends of some lines by least squares, all others staying where they are."""
    head, tail = drawing.ends()
    free = np.zeros(len(drawing.home), dtype=bool)
    free[head[lines]] = free[tail[lines]] = True
    free &= ~drawing.held
    used = (free[head] | free[tail]) & ~drawing.on_frame[drawing.runs.arc]
    if not used.any():
        return
    vertices, index = np.unique(np.concatenate([head[used], tail[used]]), return_inverse=True)
    count = int(used.sum())
    fixed = (~free[vertices])[:, None] | (drawing.low == drawing.high)[vertices]
    placed = solve_vertices(
        drawing.runs.select(used), index[:count], index[count:], drawing.place[vertices], drawing.home[vertices], fixed
    )
    moved = free[vertices]
    drawing.place[vertices[moved]] = drawing.clip(placed[moved], vertices[moved])


def _mend(
    drawing: Drawing,
    check: CoverageCheck,
    edges: RowCrossings,
    fault: NDArray[np.bool_] | None,
    ease: float,
    exact: bool = False,
) -> Misplaced:
    """Make lines at fault finer until none cross; ``fault`` = ``None`` looks for all of them first."""
    changed = None
    rounds = 0
    while True:
        if fault is None:
            misplaced = find_misplaced(drawing, edges)
            fault = crossing_lines(drawing, changed) | misplaced.disordered
            if rounds == 0 and ease > 1:
                fault |= _beside_losses(drawing, check, misplaced, ease)
            fault |= _in_short_rings(drawing)
        # A line that can be made no finer was moved by the others of its arc, or is in the way of others.
        stuck = np.zeros(len(drawing.graph.left), dtype=bool)
        stuck[drawing.runs.arc[fault & drawing.exact()]] = True
        fault = (fault | (stuck & ~drawing.on_frame)[drawing.runs.arc]) & ~drawing.exact()
        if not fault.any():
            return misplaced
        before = drawing.place.copy()
        parts = drawing.make_finer(fault, 0.0 if exact or rounds >= _ROUNDS else _FINER, _EXACT_BELOW * check.pixels**2)
        drawing.hold_exact()
        place_vertices(drawing, parts)
        head, tail = drawing.ends()
        moved = (drawing.place != before).any(axis=1)
        changed = parts | moved[head] | moved[tail]
        fault = None
        rounds += 1


def _beside_losses(
    drawing: Drawing, check: CoverageCheck, misplaced: Misplaced, ease: float
) -> NDArray[np.bool_]:
    """Bool ``[R]``: lines beside the misplaced pixels of faces that lost too much."""
    low = misplaced.iou(check.area) < 1 - ease * check.allowed_loss()
    fault = np.zeros(len(drawing.runs.arc), dtype=bool)
    if not low.any():
        return fault
    padded = np.append(False, low)
    spans = padded[misplaced.right] | padded[misplaced.wrong]
    return _nearest(drawing, check, low, misplaced.centers(spans)) & ~drawing.on_frame[drawing.runs.arc]


def _nearest(
    drawing: Drawing, check: CoverageCheck, low: NDArray[np.bool_], pixels: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Bool ``[R]``: lines of the ``low`` faces nearest to pixel centers; all of a face where there is none."""
    fault = np.zeros(len(drawing.runs.arc), dtype=bool)
    if not low.any():
        return fault
    head, tail = drawing.ends()
    lines = np.flatnonzero(check.arcs_of(low)[drawing.runs.arc] & ~drawing.exact())
    if len(lines):
        tree = line_tree(drawing.place[head[lines]], drawing.place[tail[lines]])
        _, nearest = tree.query_nearest(shapely.points(pixels), max_distance=_BESIDE, all_matches=False)
        fault[lines[nearest]] = True
    left, right = drawing.sides()
    helped = np.zeros(len(low) + 1, dtype=bool)
    helped[left[fault]] = helped[right[fault]] = True
    return np.asarray(fault | check.arcs_of(low & ~helped[1:])[drawing.runs.arc])


def _in_short_rings(drawing: Drawing) -> NDArray[np.bool_]:
    """Bool ``[R]``: lines of rings that have fewer than three."""
    graph = drawing.graph
    short = drawing.lines_of_ring() < 3
    arcs = np.zeros(len(graph.left), dtype=bool)
    if short.any():
        arcs[graph.ring_arcs[np.repeat(short, np.diff(graph.ring_starts))] // 2] = True
        arcs &= ~drawing.on_frame
    return np.asarray(arcs[drawing.runs.arc])


def _mend_short_rings(drawing: Drawing) -> None:
    while True:
        short = _in_short_rings(drawing) & ~drawing.exact()
        if not short.any():
            return
        drawing.make_finer(short, _FINER, _EXACT_BELOW)


def _accept(
    drawing: Drawing, check: CoverageCheck, edges: RowCrossings, misplaced: Misplaced
) -> NDArray[np.object_]:
    """Let GEOS and pycocotools look at the result; what they refuse becomes exact."""
    asked = np.arange(len(check.wanted))
    rounds = 0
    while True:
        polygons = drawing.polygons()
        refused = np.zeros(len(polygons), dtype=bool)
        refused[asked] = check.invalid(polygons[asked])
        exact = rounds >= _ROUNDS or bool(refused.any())
        fault = check.arcs_of(refused)[drawing.runs.arc]
        if not refused.any():
            refused, pixels = check.drawn_badly(polygons, asked, misplaced)
            fault = _nearest(drawing, check, refused, pixels)
            if exact:
                fault |= check.arcs_of(refused)[drawing.runs.arc]
        fault &= ~drawing.exact()
        if not fault.any():
            return polygons
        rounds += 1
        before = drawing.place.copy()
        misplaced = _mend(drawing, check, edges, fault, 1.0, exact=exact)
        head, tail = drawing.ends()
        moved = (drawing.place != before).any(axis=1)
        left, right = drawing.sides()
        lines = moved[head] | moved[tail]
        touched = np.zeros(len(check.wanted) + 1, dtype=bool)
        touched[left[lines]] = touched[right[lines]] = True
        asked = np.flatnonzero(touched[1:] | refused)
