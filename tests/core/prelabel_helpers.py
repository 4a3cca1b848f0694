"""The job with COCO as its exporter, as most tests want it."""

from __future__ import annotations

from typing import Any

from tcl_core.export.base import Exporter
from tcl_core.export.coco import CocoExporter
from tcl_core.jobs import job


def run_prelabel(
    images: Any,
    segmenter: Any,
    vocabulary: Any,
    out: Any,
    settings: Any = None,
    exporter: Exporter | None = None,
    **rest: Any,
) -> job.PrelabelSummary:
    return job.run_prelabel(images, segmenter, vocabulary, out, exporter or CocoExporter(), settings, **rest)
