"""Runs cases of the widget, each in a process of its own: ``python -m tests.napari.case_server``.

A viewer that was closed leaves objects behind whose OpenGL buffers Python frees at any time, then perhaps in the next
viewer's context, which can crash it. A process for each viewer rules that out; that it is forked from one that has
everything imported makes it cheap.

Each line of the input is a JSON object with pytest's ``arguments``, a file for the ``output`` and the ``seconds`` after
which the case is ended. Each line of the output is an exit code.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import sys

import pytest

__all__ = ["serve"]

_MODULES = (
    "hypothesis",
    "napari._qt._qapp_model.qactions",
    "napari._qt._qplugins",
    "napari._qt.layer_controls.qt_layer_controls_container",
    "napari._qt.qt_main_window",
    "napari.window",
    "napari_tcl.widget",
    "pint",
    "skimage.color",
    "tcl_core.models",
    "tests.napari.windows.conftest",
    "tests.tiny_model",
)
"""What most cases import."""


def serve() -> None:
    """Run what the input asks for until it ends."""
    for name in _MODULES:
        importlib.import_module(name)
    # Its units are read from a file, which takes a second.
    sys.modules["pint"].application_registry.meter  # noqa: B018
    # The cases do not search for garbage among what is there now.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        wish = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(wish["arguments"], wish["output"], wish["seconds"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(arguments: list[str], output: str, seconds: float) -> None:
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, sys.stdout.fileno())
    os.dup2(out, sys.stderr.fileno())
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds, exit=True)
    code = pytest.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: the server's own ending is not the case's.
    os._exit(code)


if __name__ == "__main__":
    serve()
