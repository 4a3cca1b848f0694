"""The benchmark runs and measures what it says; how quick this machine is, is no matter of a test."""

from __future__ import annotations

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_benchmark(qt: None) -> None:
    from napari_tcl.benchmark import format_rows, run

    rows = run(runs=7)
    assert [row.what.split(",")[0] for row in rows] == [
        "longest gap of the event loop",
        "from Cancel to the end of the work",
        "threshold",
        "new prompt",
        "memory",
    ]
    assert format_rows(rows).count("\n") == len(rows) - 1
    assert all(row.beside for row in rows)
