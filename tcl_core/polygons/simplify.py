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

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from tcl_core.polygons.arcs import EdgeGraph

__all__ = [
    "FittedArcs",
    "Runs",
    "best_lines",
    "join_following",
    "join_runs",
    "merge_runs",
    "merge_within",
    "solve_vertices",
    "straight_runs",
]

_FIELDS = ("arc", "first", "length", "mean", "scatter", "price")
_RAMP = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
_STAY = 1e-2  # weight of a vertex's first place, so that one between two collinear lines has a definite place
_FIXED = 1e7
_FARTHEST = 1.5  # pixels a vertex may leave its pixel corner
_STEPS = 60
_PRECISION = 1e-3


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
    count = len(runs.arc)
    kept = np.ones(count, dtype=bool)
    if count < 2:
        return runs
    length, mean, scatter, price = runs.length.copy(), runs.mean.copy(), runs.scatter.copy(), runs.price.copy()
    error = _line_error(scatter)
    # A merged run lives on at the place of its first part; the one after it is found by these.
    following = np.append(np.arange(1, count), 0)
    before = np.append(count, np.arange(count - 1))
    cost = np.full(count + 1, np.inf)  # of merging a run with the next one; the last entry stands for no run
    open_end = np.append(runs.arc[1:] != runs.arc[:-1], True)

    def price_of(index: NDArray[np.int64]) -> None:
        index = index[~open_end[index] & (price[index] > 0)]
        index = index[price[following[index]] > 0]
        after = following[index]
        merged, _, _ = _moments(length, mean, scatter, index, after)
        cost[index] = _line_error(merged) - error[index] - error[after]

    price_of(np.arange(count))
    for share in _RAMP:
        while True:
            cheap = np.flatnonzero(cost[:-1] < np.inf)
            cheap = cheap[cost[cheap] <= share * np.minimum(price[cheap], price[following[cheap]])]
            after = np.where(open_end[following[cheap]], count, following[cheap])
            chosen = cheap[(cost[cheap] < cost[before[cheap]]) & (cost[cheap] <= cost[after])]
            if len(chosen) == 0:
                break
            gone = following[chosen]
            scatter[chosen], mean[chosen], length[chosen] = _moments(length, mean, scatter, chosen, gone)
            error[chosen] = _line_error(scatter[chosen])
            price[chosen] = np.minimum(price[chosen], price[gone])
            open_end[chosen] = open_end[gone]
            kept[gone] = False
            following[chosen] = following[gone]
            inner = chosen[~open_end[chosen]]
            before[following[inner]] = inner
            cost[gone] = cost[chosen] = np.inf
            previous = before[chosen]
            previous = previous[previous < count]
            cost[previous] = np.inf
            price_of(np.concatenate([chosen, previous]))
    return Runs(runs.arc, runs.first, length, mean, scatter, price).select(kept)


