"""How long regions and polygons take, and what a larger tolerance is worth.

Times are seconds of the processor in one thread, of :func:`tcl_core.regions.label_map_to_regions` from a label map to
regions with polygons. The same maps can be given to another revision, which runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import shapely
from numpy.typing import NDArray
from tqdm import tqdm

from tcl_core.benchmarks.scene_maps import scattered_map, street_map, tiny_map
from tcl_core.errors import SettingsError
from tcl_core.polygons import simplify_coverage
from tcl_core.polygons.arcs import faces_of
from tcl_core.polygons.rasterize import mask_iou, polygon_to_mask
from tcl_core.regions import label_map_to_regions
from tcl_core.specks import absorb_small
from tcl_core.types import Segmentation

__all__ = ["CASES", "Case", "CurveRow", "SpeedRow", "format_curve", "format_speed", "run_curve", "run_speed"]

CURVE = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Tolerances in pixels that the curve is drawn of."""

_CURVE_TARGETS = {5.0: (35.0, 0.94), 8.0: (25.0, 0.90)}
_SPECK = 64  # pixels; smaller regions are merged before the curve is measured
_OLD_MAPS = 3  # that an old revision is asked for, which may take minutes for one

# Arguments: files of label maps; prints the seconds that each takes. Old revisions know these names too.
_PROGRAM = """
import json, sys, time
from types import SimpleNamespace
import numpy as np
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Segmentation
vocabulary = SimpleNamespace(labels=tuple(SimpleNamespace(name=str(k)) for k in range(1, 256)))
seconds = []
for path in sys.argv[1:]:
    label_map = np.load(path)
    maps = Segmentation(label_map, np.full(label_map.shape, 0.5, np.float32), vocabulary)
    begin = time.process_time()
    label_map_to_regions(maps)
    seconds.append(time.process_time() - begin)
print(json.dumps(seconds))
"""


@dataclass(frozen=True)
class Case:
    """Label maps of one kind and the time they may take.

    Attributes:
        name: in the table.
        make: draws one.
        count: how many are measured.
        median: seconds that the median may take.
        worst: seconds that the slowest may take; ``None`` = any.
    """

    name: str
    make: Callable[[np.random.Generator], NDArray[np.int32]]
    count: int
    median: float
    worst: float | None = None

    def maps(self, seed: int, count: int) -> Iterator[NDArray[np.int32]]:
        """The first ``count`` maps."""
        for i in range(count):
            yield self.make(np.random.default_rng([seed, i]))


CASES = (
    Case("streets, 480 x 360", street_map, 40, 0.15, 0.6),
    Case("1 megapixel, 100 regions", lambda rng: scattered_map(rng, (1000, 1000), 99), 3, 0.4),
    Case("12 megapixels, 6 regions", lambda rng: scattered_map(rng, (3000, 4000), 5), 1, 2.0),
    Case("12 megapixels, 128 regions", lambda rng: scattered_map(rng, (3000, 4000), 127), 1, 4.0),
    Case("3,000 tiny regions", tiny_map, 3, 2.0),
)
"""What is measured, and the project's targets."""


@dataclass(frozen=True)
class SpeedRow:
    """Times of one case.

    Attributes:
        case: which.
        regions: median of how many regions a map has.
        seconds: of each map.
        old_seconds: what the other revision took for the first of them.
    """

    case: Case
    regions: float
    seconds: list[float]
    old_seconds: list[float]

    @property
    def ratio(self) -> float | None:
        """Time by the other revision's, over the maps that both were given."""
        if not self.old_seconds:
            return None
        return sum(self.seconds[: len(self.old_seconds)]) / max(sum(self.old_seconds), 1e-9)

    @property
    def met(self) -> bool:
        """Whether the targets are met."""
        slow = self.case.worst is not None and max(self.seconds) > self.case.worst
        return float(np.median(self.seconds)) <= self.case.median and not slow


