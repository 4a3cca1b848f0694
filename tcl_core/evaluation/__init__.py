"""Metrics, and the evaluation of models on data sets with ground truth."""

from __future__ import annotations

from tcl_core.evaluation.miou import MeanIoU

__all__ = ["MeanIoU"]
