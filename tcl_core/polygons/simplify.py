"""Replace the pixel staircase of every arc by a few straight lines.

Two steps, both on all arcs at once:

1. *Which runs of pixel edges become one line*: neighboring runs are merged bottom-up (the cheapest first) as long
   as a merge raises the summed squared distance between the edges and their best line by no more than a price
   per vertex. This minimizes ``squared distance + price * vertices``, the usual criterion of polygonal
   approximation (Pavlidis & Horowitz 1974; bottom-up order: Keogh et al. 2001).
2. *Where the vertices lie*: all vertices, nodes included, move to the least-squares solution over all runs
   together, so that the lines cut the staircase in the middle instead of following its outer corners.

A vertex may lie anywhere, not only on a pixel corner. That is what saves vertices: a chord between points of a
curve errs on one side only, a free line errs on both and does so about a third as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

from tcl_core.polygons.arcs import EdgeGraph

__all__ = ["FittedArcs", "Runs", "fit_vertices", "join_runs", "merge_runs", "straight_runs"]

_FIELDS = ("arc", "first", "length", "mean", "scatter", "price")
_RAMP = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
_STAY = 1e-2  # weight of a vertex's first place, so that one between two collinear lines has a definite place
_FIXED = 1e7
_FARTHEST = 1.5  # pixels a vertex may leave its pixel corner
_PASSES = 3
_STEPS = 60


@dataclass(frozen=True)
class Runs:
    """Runs of pixel edges, each to become one straight line, arc by arc.

    Attributes:
        arc: int64 ``[R]``, the arc of each run, ascending.
        first: int64 ``[R]``, index in ``EdgeGraph.points`` of the run's first corner.
        length: float64 ``[R]`` in pixels.
        mean: float64 ``[R, 2]``, mean point of the run's edges.
        scatter: float64 ``[R, 3]``, integrals over the edges of ``dx dx, dx dy, dy dy`` about the mean.
        price: float64 ``[R]``, the squared distance (integrated along the edge, so in pixels cubed) that one vertex
            less is worth here.
    """

    arc: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.float64]
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]
    price: NDArray[np.float64]

    def select(self, which: NDArray[np.bool_]) -> Runs:
        """Return the runs for which ``which`` (bool ``[R]``) is true."""
        return Runs(*(getattr(self, name)[which] for name in _FIELDS))


@dataclass(frozen=True)
class FittedArcs:
    """Simplified arcs in the order of their graph.

    Attributes:
        points: float64 ``[N, 2]``, ``(x, y)`` of all arcs one after the other, both ends included.
        starts: int64 ``[A + 1]``, offsets of the arcs in ``points``.
    """

    points: NDArray[np.float64]
    starts: NDArray[np.int64]


def straight_runs(graph: EdgeGraph, price: float) -> Runs:
    """Split every arc where it turns; the runs are its axis-parallel pieces, all of one price."""
    points = graph.points.astype(np.float64)
    step = np.diff(points, axis=0)
    edge_arc = np.repeat(np.arange(len(graph.left)), np.diff(graph.starts))[:-1]
    is_edge = np.ones(len(step), dtype=bool)
    is_edge[graph.starts[1:-1] - 1] = False  # from the last point of an arc to the first of the next
    begins = is_edge.copy()
    begins[1:] &= ~is_edge[:-1] | (step[1:] != step[:-1]).any(axis=1)
    first = np.flatnonzero(begins)
    # A run ends where the next begins, or at its arc's last point.
    last = np.minimum(np.append(first[1:], len(points) - 1), graph.starts[edge_arc[first] + 1] - 1)
    extent = points[last] - points[first]
    length = np.abs(extent).sum(axis=1)
    along = extent**2 * length[:, None] / 12
    scatter = np.stack([along[:, 0], np.zeros(len(first)), along[:, 1]], axis=1)
    mean = (points[first] + points[last]) / 2
    return Runs(edge_arc[first], first, length, mean, scatter, np.full(len(first), price))


def merge_runs(runs: Runs) -> Runs:
    """Merge neighboring runs of an arc while a merge costs no more than the lower of their prices.

    Args:
        runs: from :func:`straight_runs`, with any prices; a run of price 0 is never merged.

    Returns:
        The remaining runs; a merged run has the lowest price of its parts.
    """
    aside = runs.price <= 0
    exact_arc = np.ones(int(runs.arc.max(initial=-1)) + 1, dtype=bool)
    exact_arc[runs.arc[~aside]] = False
    done, runs = runs.select(exact_arc[runs.arc]), runs.select(~exact_arc[runs.arc])
    error = _line_error(runs.scatter)
    for share in _RAMP:
        while len(runs.arc) > 1:
            same = runs.arc[1:] == runs.arc[:-1]
            merged = _merge(runs)
            merged_error = _line_error(merged.scatter)
            cost = merged_error - error[1:] - error[:-1]
            cost[~same | (merged.price <= 0) | (cost > share * merged.price)] = np.inf
            before, after = np.append(np.inf, cost[:-1]), np.append(cost[1:], np.inf)
            chosen = np.isfinite(cost) & (cost < before) & (cost <= after)
            if not chosen.any():
                break
            index = np.flatnonzero(chosen)
            for name in ("length", "mean", "scatter", "price"):
                getattr(runs, name)[index] = getattr(merged, name)[index]
            error[index] = merged_error[index]
            kept = np.append(True, ~chosen)
            runs, error = runs.select(kept), error[kept]
    return join_runs(runs, done)


def join_runs(runs: Runs, others: Runs) -> Runs:
    """Put two disjoint sets of runs together in arc order."""
    order = np.argsort(np.concatenate([runs.first, others.first]), kind="stable")
    return Runs(*(np.concatenate([getattr(runs, n), getattr(others, n)])[order] for n in _FIELDS))


def _merge(runs: Runs) -> Runs:
    """Moments of each run together with the next (parallel-axis rule)."""
    one, two = runs.length[:-1], runs.length[1:]
    total = one + two
    apart = runs.mean[1:] - runs.mean[:-1]
    between = np.stack([apart[:, 0] ** 2, apart[:, 0] * apart[:, 1], apart[:, 1] ** 2], axis=1)
    scatter = runs.scatter[1:] + runs.scatter[:-1] + between * (one * two / total)[:, None]
    mean = runs.mean[:-1] + apart * (two / total)[:, None]
    price = np.minimum(runs.price[:-1], runs.price[1:])
    return Runs(runs.arc[:-1], runs.first[:-1], total, mean, scatter, price)


def _line_error(scatter: NDArray[np.float64]) -> NDArray[np.float64]:
    """Summed squared distance to the best line: the scatter matrix's smaller eigenvalue."""
    xx, xy, yy = scatter.T
    larger = (xx + yy) / 2 + np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    # determinant / larger eigenvalue does not cancel for long thin runs, unlike the difference of roots
    return np.maximum((xx * yy - xy**2) / np.maximum(larger, 1e-12), 0)


