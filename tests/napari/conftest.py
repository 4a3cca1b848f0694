"""Fixtures of the napari plugin's tests: a display, a small model, an image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.missing import missing

# Programs that import Qt at once; where Qt cannot be loaded the tests are skipped, and nothing else may import it.
collect_ignore = ["case_server.py", "scenario.py"]

_SCREEN = "1400x900x24"


@pytest.fixture(scope="session")
def display() -> Iterator[dict[str, str]]:
    """Environment variables of an X server that windows can be opened on."""
    if sys.platform != "linux":
        pytest.skip("the tests in windows run on Linux only")
    if shutil.which("Xvfb") is None:
        missing("windows need an X server: install Xvfb (Debian and Ubuntu: apt-get install xvfb)")
    # Even beside a desktop: windows that pop up would disturb, and the screenshots need a known size.
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
