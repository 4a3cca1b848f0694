"""The methods: each is a module or package in this folder that registers its class."""

from __future__ import annotations

import importlib
import pkgutil

from tcl_core.methods.base import Background, Features, Method, PromptEmbeddings
from tcl_core.methods.options import MethodOptions, option
from tcl_core.methods.registry import (
    create_method,
    list_methods,
    method_class,
    needs_weights,
    refuse_without_weights,
    register_method,
    runs_on_a_clip,
)

__all__ = [
    "Background",
    "Features",
    "Method",
    "MethodOptions",
    "PromptEmbeddings",
    "create_method",
    "list_methods",
    "method_class",
    "needs_weights",
    "option",
    "refuse_without_weights",
    "register_method",
    "runs_on_a_clip",
]

# A new paper is one new file here; looking them up keeps it so.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
