"""What Ray workers of the tests import: a model, and an exporter that kills the process it is in."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tcl_core.export.base import ImageRegions
from tcl_core.export.coco import CocoExporter
from tcl_core.models import load_model
from tcl_core.segmentation.segmenter import Segmenter


def make_segmenter(model: str) -> Segmenter:
    return Segmenter(load_model(model, device="cpu"), refine=False, batch_size=4)


class Deadly(CocoExporter):
    """COCO, but whoever prepares an image of this name is killed.

    Args:
        name: of the image.
        marker: file that is made by the first to be killed, and protects all others.
        seconds: that every image takes.
    """

    def __init__(self, name: str = "", marker: Path | None = None, seconds: float = 0.0) -> None:
        super().__init__()
        self._deadly, self._marker, self._seconds = name, marker, seconds

    def prepare(self, image: ImageRegions) -> Any:
        time.sleep(self._seconds)
        if image.file_name == self._deadly and not (self._marker is not None and self._marker.exists()):
            if self._marker is not None:
                self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(image)
