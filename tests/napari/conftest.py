"""Fixtures of the napari plugin's tests: a display, a viewer in a real window, small models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.models import Model, load_model
from tcl_core.segmenter import Segmenter

if TYPE_CHECKING:
    from napari import Viewer

# Programs that import Qt at once; where Qt cannot be loaded the tests are skipped, and nothing else may import it.
collect_ignore = ["scenario.py", "steps.py"]

_SCREEN = "1400x900x24"
_PROBE = "import napari; napari.Viewer(show=True).close()"
_PROBE_SECONDS = 900
_SWITCH = "TCL_NAPARI_WINDOWS"


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
def display(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment variables with which viewers can be opened."""
    if os.environ.get(_SWITCH) != "1":
        pytest.skip(f"opens real napari windows, which is not repeatable enough for every run: {_SWITCH}=1 runs it")
    with x_server() as variables:
        home = tmp_path_factory.mktemp("napari")
        variables["NAPARI_CONFIG"] = str(home / "settings.yaml")
        # In a process of its own, for Qt ends the process where a library of the system is missing.
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, **variables},
            capture_output=True,
            encoding="utf-8",
            timeout=_PROBE_SECONDS,
        )
        if probe.returncode:
            last = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
            pytest.skip(f"napari cannot open a window here: {last}")
        yield variables


@contextmanager
def x_server() -> Iterator[dict[str, str]]:
    """Start an X server, where windows need one."""
    if sys.platform != "linux":
        yield {}
        return
    if shutil.which("Xvfb") is None:
        if os.environ.get("DISPLAY"):
            yield {"QT_QPA_PLATFORM": "xcb"}
            return
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


@pytest.fixture(scope="session")
def qt(display: dict[str, str]) -> Iterator[None]:
    """This process, ready to make viewers, with napari's settings of the user out of the way."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in display.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def viewer(qt: None) -> Iterator[Viewer]:
    """A viewer in a real window, closed after the test."""
    import napari

    made = napari.Viewer(show=True)
    yield made
    made.close()
