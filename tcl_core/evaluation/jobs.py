"""Evaluations as plain settings that can be sent to other processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tcl_core.errors import SettingsError
from tcl_core.evaluation.datasets import ClassList, DataSet, open_benchmark
from tcl_core.evaluation.datasets.own import CocoDataSet, MaskDataSet
from tcl_core.evaluation.datasets.playground import PlaygroundDataSet
from tcl_core.evaluation.run import Evaluation
from tcl_core.models import Model, load_model
from tcl_core.plugins import installed, load
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.vocabulary import Vocabulary

__all__ = [
    "DATA_SETS",
    "BenchmarkData",
    "CocoData",
    "DataSpec",
    "EvaluationJob",
    "MaskData",
    "ModelSpec",
    "PlaygroundData",
    "PluginData",
]

DATA_SETS = "tcl_annotate.data_sets"
"""Entry-point group of data sets that other packages provide."""


class DataSpec(Protocol):
    """Identifies a data set; can be sent to another process."""

    def open(self) -> DataSet:
        """The data set.

        Raises:
            DataSetError: a file is missing or does not fit.
        """
        ...


@dataclass(frozen=True)
class BenchmarkData:
    """See `tcl_core.evaluation.datasets.open_benchmark`."""

    name: str
    folder: Path
    split: str = "val"
    names: str = "raw"

    def open(self) -> DataSet:
        """The data set."""
        return open_benchmark(self.name, self.folder, self.split, self.names)


@dataclass(frozen=True)
class PlaygroundData:
    """See `PlaygroundDataSet`."""

    split: str = "seen"

    def open(self) -> DataSet:
        """The data set."""
        return PlaygroundDataSet(self.split)


@dataclass(frozen=True)
class CocoData:
    """See `CocoDataSet`."""

    path: Path
    images: Path
    vocabulary: Vocabulary | None = None

    def open(self) -> DataSet:
        """The data set."""
        return CocoDataSet(self.path, self.images, self.vocabulary)


@dataclass(frozen=True)
class MaskData:
    """See `MaskDataSet`."""

    folder: Path
    images: Path
    vocabulary: Vocabulary

    def open(self) -> DataSet:
        """The data set."""
        return MaskDataSet(self.folder, self.images, self.vocabulary)


@dataclass(frozen=True)
class PluginData:
    """A data set in a format that another package reads.

    Attributes:
        kind: name of an entry point in the group ``tcl_annotate.data_sets``: a subclass of `DataSet` whose arguments
            are the path, the folder of images and the vocabulary.
        path: the annotations.
        images: folder of images.
        vocabulary: labels to evaluate; ``None`` for all.
    """

    kind: str
    path: Path
    images: Path
    vocabulary: Vocabulary | None = None

    def open(self) -> DataSet:
        """The data set."""
        found = installed(DATA_SETS).get(self.kind)
        if found is None:
            raise SettingsError(f"--{self.kind}: no installed package reads this format; reinstall tcl-annotate")
        kind: Any = load(found, "The data set", DataSet, subclass=True)
        return kind(self.path, self.images, self.vocabulary)


@lru_cache(maxsize=1)
def _loaded(name: str, device: str, precision: str, backend: str) -> Model:
    """Consecutive evaluations share a model."""
    return load_model(name, device=device, precision=precision, backend=backend)


@dataclass(frozen=True)
class ModelSpec:
    """A model and its settings.

    Attributes:
        name: see `tcl_core.models.load_model`.
        refine: whether to use the method's refiner.
        options: values of the method's options.
        device: see `tcl_core.devices.select_device`.
        precision: see `tcl_core.devices.select_precision`.
        backend: see `tcl_core.backends.select_backend`.
        batch_size: maximum number of windows per forward pass.
        preprocess: values of `Preprocess` that override the model's, such as ``{"short_side": 448}``.
        background_threshold: overrides the model's.
        templates: name of the template set; overrides the model's.
    """

    name: str
    refine: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    batch_size: int = 8
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    background_threshold: float | None = None
    templates: str | None = None

    def load(self) -> Segmenter:
        """The model with its settings.

        Raises:
            WeightsError: there is no such model, or it cannot be used.
            SettingsError: a setting is unknown or out of range.
        """
        model = _loaded(self.name, self.device, self.precision, self.backend)
        if self.preprocess:
            model = replace(model, preprocess=replace(model.preprocess, **self.preprocess))
        return Segmenter(model, refine=self.refine, options=self.options, batch_size=self.batch_size)

    def applied_to(self, classes: ClassList) -> ClassList:
        """The classes with this background threshold and template set."""
        vocabulary = classes.vocabulary
        if self.background_threshold is not None:
            if not classes.has_background:
                raise SettingsError("--background-threshold: these classes have no background; remove the option")
            vocabulary = replace(vocabulary, background_threshold=self.background_threshold)
        if self.templates is not None:
            vocabulary = replace(vocabulary, templates=self.templates)
        return replace(classes, vocabulary=vocabulary)


@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation that can be sent to another process.

    Attributes:
        data: the data set.
        model: the model and its settings.
        folder: for the journal and results.
        limit: evaluate only the first images.
        effort: whether to measure the correction effort.
        page: whether to write a page with the worst and best images of each class.
    """

    data: DataSpec
    model: ModelSpec
    folder: Path
    limit: int | None = None
    effort: bool = True
    page: bool = True

    def open(self, data: DataSet | None = None) -> Evaluation:
        """Open the data and load the model.

        Args:
            data: the data set, if it is open already.

        Raises:
            TclError: the data or the model cannot be used.
        """
        data = self.data.open() if data is None else data
        classes = self.model.applied_to(data.classes)
        return Evaluation(data, self.model.load(), self.folder, self.limit, self.effort, self.page, classes)
