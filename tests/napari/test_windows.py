"""The widget in real windows, each in a process of its own: every case with PyQt6, one whole pass with PySide6 too."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.missing import missing
from tests.napari.images_of_steps import STEPS
from tests.napari.qt_bindings import BINDINGS, REPOSITORY, QtNotThere, environment_with

CASES = Path(__file__).with_name("windows")
_CASE_SECONDS, _SCENARIO_SECONDS = 600, 1500
_PROBE = "import napari; napari.Viewer(show=True).close()"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def case_names() -> list[str]:
    """All cases as ``FILE::NAME``, found without importing them, which needs Qt."""
    return [
        f"{path.name}::{node.name}"
        for path in sorted(CASES.glob("cases_*.py"))
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(f"windows, {name}")) for name in BINDINGS]
)
def binding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def environment(binding: str, display: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with which napari opens windows."""
    try:
        variables = {**environment_with(binding), **display, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    except QtNotThere as reason:
        missing(str(reason))
    # The user's settings stay out of the way.
    variables["NAPARI_CONFIG"] = str(tmp_path_factory.mktemp("napari") / "settings.yaml")
    variables["TCL_ANNOTATE_CONFIG"] = str(tmp_path_factory.mktemp("config"))
    # Without this plugin, so that what is wrong with it is no reason to skip.
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], env=variables, capture_output=True, encoding="utf-8", timeout=_CASE_SECONDS
    )
    if probe.returncode:
        said = [line for line in probe.stderr.splitlines() if line.strip()] or [f"exit code {probe.returncode}"]
        missing(f"napari cannot open a window with {binding} here: {' / '.join(said[-3:])}")
    return variables


class Server:
    """Runs cases, see ``tests.napari.case_server``."""

    def __init__(self, environment: dict[str, str], errors: Path) -> None:
        self.errors = errors
        with open(errors, "w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.napari.case_server"],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                encoding="utf-8",
            )

    def run(self, case: str, folder: Path) -> tuple[int, str]:
        """The exit code and the output of a case."""
        assert self._process.stdin is not None and self._process.stdout is not None
        output = folder / "output.txt"
        arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
        arguments += ["--basetemp", str(folder / "case"), str(CASES / case)]
        wish = {"arguments": arguments, "output": str(output), "seconds": _CASE_SECONDS}
        print(json.dumps(wish), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, self.errors.read_text()
        return int(answer), output.read_text(errors="replace")

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def server(environment: dict[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        made = Server(environment, Path(folder) / "errors.txt")
        yield made
        made.close()


@pytest.mark.parametrize("binding", BINDINGS[:1], indirect=True)
@pytest.mark.parametrize("case", case_names())
@pytest.mark.xdist_group(f"windows, {BINDINGS[0]}")
def test_case(case: str, server: Server, tmp_path: Path) -> None:
    code, output = server.run(case, tmp_path)
    assert code == 0, f"exit code {code}\n{output}"


def test_from_sample_to_coco(binding: str, environment: dict[str, str], tmp_path: Path) -> None:
    """A process from napari's begin to its end, as a user has it."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", "tests.napari.scenario", tmp_path],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=_SCENARIO_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.lower().startswith(binding)
    for step in STEPS:
        with Image.open(tmp_path / f"napari-{step}.png") as image:
            assert min(image.size) > 500
            colors = image.getcolors()
            assert colors is not None and len(colors) > 100
