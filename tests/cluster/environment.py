"""Ray and the libraries of object storage, in an environment of their own under ``build/``, made once.

They bring about 400 MB, and pin versions that differ from those that other tests run with. What the environment has
not got itself comes from the running Python's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.labelstudio.live.environment import REPOSITORY, python_with

__all__ = ["REPOSITORY", "cluster_python", "run_python"]

PACKAGES = ["ray==2.60.0", "s3fs==2026.9.0", "gcsfs==2026.10.1", "gcp-storage-emulator==2026.7.19"]
ENVIRONMENT_VARIABLE = "TCL_CLUSTER_ENV"


def cluster_python() -> Path:
    """Python of an environment with Ray; ``TCL_CLUSTER_ENV`` names one that exists already.

    Raises:
        NoEnvironmentError: it cannot be made.
    """
    return python_with(PACKAGES, f"cluster-{PACKAGES[0].replace('==', '-')}", ENVIRONMENT_VARIABLE, _see_packages)


def run_python(python: Path, words: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python of `cluster_python` on this checkout.

    Args:
        python: of the environment.
        words: what follows ``python`` on the command line.
        folder: where it runs.
        variables: environment variables besides the present ones.
    """
    return subprocess.run(
        [str(python), *words],
        cwd=folder,
        env=variables_for(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )


def variables_for(**variables: str) -> dict[str, str]:
    """Environment variables with which an environment's Python finds this checkout, and no credentials of the user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_", "FSSPEC_"))}
    own = {
        "PYTHONPATH": str(REPOSITORY),
        "AWS_EC2_METADATA_DISABLED": "true",
        # Ray's workers give way to every other process, so that beside other tests they would not come to their end.
        "RAY_worker_niceness": "0",
    }
    return {**kept, **own, **variables}


def _see_packages(folder: Path) -> None:
    (packages,) = folder.glob("lib/python3.*/site-packages")
    # After the environment's own, so that these win.
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "of_the_tests.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
