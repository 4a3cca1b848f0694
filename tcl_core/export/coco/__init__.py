"""COCO: regions become annotations, annotations become a file, and any COCO file can be checked."""

from __future__ import annotations

from tcl_core.export.coco.annotations import categories_of, region_to_annotation, regions_to_annotations
from tcl_core.export.coco.exporter import CocoExporter
from tcl_core.export.coco.geometry import GEOMETRIES, Geometry
from tcl_core.export.coco.validate import validate_coco
from tcl_core.export.coco.validate.issues import CODES, Issue
from tcl_core.export.coco.writer import CocoFile, ImageResult, coco_file_name, write_coco_file

__all__ = [
    "CODES",
    "Issue",
    "validate_coco",
    "GEOMETRIES",
    "CocoExporter",
    "CocoFile",
    "Geometry",
    "ImageResult",
    "categories_of",
    "coco_file_name",
    "region_to_annotation",
    "regions_to_annotations",
    "write_coco_file",
]
