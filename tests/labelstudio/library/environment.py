"""An environment with the real ``label-studio-ml`` 1.0.9, made once under ``build/``, and its server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.labelstudio.live.environment import REPOSITORY, Process, python_with

__all__ = ["library_python", "library_server"]

VERSION = "1.0.9"
ENVIRONMENT_VARIABLE = "TCL_LABEL_STUDIO_ML_ENV"


def library_python() -> Path:
    """Python of an environment with ``label-studio-ml``; ``TCL_LABEL_STUDIO_ML_ENV`` names one that exists already.

    The library's own packages come first (it pins Flask 1.1.2 and Jinja2 3.0.3); what it does not bring, such as
    torch, is that of the environment in which the tests run.

    Raises:
        NoEnvironmentError: it cannot be made.
    """
    # It does not import before redis and rq are installed, which it does not ask for.
    packages = [f"label-studio-ml=={VERSION}", "redis", "rq"]
    return python_with(packages, f"label-studio-ml-{VERSION}", ENVIRONMENT_VARIABLE, _lend_packages)


def _lend_packages(folder: Path) -> None:
    (own,) = folder.glob("lib/python3.*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (own / "environment_of_the_tests.pth").write_text("\n".join(others) + "\n", encoding="utf-8")


def library_server(python: Path, folder: Path, port: int, variables: dict[str, str]) -> Process:
    """The library's own server with our adapter, made and started by its command line.

    Args:
        python: of its environment.
        folder: an empty folder.
        port: where it listens.
        variables: settings of the adapter.
    """
    (folder / "model.py").write_text("from labelstudio_backend.ml_adapter import TclModel\n", encoding="utf-8")
    # Its "start" calls whatever "python" is on the path.
    environment = {**os.environ, **variables, "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    program = str(python.with_name("label-studio-ml"))
    made = subprocess.run(
        [program, "init", "backend", "--script", "model.py:TclModel"],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    words = [program, "start", "backend", "--host", "127.0.0.1", "--port", str(port)]
    return Process(words, folder / "server.log", f"http://127.0.0.1:{port}/health", environment, folder)
