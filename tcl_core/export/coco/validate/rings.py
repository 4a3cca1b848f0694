"""Whether a closed line crosses itself, as opposed to touching itself.

A bow-tie crosses itself; a keyhole bridge, walked there and back, only touches. `shapely` calls both invalid, so
where it does the line's passes through each point are looked at one by one, in exact arithmetic.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import shapely
from numpy.typing import NDArray

__all__ = ["first_crossing"]

Exact = tuple[Fraction, Fraction]
Pass = tuple[Exact, Exact]


def first_crossing(ring: NDArray[np.float64]) -> tuple[float, float] | None:
    """Find a point where a closed line goes through itself.

    Two passes cross at a point if the directions of one (where it comes from, where it goes to) lie on different
    sides of the other. Passes that share a direction lie on top of each other there, as the two ways of a bridge do,
    and do not count.

    Args:
        ring: float64 ``[n, 2]`` vertices (x, y), finite, n >= 3; the first may be repeated at the end.

    Returns:
        The point, or ``None``.

    Example:
        >>> first_crossing(np.array([[0, 0], [2, 2], [2, 0], [0, 2]], dtype=float))
        (1.0, 1.0)
    """
    points = _without_repeats(ring)
    if len(points) < 4 or shapely.Polygon(points).is_valid:
        return None
    starts, stops = points, np.roll(points, -1, axis=0)
    segments = shapely.linestrings(np.stack([starts, stops], axis=1))
    one, other = shapely.STRtree(segments).query(segments, predicate="intersects")
    one, other = one[one < other], other[one < other]
    exact = [(Fraction(float(x)), Fraction(float(y))) for x, y in points]
    n = len(exact)
    # Segments whose interior a vertex touches; passes are then compared vertex by vertex.
    through: dict[Exact, set[int]] = defaultdict(set)
    for i, j in zip(one.tolist(), other.tolist(), strict=True):
        a, b, c, d = exact[i], exact[(i + 1) % n], exact[j], exact[(j + 1) % n]
        sides = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
        if sides[0] * sides[1] < 0 and sides[2] * sides[3] < 0:
            return _meeting(a, b, c, d)
        for side, point, segment, (start, stop) in (
            (sides[0], c, i, (a, b)),
            (sides[1], d, i, (a, b)),
            (sides[2], a, j, (c, d)),
            (sides[3], b, j, (c, d)),
        ):
            if side == 0 and _strictly_between(start, stop, point):
                through[point].add(segment)
    passes: dict[Exact, list[Pass]] = defaultdict(list)
    for i, point in enumerate(exact):
        passes[point].append((exact[i - 1], exact[(i + 1) % n]))
    for point, indices in through.items():
        passes[point] += [(exact[i], exact[(i + 1) % n]) for i in sorted(indices)]
    for point, here in passes.items():
        if any(_cross(point, p, q) for k, p in enumerate(here) for q in here[:k]):
            return float(point[0]), float(point[1])
    return None


def _without_repeats(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    return ring[np.any(ring != np.roll(ring, 1, axis=0), axis=1)]


def _side(a: Exact, b: Exact, p: Exact) -> int:
    """Sign of the turn a, b, p."""
    area = (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])
    return (area > 0) - (area < 0)


def _strictly_between(a: Exact, b: Exact, p: Exact) -> bool:
    """Whether a point of the line through a and b lies inside the segment."""
    return p != a and p != b and min(a, b) < p < max(a, b)


def _meeting(a: Exact, b: Exact, c: Exact, d: Exact) -> tuple[float, float]:
    along = (b[0] - a[0], b[1] - a[1])
    across = (d[0] - c[0], d[1] - c[1])
    t = ((c[0] - a[0]) * across[1] - (c[1] - a[1]) * across[0]) / (along[0] * across[1] - along[1] * across[0])
    return float(a[0] + t * along[0]), float(a[1] + t * along[1])


def _cross(at: Exact, one: Pass, other: Pass) -> bool:
    """Whether one pass has an end on each side of the other, no direction being shared."""
    if _same_direction(at, *one) or any(_same_direction(at, p, q) for p in one for q in other):
        return False
    return _inside_turn(at, *one, other[0]) != _inside_turn(at, *one, other[1])


def _same_direction(at: Exact, p: Exact, q: Exact) -> bool:
    inner = (p[0] - at[0]) * (q[0] - at[0]) + (p[1] - at[1]) * (q[1] - at[1])
    return _side(at, p, q) == 0 and inner > 0


def _inside_turn(at: Exact, begin: Exact, end: Exact, p: Exact) -> bool:
    """Whether the direction of p is met on turning counter-clockwise from that of begin to that of end."""
    if _side(at, begin, end) > 0 or (_side(at, begin, end) == 0 and not _same_direction(at, begin, end)):
        # Less than or exactly half a turn; a straight pass has its left side inside.
        return _side(at, begin, p) > 0 and (_side(at, begin, end) == 0 or _side(at, p, end) > 0)
    return not (_side(at, end, p) > 0 and _side(at, p, begin) > 0)
