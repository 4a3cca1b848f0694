"""Segment images from text, and export masks as polygons and COCO.

Example::

    import tcl_core

    result = tcl_core.segment("room.jpg", {"Seat": ["chair", "sofa"], "Grass": "grass"}, model="playground")
    result.label_map, result.regions()
    result.save_coco("room.json")

**What is public.** The names on this page are the public API, as documented here; the changelog lists every change to
them. The base classes for extensions (methods, exporters, refiners and towers) are public too: `tcl_core.methods`,
`tcl_core.export.base`, `tcl_core.refinement.base` and `tcl_core.towers.base`. All other modules are documented for
contributors and may change in any version: `tcl_core.api`, `tcl_core.jobs`, `tcl_core.evaluation`,
`tcl_core.benchmarks`, `tcl_core.preview`, `tcl_core.models`, `tcl_core.segmentation`, `tcl_core.playground`,
`tcl_core.export`, `tcl_core.regions`, `tcl_core.polygons`, `tcl_core.refinement`, `tcl_core.towers`,
`tcl_core.vocabulary`, `tcl_core.images`, `tcl_core.types`, `tcl_core.cli`.

Importing this package loads nothing else; each name is imported on first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcl_core import errors
    from tcl_core.api.prelabeling import prelabel
    from tcl_core.api.results import Result, save_coco
    from tcl_core.api.segmenter import Segmenter
    from tcl_core.api.segmenting import clear_cache, segment
    from tcl_core.errors import (
        CocoError,
        ExportError,
        ImageError,
        SettingsError,
        TclError,
        VocabularyError,
        WeightsError,
    )
    from tcl_core.export.coco import validate_coco
    from tcl_core.images import load_image
    from tcl_core.models import fetch_model, list_models, load_model
    from tcl_core.types import Region, Segmentation
    from tcl_core.vocabulary import Label, Vocabulary

__version__ = "0.1.0"

__all__ = [
    "segment",
    "Result",
    "save_coco",
    "prelabel",
    "Segmenter",
    "Vocabulary",
    "Label",
    "Region",
    "Segmentation",
    "load_image",
    "load_model",
    "list_models",
    "fetch_model",
    "validate_coco",
    "clear_cache",
    "errors",
    "TclError",
    "ImageError",
    "VocabularyError",
    "WeightsError",
    "SettingsError",
    "ExportError",
    "CocoError",
]

_NAMES_OF_MODULES = {
    "tcl_core.api.prelabeling": ("prelabel",),
    "tcl_core.api.results": ("Result", "save_coco"),
    "tcl_core.api.segmenter": ("Segmenter",),
    "tcl_core.api.segmenting": ("clear_cache", "segment"),
    "tcl_core.errors": (
        "CocoError",
        "ExportError",
        "ImageError",
        "SettingsError",
        "TclError",
        "VocabularyError",
        "WeightsError",
    ),
    "tcl_core.export.coco": ("validate_coco",),
    "tcl_core.images": ("load_image",),
    "tcl_core.models": ("fetch_model", "list_models", "load_model"),
    "tcl_core.types": ("Region", "Segmentation"),
    "tcl_core.vocabulary": ("Label", "Vocabulary"),
}
_MODULES = {name: module for module, names in _NAMES_OF_MODULES.items() for name in names}


if not TYPE_CHECKING:
    # A type checker would conclude that every name exists.
    def __getattr__(name: str) -> Any:
        if name == "errors":
            return importlib.import_module("tcl_core.errors")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    # Modules that this file imports for its own use are not part of the API.
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
