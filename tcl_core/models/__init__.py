"""Models: naming, fetching, importing and loading them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcl_core.models.loading import Model, load_model, model_from_file
    from tcl_core.models.registry import ModelRow, fetch_model, list_models
    from tcl_core.segmentation.preprocess import Preprocess

__all__ = ["Model", "ModelRow", "Preprocess", "fetch_model", "list_models", "load_model", "model_from_file"]

_MODULES = {
    "Model": "tcl_core.models.loading",
    "load_model": "tcl_core.models.loading",
    "model_from_file": "tcl_core.models.loading",
    "Preprocess": "tcl_core.segmentation.preprocess",
    "ModelRow": "tcl_core.models.registry",
    "fetch_model": "tcl_core.models.registry",
    "list_models": "tcl_core.models.registry",
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562), so that asking where models lie does not load the network's library.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
