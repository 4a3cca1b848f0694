"""What runs a method's network: PyTorch as it is, PyTorch's compiler, or OpenVINO."""

from __future__ import annotations

from tcl_core.backends.base import BACKEND_VARIABLE, BACKENDS, Backend, Encoder
from tcl_core.backends.choice import available_backends, make_backend, select_backend

__all__ = [
    "BACKENDS",
    "BACKEND_VARIABLE",
    "Backend",
    "Encoder",
    "available_backends",
    "make_backend",
    "select_backend",
]
