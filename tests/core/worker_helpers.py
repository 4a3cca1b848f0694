"""What worker processes of tests import; nothing here imports PyTorch."""

from __future__ import annotations

import sys
from typing import Any

from tcl_core.export.base import ImageRegions
from tcl_core.export.coco import CocoExporter

__all__ = ["OddError", "Stubborn", "modules_of_a_worker"]


class Stubborn(CocoExporter):
    """Fails with images of one width, with an exception that cannot be sent."""

    width = 21

    def prepare(self, image: ImageRegions) -> list[dict[str, Any]]:
        if image.width == self.width:
            raise OddError("no", "luck")
        return super().prepare(image)


class OddError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def modules_of_a_worker() -> set[str]:
    """The top-level packages that a worker has loaded."""
    import tcl_core.jobs.processes  # noqa: F401

    return {name.partition(".")[0] for name in sys.modules}
