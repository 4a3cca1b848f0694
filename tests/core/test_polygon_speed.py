from __future__ import annotations

import numpy as np
import pytest
import shapely

from tcl_core.benchmarks.polygon_speed import CASES, Case, format_curve, format_speed, run_curve, run_speed
from tcl_core.benchmarks.scene_maps import scattered_map, street_map, tiny_map
from tcl_core.errors import SettingsError
from tcl_core.polygons.arcs import faces_of

SMALL = Case("small", lambda rng: tiny_map(rng, (30, 40)), 3, 1e9)


@pytest.mark.slow
def test_scenes_have_as_many_regions_as_they_say():
    counts = [int(faces_of(street_map(np.random.default_rng([0, i]))).max()) for i in range(8)]
    assert 130 < np.median(counts) < 220
    areas = np.bincount(faces_of(street_map(np.random.default_rng(0))).ravel())[1:]
    assert (areas < 20).mean() > 0.5
    assert 2500 < faces_of(tiny_map(np.random.default_rng(0))).max() < 3600
    assert 80 < faces_of(scattered_map(np.random.default_rng(0), (500, 500), 99)).max() < 160


def test_times_have_a_verdict():
    (row,) = run_speed(cases=[SMALL], progress=False)
    assert len(row.seconds) == 3 and min(row.seconds) > 0 and row.ratio is None and row.met
    never = Case("never", SMALL.make, 1, 0.0)
    text = format_speed(run_speed(cases=[SMALL, never], progress=False))
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["met", "MISSED"]
    assert [case.median for case in CASES] == [0.15, 0.4, 2.0, 4.0, 2.0]


def test_an_unknown_revision_is_one_sentence():
    with pytest.raises(SettingsError, match="--against no-such-revision: not found"):
        run_speed(cases=[SMALL], revision="no-such-revision", progress=False)


@pytest.mark.slow
def test_the_curve_compares_with_geos():
    rows = run_curve(1, progress=False)
    assert [row.tolerance for row in rows] == [1, 2, 3, 5, 8]
    assert all(row.faults == 0 for row in rows)
    assert all(np.diff([row.vertices for row in rows]) < 0)
    assert len(format_curve(rows).splitlines()) == 7
    assert shapely.geos_version >= (3, 12)


@pytest.mark.slow
def test_the_curve_meets_its_targets():
    # A sample: `tcl-annotate benchmark polygons` measures 20 maps.
    rows = run_curve(3, progress=False)
    assert [row.tolerance for row in rows if not row.met] == [], format_curve(rows)
