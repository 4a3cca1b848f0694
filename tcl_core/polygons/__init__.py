"""Polygons of the regions of a label map, which share their edges."""

from __future__ import annotations

from tcl_core.polygons.coverage import TOLERANCES, simplify_apart, simplify_coverage, tolerance_in_pixels

__all__ = ["TOLERANCES", "tolerance_in_pixels", "simplify_apart", "simplify_coverage"]
