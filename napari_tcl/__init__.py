"""tcl-annotate in napari: type a label, see the mask, correct it, export COCO.

The parts below need neither napari nor Qt and serve notebooks too: an `ImageSession` encodes an image once and
segments it as often as labels change, an `Annotation` keeps corrections and accepted regions apart from what the model
proposes, and `export_coco` writes label maps. `SliceReader` makes RGB images of stacks, channels and deep grays, and
a `FolderJob` processes many images.
"""

from __future__ import annotations

from napari_tcl.triton_workaround import load_triton

# The modules below import PyTorch.
load_triton()

from napari_tcl.annotation import Annotation, LabelMap  # noqa: E402
from napari_tcl.export import AnnotatedImage, export_coco, regions_of  # noqa: E402
from napari_tcl.folder import FolderJob, ImageState  # noqa: E402
from napari_tcl.slices import Index, SliceReader  # noqa: E402
from tcl_core.segmentation.session import ImageSession, Progress, ProgressCallback  # noqa: E402

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
