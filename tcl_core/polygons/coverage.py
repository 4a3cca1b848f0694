"""Polygons of all pieces of a label map, simplified together so that neighbors keep one shared border.

Why not ``shapely.coverage_simplify`` alone: it removes pixel corners by the area of their triangle
(Visvalingam-Whyatt) and leaves the others where they are. On the label maps of
``tcl-annotate benchmark polygons`` that takes as many vertices as Douglas-Peucker on each contour alone for the
same IoU (0.8 times as many if the staircase's corners are cut first), and its one tolerance cannot spare a small
region. So the arcs between faces are fitted here, each once for both its neighbors: lines by least squares
(:mod:`tcl_core.polygons.simplify`), pushed past the pixels they misplace
(:mod:`tcl_core.polygons.vertex_refinement`), and taken together where the tolerance can spare vertices
(:mod:`tcl_core.polygons.coarsening`). What is wrong is mended where it is wrong (:mod:`tcl_core.polygons.fitting`), at
worst by the exact pixel edges; GEOS and pycocotools have the last word (:mod:`tcl_core.polygons.coverage_check`).
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from tcl_core.errors import SettingsError
from tcl_core.polygons.arcs import trace_edges
from tcl_core.polygons.coverage_check import CoverageCheck
from tcl_core.polygons.fitting import fit_coverage
from tcl_core.polygons.run_map import RunMap

__all__ = ["TOLERANCES", "tolerance_in_pixels", "simplify_apart", "simplify_coverage"]

TOLERANCES = {"exact": 0.0, "fine": 0.5, "default": 1.0, "easy-to-edit": 5.0}
"""Words for the tolerance setting, in pixels."""

_STAIRCASE = 0.5  # pixels that half the corners of a slanting edge lie off it, on either side
_SHARE_OF_WIDTH = 0.12  # an outline that moves by so much of area / length costs a region about 2 % of its IoU
_SHARE_GROWTH = 0.85  # power of the tolerance that this grows with


def tolerance_in_pixels(tolerance: str | float) -> float:
    """Read the tolerance setting: about how far, in pixels, an edge may move off the pixel staircase.

    Args:
        tolerance: ``"exact"`` (0, the pixel edges), ``"fine"`` (0.5), ``"default"`` (1), ``"easy-to-edit"`` (5, few
            enough vertices to drag by hand), or a number of pixels from 0 up, also as text.

    Returns:
        Pixels.

    Raises:
        SettingsError: an unknown name, or a number that is negative or not finite.

    Examples:
        >>> tolerance_in_pixels("default"), tolerance_in_pixels(0.25), tolerance_in_pixels("easy-to-edit")
        (1.0, 0.25, 5.0)
    """
    if isinstance(tolerance, str):
        if tolerance in TOLERANCES:
            return TOLERANCES[tolerance]
        try:
            tolerance = float(tolerance)
        except ValueError:
            names = ", ".join(TOLERANCES)
            raise SettingsError(f"tolerance: {tolerance!r} is not known; give {names}, or a number of pixels") from None
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise SettingsError(f"tolerance: {tolerance} is out of range; give a number of pixels, 0 (exact) or more")
    return float(tolerance)


def simplify_coverage(
    faces: NDArray[np.int64] | RunMap,
    tolerance: str | float = "default",
    *,
    wanted: NDArray[np.bool_] | None = None,
) -> NDArray[np.object_]:
    """Polygons of all faces of an image, which share their borders exactly.

    ``tolerance`` is approximately how far an outline may move off the pixel edges. Two limits give small and thin
    regions a smaller tolerance:

    * At a tolerance of one pixel, no wanted region loses more than 2 % of its IoU, counted at pixel centers, or 4 % as
      drawn by pycocotools, which rounds. The limit grows slightly slower than the tolerance, up to 25 %. For a region
      under 64 pixels it is larger by the square root of 64 / area.
    * No polygon extends beyond its region's bounding box by more than the tolerance, nor by more than 5 % of the box's
      width (height for the top and bottom), rounded down to whole pixels, plus 0.65 pixels, or 0.45 pixels at
      tolerances above 1.

    The outer frame stays straight. The background is part of the coverage, so its borders follow the same rule.

    Args:
        faces: int64 ``[H, W]`` from :func:`tcl_core.polygons.arcs.faces_of`, or its runs.
        tolerance: a word or pixels, see :func:`tolerance_in_pixels`.
        wanted: bool ``[faces]``, faces whose IoU is held (``None`` = all); entry ``f - 1`` is face ``f``.

    Returns:
        Shapely polygons, valid, with holes; entry ``f - 1`` is face ``f``. Together they are a valid coverage of the
        image without gap or overlap.

    Raises:
        SettingsError: see :func:`tolerance_in_pixels`.
    """
    pixels = tolerance_in_pixels(tolerance)
    runs = faces if isinstance(faces, RunMap) else RunMap.of(faces)
    if len(runs.starts) == 0:
        return np.empty(0, dtype=object)
    graph = trace_edges(runs)
    faces_there = int(max(graph.left.max(), graph.right.max()))
    held = np.ones(faces_there, dtype=bool) if wanted is None else wanted
    return fit_coverage(CoverageCheck.of(graph, runs, held, pixels))


def simplify_apart(
    faces: NDArray[np.int64] | RunMap, tolerance: str | float, wanted: NDArray[np.bool_]
) -> NDArray[np.object_]:
    """Polygons of some faces, each simplified by itself (Douglas-Peucker), for answers that somebody waits for.

    Neighbors share no border, and polygons take more vertices for the same IoU; in return this costs about a tenth
    of :func:`simplify_coverage`. Small and thin regions are kept with a smaller tolerance.

    Args:
        faces: int64 ``[H, W]`` from :func:`tcl_core.polygons.arcs.faces_of`, or its runs.
        tolerance: a word or pixels, see :func:`tolerance_in_pixels`.
        wanted: bool ``[faces]``; entry ``f - 1`` is face ``f``.

    Returns:
        Shapely polygons, valid, with holes; ``None`` for faces that are not wanted.

    Raises:
        SettingsError: see :func:`tolerance_in_pixels`.
    """
    pixels = tolerance_in_pixels(tolerance)
    polygons = np.full(len(wanted), None, dtype=object)
    if not wanted.any():
        return polygons
    graph = trace_edges(faces)
    exact = graph.polygons(graph.points.astype(np.float64), graph.starts)[wanted]
    farthest = pixels + _STAIRCASE if pixels else 0.0
    share = _SHARE_OF_WIDTH * max(1.0, pixels**_SHARE_GROWTH)
    distance = np.minimum(farthest, share * shapely.area(exact) / shapely.length(exact))
    found, fine = _simplify_rings(exact, distance)
    # Watching over crossings costs many times the rest, and few outlines need it.
    found[~fine] = shapely.simplify(exact[~fine], distance[~fine], preserve_topology=True)
    polygons[wanted] = found
    return polygons


def _simplify_rings(
    exact: NDArray[np.object_], distance: NDArray[np.float64]
) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Polygons whose rings are simplified one by one, and which of them are still polygons with all their rings."""
    rings, owner = shapely.get_rings(exact, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    lines = shapely.linestrings(points, indices=ring)
    simple = shapely.simplify(lines, distance[owner], preserve_topology=False)
    collapsed = shapely.get_num_coordinates(simple) < 4
    simple[collapsed] = lines[collapsed]
    rings_end = np.cumsum(shapely.get_num_coordinates(simple))
    polygons_end = np.cumsum(np.bincount(owner, minlength=len(exact)))
    polygons: NDArray[np.object_] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        shapely.get_coordinates(simple),
        (np.append(0, rings_end), np.append(0, polygons_end)),
    )
    fine = shapely.is_valid(polygons)
    fine[owner[collapsed]] = False
    return polygons, fine
