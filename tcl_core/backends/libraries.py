"""OpenVINO and NNCF, imported when they are needed, and without their statistics of use."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

__all__ = ["nncf_library", "openvino_library", "quantizer_version"]

_TELEMETRY = "openvino_telemetry"


@cache
def openvino_library() -> Any:
    """OpenVINO (extra ``openvino``)."""
    with _without_telemetry():
        import openvino
    return openvino


@cache
def nncf_library() -> Any:
    """NNCF (extra ``int8``), which quantizes OpenVINO's networks."""
    openvino_library()
    with _without_telemetry():
        import nncf
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantizer_version() -> str:
    """The version of NNCF, which is not imported for that."""
    return version("nncf")


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Both report their use to Google Analytics unless a file in the home folder declines; they do without the package.

    Where another program has loaded the package already, it was asked before.
    """
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[_TELEMETRY]
        if before is not None:
            sys.modules[_TELEMETRY] = before
