"""MGCA-style training: objects, parts and pixels aligned with captions, after what is known of arXiv 2403.03707.

The paper's body could not be read, so that this is not a reproduction of it; ``docs/mgca.md`` says what is known, what
is second-hand, and what this project chose.
"""

from __future__ import annotations

from tcl_core.methods.mgca.config import MGCAStyleConfig
from tcl_core.methods.mgca.model import MGCAStyle

__all__ = ["MGCAStyle", "MGCAStyleConfig"]
