"""Text-grounded masks, their polygons and their COCO export.

    >>> import tcl_core
    >>> result = tcl_core.segment("room.jpg", {"Seat": ["chair", "sofa"], "Grass": "grass"})  # doctest: +SKIP
    >>> result.save_coco("room.json")  # doctest: +SKIP

**What is public.** The names on this page are: a change that breaks code which uses them is announced in the changelog
one version before, with a warning where the old form is used. So are, for packages that bring a method, an exporter or
a refiner, the contracts in `tcl_core.methods`, `tcl_core.export.base`, `tcl_core.refinement.base` and
`tcl_core.towers.base`. Every other module is documented for those who work on it, and may change in any version.

Importing this package loads none of it: each name is looked up when it is first used (PEP 562).
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
    "CocoError",
    "ExportError",
    "ImageError",
    "Label",
    "Region",
    "Result",
    "Segmentation",
    "Segmenter",
    "SettingsError",
    "TclError",
    "Vocabulary",
    "VocabularyError",
    "WeightsError",
    "clear_cache",
    "errors",
    "fetch_model",
    "list_models",
    "load_image",
    "load_model",
    "prelabel",
    "save_coco",
    "segment",
    "validate_coco",
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


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("tcl_core.errors")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    # What is imported above for its own use is nobody else's.
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