def fit_vertices(graph: EdgeGraph, runs: Runs, exact: NDArray[np.bool_]) -> FittedArcs:
    """Place the vertices between runs by least squares over all arcs together.

    Nodes move with the arcs that meet in them, along the frame if they lie on it; the image's corners and all
    vertices of exact arcs stay.

    Args:
        graph: the pixel edges.
        runs: runs of all its arcs.
        exact: bool ``[A]``, arcs whose vertices must stay on their pixel corners.

    Returns:
        Arcs whose inner points are the vertices between runs.
    """
    height, width = graph.size
    arcs = len(graph.left)
    counts = np.bincount(runs.arc, minlength=arcs)
    starts = np.concatenate([[0], np.cumsum(counts + 1)])
    corner = np.empty(starts[-1], dtype=np.int64)
    is_last = np.zeros(starts[-1], dtype=bool)
    is_last[starts[1:] - 1] = True
    corner[~is_last] = runs.first
    corner[is_last] = graph.starts[1:] - 1
    is_end = is_last.copy()
    is_end[starts[:-1]] = True
    # Ends of arcs that are the same pixel corner are one vertex; an inner point is a vertex of its own.
    place = graph.points[corner]
    key = place[:, 1] * (width + 1) + place[:, 0]
    _, shared = np.unique(key[is_end], return_inverse=True)
    vertex = np.empty(len(corner), dtype=np.int64)
    vertex[is_end] = shared
    nodes = int(shared.max()) + 1
    vertex[~is_end] = nodes + np.arange(int((~is_end).sum()))
    home = np.empty((nodes + int((~is_end).sum()), 2))
    home[vertex] = place

    on_frame = (graph.left == 0) | (graph.right == 0)
    weight = np.full(home.shape, _STAY)
    weight[vertex[np.repeat(exact & ~on_frame, counts + 1)]] = _FIXED
    weight[(home[:, 0] == 0) | (home[:, 0] == width), 0] = _FIXED
    weight[(home[:, 1] == 0) | (home[:, 1] == height), 1] = _FIXED
    used = ~(exact | on_frame)[runs.arc]
    head, tail = vertex[np.flatnonzero(~is_last)][used], vertex[np.flatnonzero(~is_last) + 1][used]
    placed = home
    if used.any():
        for _ in range(_PASSES):
            solved = _solve(runs.select(used), head, tail, placed, home, weight)
            move = solved - home
            far = np.hypot(move[:, 0], move[:, 1])
            placed = home + move * np.minimum(1, _FARTHEST / np.maximum(far, 1e-12))[:, None]
            # A thousandth of a pixel is more than enough, and keeps straight borders free of rounding dust.
            placed = np.where(weight == _FIXED, home, placed.round(3)).clip(0, [width, height])
    return FittedArcs(placed[vertex], starts)


