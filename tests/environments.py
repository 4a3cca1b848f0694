"""Environments that some tests need and that are made once under ``build/``: ``python -m tests.environments``.

Tests make them too where they are missing; here their time is not that of a test.
"""

from __future__ import annotations

import time

from tests.cluster.environment import cluster_python
from tests.labelstudio.library.environment import library_python
from tests.labelstudio.live.environment import NoEnvironmentError, label_studio_python, label_studio_tables
from tests.labelstudio.live.s3 import s3_python
from tests.napari.qt_bindings import QtNotThere, environment_with

ENVIRONMENTS = {
    "Label Studio": lambda: label_studio_tables(label_studio_python()),
    "label-studio-ml": library_python,
    "moto": s3_python,
    "Ray": cluster_python,
    "PySide6": lambda: environment_with("pyside6"),
}


def main() -> None:
    """Make what is missing, and say how long it took; a test says what it misses."""
    begin = time.monotonic()
    for name, make in ENVIRONMENTS.items():
        start = time.monotonic()
        try:
            make()
        except (NoEnvironmentError, QtNotThere) as error:
            print(f"{name}: cannot be made ({error})", flush=True)
        else:
            print(f"{name}: ready in {time.monotonic() - start:.0f} s", flush=True)
    print(f"all environments: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
