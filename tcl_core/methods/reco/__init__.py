"""ReCo-style: retrieve and co-segment in the user's own unlabeled images (arXiv 2206.07045)."""

from __future__ import annotations

from tcl_core.methods.reco.config import ReCoConfig, ReCoOptions
from tcl_core.methods.reco.fitting import CONTEXTS, Archive, Fitting, MemoryArchive, Retrieved, WordFit
from tcl_core.methods.reco.model import ReCo

__all__ = [
    "CONTEXTS",
    "Archive",
    "Fitting",
    "MemoryArchive",
    "ReCo",
    "ReCoConfig",
    "ReCoOptions",
    "Retrieved",
    "WordFit",
]