@dataclass(frozen=True)
class CurveRow:
    """What polygons of one tolerance cost and keep, as means over all regions of street-like maps.

    Attributes:
        tolerance: in pixels.
        vertices: of our polygons, a region.
        iou: of our polygons, drawn by pycocotools.
        faults: maps whose polygons leave a gap, overlap or cross, as GEOS sees it.
        coverage: vertices and IoU of ``shapely.coverage_simplify``.
        single: vertices and IoU of Douglas-Peucker on each polygon by itself.
    """

    tolerance: float
    vertices: float
    iou: float
    faults: int
    coverage: tuple[float, float]
    single: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether the targets are met."""
        most, least = _CURVE_TARGETS.get(self.tolerance, (np.inf, 0.0))
        return self.vertices <= most and self.iou >= least and self.faults == 0


def run_speed(
    seed: int = 0, revision: str | None = None, progress: bool = True, cases: Sequence[Case] = CASES
) -> list[SpeedRow]:
    """Measure all cases.

    Args:
        seed: of the maps.
        revision: a git revision to compare with; this needs a checkout of the project.
        progress: show a progress bar.
        cases: what to measure.

    Returns:
        One row for each case.

    Raises:
        SettingsError: the revision cannot be measured.
    """
    rows = []
    with _tree(revision) as tree:
        for case in tqdm(cases, unit="case", disable=not progress):
            seconds, regions = [], []
            for label_map in case.maps(seed, case.count):
                took, count = _time(label_map)
                seconds.append(took)
                regions.append(count)
            old = [] if tree is None else _old_times(tree, case.maps(seed, min(case.count, _OLD_MAPS)))
            rows.append(SpeedRow(case, float(np.median(regions)), seconds, old))
    return rows


def run_curve(count: int = 20, seed: int = 0, progress: bool = True) -> list[CurveRow]:
    """Measure vertices and IoU at several tolerances.

    Args:
        count: street-like maps; regions under 64 pixels are merged into their surroundings.
        seed: of the maps.
        progress: show a progress bar.

    Returns:
        One row for each tolerance of :data:`CURVE`.
    """
    figures: dict[float, list[list[tuple[float, float]]]] = {tolerance: [[], [], []] for tolerance in CURVE}
    faults = dict.fromkeys(CURVE, 0)
    for i in tqdm(range(count), unit="map", disable=not progress):
        faces = faces_of(absorb_small(street_map(np.random.default_rng([seed, i])), _SPECK))
        exact = simplify_coverage(faces, 0)
        for tolerance in CURVE:
            polygons = simplify_coverage(faces, tolerance)
            faults[tolerance] += not (shapely.is_valid(polygons).all() and shapely.coverage_is_valid(polygons))
            others = shapely.coverage_simplify(exact, tolerance), shapely.simplify(exact, tolerance)
            for measured, several in zip(figures[tolerance], (polygons, *others), strict=True):
                measured += _vertices_and_iou(several, faces)
    means = {tolerance: [np.mean(one, axis=0) for one in three] for tolerance, three in figures.items()}
    return [
        CurveRow(
            tolerance,
            float(ours[0]),
            float(ours[1]),
            faults[tolerance],
            (float(coverage[0]), float(coverage[1])),
            (float(single[0]), float(single[1])),
        )
        for tolerance, (ours, coverage, single) in means.items()
    ]


def format_speed(rows: Sequence[SpeedRow], revision: str | None = None) -> str:
    """Lay the times out as text, one line for each case with its verdict."""
    old = "" if revision is None else f"  ratio to {revision}"
    lines = [f"{'':6} {'CPU seconds':28} {'maps':>5} {'regions':>8} {'median':>8} {'worst':>8}{old}"]
    for row in rows:
        case = row.case
        limit = f"at most {case.median:g}" + ("" if case.worst is None else f", worst {case.worst:g}")
        ratio = "" if row.ratio is None else f"  {row.ratio:.4f}"
        lines.append(
            f"{'met' if row.met else 'MISSED':6} {case.name:28} {len(row.seconds):5} {row.regions:8.0f} "
            f"{np.median(row.seconds):8.3f} {max(row.seconds):8.3f}{ratio}  ({limit})"
        )
    return "\n".join(lines)


def format_curve(rows: Sequence[CurveRow]) -> str:
    """Lay the curve out as text, one line for each tolerance with its verdict."""
    head = f"{'vertices':>9} {'IoU':>6}"
    lines = [
        f"{'':6} {'street-like maps':>16}  {'ours':^16} {'':7}  {'coverage_simplify':^16}  {'Douglas-Peucker':^16}",
        f"{'':6} {'tolerance in px':>16}  {head} {'faults':>7}  {head}  {head}",
    ]
    for row in rows:
        pairs = [f"{vertices:9.1f} {iou:6.3f}" for vertices, iou in (row.coverage, row.single)]
        most, least = _CURVE_TARGETS.get(row.tolerance, (None, None))
        limit = "" if most is None else f"  (at most {most:g}, at least {least:g})"
        lines.append(
            f"{'met' if row.met else 'MISSED':6} {row.tolerance:16g}  {row.vertices:9.1f} {row.iou:6.3f} "
            f"{row.faults:7}  {pairs[0]}  {pairs[1]}{limit}"
        )
    return "\n".join(lines)


def _time(label_map: NDArray[np.int32]) -> tuple[float, int]:
    labels = tuple(SimpleNamespace(name=str(k)) for k in range(1, int(label_map.max(initial=0)) + 1))
    scores = np.full(label_map.shape, 0.5, dtype=np.float32)
    segmentation = Segmentation(label_map, scores, SimpleNamespace(labels=labels))  # type: ignore[arg-type]
    begin = time.process_time()
    regions = label_map_to_regions(segmentation)
    return time.process_time() - begin, len(regions)


def _vertices_and_iou(polygons: NDArray[np.object_], faces: NDArray[np.int64]) -> list[tuple[float, float]]:
    counts = shapely.get_num_coordinates(polygons) - shapely.get_num_interior_rings(polygons) - 1
    masks = (polygon_to_mask(polygon, faces.shape) for polygon in polygons)
    ious = [mask_iou(mask, faces == face) for face, mask in enumerate(masks, 1)]
    return list(zip(counts.tolist(), ious, strict=True))


@contextmanager
def _tree(revision: str | None) -> Iterator[Path | None]:
    """A checkout of a revision in a temporary folder; ``None`` for none."""
    if revision is None:
        yield None
        return
    repository = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="polygons-of-revision-") as folder:
        archive, tree = Path(folder) / "tree.tar", Path(folder) / "tree"
        tree.mkdir()
        for command in (
            ["git", "-C", str(repository), "archive", "--output", str(archive), revision, "tcl_core"],
            ["tar", "-xf", str(archive), "-C", str(tree)],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                raise SettingsError(f"--against {revision}: {command[0]} cannot be run ({error})") from error
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise SettingsError(
                    f"--against {revision}: not found in a checkout of the project ({reason}); "
                    "give a revision of the repository that this program runs from"
                )
        yield tree


def _old_times(tree: Path, maps: Iterator[NDArray[np.int32]]) -> list[float]:
    paths = []
    for number, label_map in enumerate(maps):
        paths.append(tree.parent / f"{number}.npy")
        np.save(paths[-1], label_map)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, paths)],
        cwd=tree,
        env={**os.environ, **threads, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SettingsError(f"--against: the other revision cannot compute regions of the maps ({reason})")
    return [float(seconds) for seconds in json.loads(done.stdout.splitlines()[-1])]
