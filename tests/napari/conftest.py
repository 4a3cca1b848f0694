"""Fixtures of the napari plugin's tests: a display, a small model, a picture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.models import Model, load_model
from tcl_core.segmenter import Segmenter

# Programs that import Qt at once; where Qt cannot be loaded the tests are skipped, and nothing else may import it.
collect_ignore = ["case_server.py", "scenario.py"]

_SCREEN = "1400x900x24"


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(tiny_model: Model) -> Segmenter:
    return Segmenter(tiny_model, batch_size=1)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A picture with large coloured blocks, so that a random model finds several regions."""
    blocks = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, axis=0).repeat(16, axis=1))


@pytest.fixture(scope="session")
def display() -> Iterator[dict[str, str]]:
    """Environment variables of an X server that windows can be opened on."""
    if sys.platform != "linux":
        pytest.skip("the tests in windows run on Linux only")
    if shutil.which("Xvfb") is None:
        pytest.skip("windows need an X server: install Xvfb (Debian and Ubuntu: apt-get install xvfb)")
    # Even beside a desktop: windows that pop up would disturb, and the pictures need a known size.
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", _SCREEN, "+extension", "GLX", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            number = pipe.readline().strip()
        assert number, f"Xvfb ended with {server.wait(10)}"
        yield {"DISPLAY": f":{number}", "QT_QPA_PLATFORM": "xcb"}
    finally:
        server.terminate()
        server.wait(30)