def _solve(
    runs: Runs,
    head: NDArray[np.int64],
    tail: NDArray[np.int64],
    placed: NDArray[np.float64],
    home: NDArray[np.float64],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """One least-squares step: distances measured across each run's present line, from the runs' moments alone."""
    count = len(home)
    line = placed[tail] - placed[head]
    size = np.maximum(np.hypot(line[:, 0], line[:, 1]), 1e-6)
    dx, dy = (line / size[:, None]).T
    normal = np.stack([-dy, dx], axis=1)
    xx, xy, yy = runs.scatter.T
    place = ((runs.mean - placed[head]) * np.stack([dx, dy], axis=1)).sum(axis=1) / size
    spread = (dx * dx * xx + 2 * dx * dy * xy + dy * dy * yy) / (runs.length * size**2)
    across = (normal * runs.mean).sum(axis=1)
    slant = (-dx * dy * xx + (dx * dx - dy * dy) * xy + dx * dy * yy) / (runs.length * size)
    head_head = runs.length * ((1 - place) ** 2 + spread)
    head_tail = runs.length * (place * (1 - place) - spread)
    tail_tail = runs.length * (place**2 + spread)
    right = np.zeros((count, 2))
    np.add.at(right, head, (runs.length * ((1 - place) * across - slant))[:, None] * normal)
    np.add.at(right, tail, (runs.length * (place * across + slant))[:, None] * normal)
    rows, columns, values = [], [], []
    blocks = ((head, head, head_head), (head, tail, head_tail), (tail, head, head_tail), (tail, tail, tail_tail))
    for i, j, block in blocks:
        for a in (0, 1):
            for b in (0, 1):
                rows.append(2 * i + a)
                columns.append(2 * j + b)
                values.append(block * normal[:, a] * normal[:, b])
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    data = scipy.sparse.csr_matrix(entries, shape=(2 * count, 2 * count))
    pull = right.ravel() - data @ home.ravel()
    matrix = data + scipy.sparse.diags(weight.ravel())
    # Each vertex depends on few others, so conjugate gradients from the last place need only a handful of steps.
    scale = scipy.sparse.diags(1 / matrix.diagonal())
    pull[weight.ravel() == _FIXED] = 0
    move, _ = scipy.sparse.linalg.cg(matrix, pull, x0=(placed - home).ravel(), rtol=1e-4, maxiter=_STEPS, M=scale)
    return home + np.asarray(move, dtype=np.float64).reshape(-1, 2)
