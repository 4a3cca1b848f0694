"""Environments with which the running Python finds one Qt binding."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

__all__ = ["BINDINGS", "REPOSITORY", "QtNotThere", "environment_with"]

REPOSITORY = Path(__file__).parents[2]
BINDINGS = ("pyqt6", "pyside6")
_SECOND = REPOSITORY / "build" / "napari-pyside6"
_HIDE_FIRST = 'raise ImportError("hidden, so that nothing but PySide6 can be used")\n'


class QtNotThere(Exception):
    """A binding can be neither found nor installed; says why."""


def environment_with(binding: str) -> dict[str, str]:
    """Environment variables for a Python with one of `BINDINGS`.

    PyQt6 belongs to the test requirements. PySide6 is installed into a folder of its own, which also hides PyQt6;
    everything else (PyTorch, napari) is the running Python's.

    Raises:
        QtNotThere: PySide6 cannot be installed.
    """
    folders = [str(REPOSITORY)]
    if binding == "pyside6":
        _make_second()
        folders.append(str(_SECOND))
    return {**os.environ, "QT_API": binding, "PYTHONPATH": os.pathsep.join(folders)}


def _make_second() -> None:
    constraints = REPOSITORY / "constraints.txt"
    stamp = hashlib.sha256(f"{sys.executable} {sys.version}".encode() + constraints.read_bytes()).hexdigest()
    made = _SECOND / "made"
    _SECOND.parent.mkdir(exist_ok=True)
    with FileLock(_SECOND.with_suffix(".lock")):
        if made.is_file() and made.read_text() == stamp:
            return
        shutil.rmtree(_SECOND, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--constraint", str(constraints), "--target", str(_SECOND), "PySide6-Essentials"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise QtNotThere(f"PySide6 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        (_SECOND / "PyQt6").mkdir()
        (_SECOND / "PyQt6" / "__init__.py").write_text(_HIDE_FIRST)
        made.write_text(stamp)
