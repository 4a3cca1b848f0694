from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from tcl_core.benchmarks.large_images import STAGES, SizeRow, draw_large_image, format_sizes, run_sizes
from tcl_core.errors import SettingsError


def test_images_show_the_same_at_every_size() -> None:
    small, large = draw_large_image(0.05), draw_large_image(0.8)
    assert small.shape[0] * small.shape[1] == pytest.approx(50_000, rel=0.01)
    assert large.shape[0] * large.shape[1] == pytest.approx(800_000, rel=0.01)
    one, other = (np.asarray(Image.fromarray(image).resize((64, 50)), dtype=int) for image in (small, large))
    assert np.abs(one - other).mean() < 3 < np.abs(one - other[::-1]).mean()
    assert np.array_equal(draw_large_image(0.05), small)


def test_ratios_compare_megapixels() -> None:
    rows = [SizeRow((1000, 1000 * k), k * 10**9, 3, dict.fromkeys(STAGES, float(k * k))) for k in (1, 2)]
    shown = format_sizes(rows).splitlines()
    assert shown[1].split()[-2:] == ["5.000", "1.00"] and shown[2].split()[-2:] == ["10.000", "2.00"]
    assert "2.00 GB" in shown[2]


def test_sizes_have_to_be_positive() -> None:
    with pytest.raises(SettingsError, match="above 0"):
        run_sizes("playground", [0.0])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not report the memory of processes")
def test_a_size_is_measured_in_processes_of_its_own() -> None:
    said: list[str] = []
    (row,) = run_sizes("playground", [0.05], progress=said.append)
    assert said == ["0.05 megapixels"] and row.regions > 5
    assert list(row.seconds) == list(STAGES) and min(row.seconds.values()) >= 0
    assert 50e6 < row.peak_bytes < 4e9
    with pytest.raises(SettingsError, match="no model and no file called 'none'"):
        run_sizes("none", [0.01])
