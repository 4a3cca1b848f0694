"""CoDe, "Image-Text Co-Decomposition for Text-Supervised Semantic Segmentation" (arXiv 2404.04231)."""

from __future__ import annotations

from tcl_core.methods.code.config import CoDeConfig
from tcl_core.methods.code.model import CoDe, CoDePrompts

__all__ = ["CoDe", "CoDeConfig", "CoDePrompts"]
