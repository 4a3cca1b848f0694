"""The API reference is made from the docstrings without a complaint."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tcl_core
from tests.docs.pages import REPOSITORY


@pytest.mark.slow
def test_reference_is_built_without_warnings(tmp_path: Path) -> None:
    words = [sys.executable, "docs/build_reference.py", str(tmp_path), "--no-source"]
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    sources = [path.relative_to(REPOSITORY).with_suffix("") for path in (REPOSITORY / "tcl_core").rglob("*.py")]
    public = [path for path in sources if not any(part.startswith("_") for part in path.parts)]
    assert len(public) > 30
    assert not [path for path in public if not (tmp_path / f"{path}.html").exists()]
    assert not list(tmp_path.rglob("_*.html"))
    # Its first page says what is public: every name that the package has by itself, and no other.
    first = (tmp_path / "tcl_core.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<section id="(\w+)"', first)) == {*tcl_core.__all__} - {"errors"}
