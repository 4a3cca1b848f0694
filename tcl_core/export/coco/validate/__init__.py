"""Checks of COCO files."""

from __future__ import annotations

from tcl_core.export.coco.validate.issues import CODES, WARNINGS, Issue, IssueGroup, group_issues
from tcl_core.export.coco.validate.kinds import Kind
from tcl_core.export.coco.validate.validate import CocoCheck, check_coco, validate_coco

__all__ = [
    "CODES",
    "WARNINGS",
    "CocoCheck",
    "Issue",
    "IssueGroup",
    "Kind",
    "check_coco",
    "group_issues",
    "validate_coco",
]
