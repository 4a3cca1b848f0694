"""Checks of COCO files."""

from __future__ import annotations

from tcl_core.export.coco.validate.issues import CODES, Issue
from tcl_core.export.coco.validate.validate import validate_coco

__all__ = ["CODES", "Issue", "validate_coco"]
