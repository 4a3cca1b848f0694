"""Runs the cases of the widget in a process of their own: what goes wrong in a graphics driver ends that one only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("window_cases.py")
_PATIENCE = 3000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cases_in_a_window(display: dict[str, str], tmp_path: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "cases"), str(CASES)]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *words],
        cwd=CASES.parents[2],
        capture_output=True,
        encoding="utf-8",
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
