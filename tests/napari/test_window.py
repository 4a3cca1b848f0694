"""The whole way in a real window, with PyQt6 and with PySide6."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.napari.pictures_of_steps import STEPS

REPOSITORY = Path(__file__).parents[2]
SECOND = REPOSITORY / "build" / "napari-pyside6"
_PATIENCE = 1500

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def python_with(binding: str) -> Path:
    """A Python with a Qt binding; for PySide6 a small environment that borrows all else from the running one."""
    if binding == "pyqt6":
        return Path(sys.executable)
    SECOND.parent.mkdir(exist_ok=True)
    with FileLock(SECOND.with_suffix(".lock")):
        constraints = REPOSITORY / "constraints.txt"
        stamp = hashlib.sha256(f"{sys.executable} {sys.version}".encode() + constraints.read_bytes()).hexdigest()
        made = SECOND / "made"
        python = SECOND / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if not (made.is_file() and made.read_text() == stamp):
            shutil.rmtree(SECOND, ignore_errors=True)
            venv.create(SECOND, with_pip=True)
            words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", constraints]
            done = subprocess.run([python, *words, "PySide6-Essentials"], capture_output=True, encoding="utf-8")
            if done.returncode:
                pytest.skip(f"PySide6 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
            (site,) = SECOND.glob("Lib/site-packages" if os.name == "nt" else "lib/*/site-packages")
            (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
            made.write_text(stamp)
        return python


@pytest.mark.parametrize("binding", ["pyqt6", "pyside6"])
def test_from_sample_to_coco(binding: str, display: dict[str, str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        **display,
        "QT_API": binding,
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        [python_with(binding), "-m", "tests.napari.scenario", tmp_path],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.lower().startswith(binding)
    for step in STEPS:
        with Image.open(tmp_path / f"napari-{step}.png") as picture:
            assert min(picture.size) > 500
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 100
