"""COCO: regions become annotations, annotations become a file, and any COCO file can be checked."""

from __future__ import annotations

from tcl_core.coco.export import categories_of, region_to_annotation, regions_to_annotations
from tcl_core.coco.findings import CODES, Finding
from tcl_core.coco.geometry import GEOMETRIES, Geometry
from tcl_core.coco.validate import validate_coco
from tcl_core.coco.writer import CocoJournal, PictureResult, coco_file_name, journal_path, write_coco_file

__all__ = [
    "CODES",
    "Finding",
    "validate_coco",
    "GEOMETRIES",
    "CocoJournal",
    "Geometry",
    "PictureResult",
    "categories_of",
    "coco_file_name",
    "journal_path",
    "region_to_annotation",
    "regions_to_annotations",
    "write_coco_file",
]
