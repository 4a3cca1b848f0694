"""Backends by name, and the one that ``auto`` means."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from pathlib import Path

import torch

from tcl_core.backends.base import BACKEND_VARIABLE, BACKENDS, Backend, CompiledBackend, TorchBackend
from tcl_core.devices import has_wide_vectors
from tcl_core.errors import SettingsError

__all__ = ["available_backends", "make_backend", "select_backend"]

# Linux alone has it; elsewhere allocators are not replaced this way.
_MAPPED = Path("/proc/self/maps")


def select_backend(name: str = "auto", device: torch.device | str = "cpu") -> str:
    """Turn a backend's name into one that this machine has.

    ``auto`` means what ``TCL_ANNOTATE_BACKEND`` names, where it is set. Otherwise it is the fastest of what is
    installed: OpenVINO on CPUs with AVX-512 or AMX, and PyTorch everywhere else; with AVX2 alone OpenVINO is no faster
    than PyTorch (see docs/speed.md). With another memory allocator OpenVINO ends the process, so ``auto`` is PyTorch.

    Args:
        name: ``auto``, ``torch``, ``compile`` or ``openvino``.
        device: where it will run.

    Raises:
        SettingsError: the name is unknown, or the backend is not installed or does not run on the device or in this
            process.

    >>> select_backend("torch")
    'torch'
    """
    kind = torch.device(device).type
    source = "--backend"
    if name == "auto":
        wanted = os.environ.get(BACKEND_VARIABLE) or "auto"
        if wanted == "auto":
            usable = kind == "cpu" and _has_openvino() and has_wide_vectors() and _other_allocator() is None
            return "openvino" if usable else "torch"
        name, source = wanted, BACKEND_VARIABLE
    if name not in BACKENDS:
        raise SettingsError(f"{source}: backend {name!r} is unknown; use auto, {', '.join(BACKENDS)}.")
    if name == "openvino" and kind != "cpu":
        if source == BACKEND_VARIABLE:
            # What auto means on one device is no order for another.
            return "torch"
        raise SettingsError(f"backend openvino runs on the CPU, not on {device}; use --device cpu or --backend torch.")
    if name == "openvino" and not _has_openvino():
        raise SettingsError(
            f"{source}: backend openvino is not installed; run pip install 'tcl-annotate[openvino]', or use --backend "
            "torch."
        )
    if name == "openvino" and (allocator := _other_allocator()) is not None:
        raise SettingsError(
            f"{source}: backend openvino crashes with the memory allocator {allocator}; take it out of LD_PRELOAD, or "
            "use --backend torch."
        )
    return name


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """Names of the backends that can be chosen on a device of this machine, without ``auto``.

    >>> available_backends("cpu")[0]
    'torch'
    """
    usable = torch.device(device).type == "cpu" and _has_openvino() and _other_allocator() is None
    return tuple(name for name in BACKENDS if name != "openvino" or usable)


def make_backend(name: str, folder: Path | None) -> Backend:
    """A backend.

    Args:
        name: from `select_backend`.
        folder: where exported networks are kept; ``None`` for nowhere.
    """
    if name == "openvino":
        from tcl_core.backends.openvino import OpenVinoBackend

        return OpenVinoBackend(folder)
    return CompiledBackend() if name == "compile" else TorchBackend()


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


@functools.cache
def _other_allocator() -> str | None:
    """Name of a library that replaces the system's memory allocator in this process, if there is one.

    OpenVINO's threads library takes memory from the system's allocator and gives it back to the other one.
    """
    try:
        mapped = _MAPPED.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"/(lib(?:jemalloc|tcmalloc|mimalloc|tbbmalloc_proxy)[^/\s]*)$", mapped, re.MULTILINE)
    return found[1] if found else None
