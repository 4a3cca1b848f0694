"""Data sets to evaluate on: the eight benchmarks of the papers, your own annotations, and the playground."""

from __future__ import annotations

from tcl_core.evaluation.datasets.base import IGNORED, ClassList, DataSet
from tcl_core.evaluation.datasets.benchmarks import BENCHMARKS, class_list, open_benchmark

__all__ = ["BENCHMARKS", "IGNORED", "ClassList", "DataSet", "class_list", "open_benchmark"]
