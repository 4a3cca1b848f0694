"""The old place of two functions of :mod:`tcl_core.models.paths`."""

from __future__ import annotations

from tcl_core.models.paths import file_sha256, write_atomically

__all__ = ["file_sha256", "write_atomically"]
