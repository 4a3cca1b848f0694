"""tcl-annotate in napari: type a label, see the mask, correct it, export COCO.

The parts below need neither napari nor Qt and serve notebooks too: a `PictureSession` encodes a picture once and
segments it as often as labels change, an `Annotation` keeps corrections and accepted regions apart from what the model
proposes, and `export_coco` writes label maps. `SliceReader` makes RGB pictures of stacks, channels and deep greys, and
a `FolderJob` works off many pictures.
"""

from __future__ import annotations

from napari_tcl.llvm import load_triton

# The modules below import PyTorch.
load_triton()

from napari_tcl.annotation import Annotation, LabelMap  # noqa: E402
from napari_tcl.export import AnnotatedPicture, export_coco, regions_of  # noqa: E402
from napari_tcl.folder import FolderJob, PictureState  # noqa: E402
from napari_tcl.pictures import Index, SliceReader  # noqa: E402
from napari_tcl.session import PictureSession, Progress, ProgressCallback  # noqa: E402

__all__ = [
    "AnnotatedPicture",
    "Annotation",
    "FolderJob",
    "Index",
    "LabelMap",
    "PictureSession",
    "PictureState",
    "Progress",
    "ProgressCallback",
    "SliceReader",
    "export_coco",
    "regions_of",
]
