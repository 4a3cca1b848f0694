"""tcl-annotate in napari: type a label, see the mask, correct it, export COCO.

The parts below need neither napari nor Qt and serve notebooks too: an `ImageSession` encodes an image once and
segments it as often as labels change, an `Annotation` keeps corrections and accepted regions apart from what the model
proposes, and `export_coco` writes label maps. `SliceReader` makes RGB images of stacks, channels and deep grays, and
a `FolderJob` processes many images.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_tcl.annotation import Annotation, LabelMap
    from napari_tcl.export import AnnotatedImage, export_coco, regions_of
    from napari_tcl.folder import FolderJob, ImageState
    from napari_tcl.slices import Index, SliceReader
    from tcl_core.segmentation.session import ImageSession, Progress, ProgressCallback

__all__ = [
    "AnnotatedImage",
    "Annotation",
    "FolderJob",
    "Index",
    "LabelMap",
    "ImageSession",
    "ImageState",
    "Progress",
    "ProgressCallback",
    "SliceReader",
    "export_coco",
    "regions_of",
]

_MODULES = {
    "AnnotatedImage": "napari_tcl.export",
    "Annotation": "napari_tcl.annotation",
    "FolderJob": "napari_tcl.folder",
    "Index": "napari_tcl.slices",
    "LabelMap": "napari_tcl.annotation",
    "ImageSession": "tcl_core.segmentation.session",
    "ImageState": "napari_tcl.folder",
    "Progress": "tcl_core.segmentation.session",
    "ProgressCallback": "tcl_core.segmentation.session",
    "SliceReader": "napari_tcl.slices",
    "export_coco": "napari_tcl.export",
    "regions_of": "napari_tcl.export",
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562), so that the command line can list its commands without loading the network's library.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("napari_tcl.triton_workaround")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value