def _moments(
    length: NDArray[np.float64],
    mean: NDArray[np.float64],
    scatter: NDArray[np.float64],
    one: NDArray[np.int64],
    two: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scatter, mean and length of pairs of runs together (parallel-axis rule)."""
    total = length[one] + length[two]
    share = length[two] / total
    dx, dy = (mean[two] - mean[one]).T
    weight = length[one] * share
    between = np.stack([dx * dx * weight, dx * dy * weight, dy * dy * weight], axis=1)
    return scatter[one] + scatter[two] + between, mean[one] + np.stack([dx * share, dy * share], axis=1), total


def join_runs(runs: Runs, others: Runs) -> Runs:
    """Put two disjoint sets of runs together in arc order."""
    order = np.argsort(np.concatenate([runs.first, others.first]), kind="stable")
    return Runs(*(np.concatenate([getattr(runs, n), getattr(others, n)])[order] for n in _FIELDS))


def join_following(runs: Runs, first: NDArray[np.int64]) -> Runs:
    """Merge each run in ``first`` with the next one; no run is in two pairs."""
    joined = Runs(*(getattr(runs, name).copy() for name in _FIELDS))
    moments = _moments(runs.length, runs.mean, runs.scatter, first, first + 1)
    joined.scatter[first], joined.mean[first], joined.length[first] = moments
    joined.price[first] = np.minimum(runs.price[first], runs.price[first + 1])
    kept = np.ones(len(runs.arc), dtype=bool)
    kept[first + 1] = False
    return joined.select(kept)


def best_lines(runs: Runs, first: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Best lines through runs and the next ones, by least squares.

    Args:
        runs: the runs.
        first: int64 ``[M]``, the first run of each pair.

    Returns:
        A point and the direction of each line, float64 ``[M, 2]``.
    """
    scatter, mean, _ = _moments(runs.length, runs.mean, runs.scatter, first, first + 1)
    xx, xy, yy = scatter.T
    angle = np.arctan2(2 * xy, xx - yy) / 2
    return mean, np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _line_error(scatter: NDArray[np.float64]) -> NDArray[np.float64]:
    """Summed squared distance to the best line: the scatter matrix's smaller eigenvalue."""
    xx, xy, yy = scatter.T
    larger = (xx + yy) / 2 + np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    # determinant / larger eigenvalue does not cancel for long thin runs, unlike the difference of roots
    return np.maximum((xx * yy - xy**2) / np.maximum(larger, 1e-12), 0)


def merge_within(runs: Runs, group: NDArray[np.int64]) -> Runs:
    """Merge runs like :func:`merge_runs`, but never runs of different groups.

    Args:
        runs: runs of any arcs.
        group: int64 ``[R]``, ascending; a group lies within one arc.
    """
    names, index = np.unique(group, return_inverse=True)
    arc = np.zeros(len(names), dtype=np.int64)
    arc[index] = runs.arc
    merged = merge_runs(replace(runs, arc=index))
    return replace(merged, arc=arc[merged.arc])


def solve_vertices(
    runs: Runs,
    head: NDArray[np.int64],
    tail: NDArray[np.int64],
    place: NDArray[np.float64],
    home: NDArray[np.float64],
    fixed: NDArray[np.bool_],
    passes: int,
) -> NDArray[np.float64]:
    """Places of vertices by least squares, so that every line is nearest to its run of pixel edges.

    Args:
        runs: the lines, all of them with a movable end.
        head: int64 ``[R]``, vertex where each line begins, numbered among the ``V`` that are passed here.
        tail: int64 ``[R]``, vertex where it ends.
        place: float64 ``[V, 2]``, places to begin with.
        home: float64 ``[V, 2]``, the vertices' pixel corners.
        fixed: bool ``[V, 2]``, coordinates that stay as they are in ``place``.
        passes: how often the lines' directions are taken anew.

    Returns:
        float64 ``[V, 2]``.
    """
    anchor = np.where(fixed, place, home)
    weight = np.where(fixed, _FIXED, _STAY)
    for _ in range(passes):
        solved = _solve(runs, head, tail, place, anchor, weight)
        move = solved - anchor
        far = np.hypot(move[:, 0], move[:, 1])
        solved = anchor + move * np.minimum(1, _FARTHEST / np.maximum(far, 1e-12))[:, None]
        place = np.where(fixed, place, solved)
    return place


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
    every = np.arange(2 * count)
    entries = (
        np.concatenate([*values, weight.ravel()]),
        (np.concatenate([*rows, every]), np.concatenate([*columns, every])),
    )
    matrix = scipy.sparse.csr_matrix(entries, shape=(2 * count, 2 * count))
    pull = right.ravel() - matrix @ home.ravel() + (weight * home).ravel()
    pull[weight.ravel() == _FIXED] = 0
    return home + _conjugate_gradients(matrix, pull, (placed - home).ravel()).reshape(-1, 2)


def _conjugate_gradients(
    matrix: scipy.sparse.csr_matrix, right: NDArray[np.float64], begin: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solve ``matrix @ x = right``, preconditioned by the diagonal.

    Each vertex depends on few others, so that a handful of steps is enough; scipy's own spends more time on its
    generality than on them.
    """
    x = begin.copy()
    scale = 1 / matrix.diagonal()
    residual = right - matrix @ x
    step = scale * residual
    energy = residual @ step
    enough = _PRECISION**2 * float(right @ (scale * right))
    direction = step
    for _ in range(_STEPS):
        if energy <= enough:
            break
        image = matrix @ direction
        length = energy / (direction @ image)
        x += length * direction
        residual -= length * image
        step = scale * residual
        before, energy = energy, residual @ step
        direction = step + energy / before * direction
    return x
