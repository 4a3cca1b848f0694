"""Honest scores: metrics and the evaluation of models on worlds whose truth is known."""

from __future__ import annotations

from tcl_core.evaluation.miou import MeanIoU

__all__ = ["MeanIoU"]
