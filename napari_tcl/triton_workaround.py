"""Lets PyTorch's compiler and the graphics driver, each with an LLVM of its own, live in one process.

PyTorch's builds for CUDA bring Triton; Mesa's software renderer and its drivers for AMD load the system's LLVM. That
one is visible to whatever is loaded later. A Triton that is loaded after a window was drawn, as happens when a plugin
is opened, binds to the wrong LLVM and ends the process, unless it is told to prefer its own symbols.

Importing this module is enough. Whatever napari imports of this package does so before it imports PyTorch.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

__all__ = ["load_triton"]


def load_triton() -> None:
    """Load Triton, if there is one, such that it uses its own LLVM; before anything else loads it."""
    if not hasattr(os, "RTLD_DEEPBIND"):
        # Not Linux: there libraries find their own symbols first anyway, and Triton is not part of PyTorch.
        return
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags | os.RTLD_DEEPBIND)
    try:
        with suppress(ImportError):
            import triton  # noqa: F401
    finally:
        sys.setdlopenflags(flags)


load_triton()
