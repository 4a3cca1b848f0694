"""Scores of a model while it is trained, each process on its share of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from tcl_core.errors import SettingsError, TclError
from tcl_core.evaluation.confusion import confusion_matrix, scores_of
from tcl_core.evaluation.datasets import DataSet, open_benchmark
from tcl_core.evaluation.datasets.playground import PlaygroundDataSet
from tcl_core.evaluation.run import predict_classes
from tcl_core.segmentation.segmenter import Segmenter
from training.config import EvaluationSettings
from training.distributed import fail_together, process_rank, world_size
from training.model import Trained

__all__ = ["Evaluated", "check_words", "evaluate", "open_evaluations"]


@dataclass(frozen=True)
class Evaluated:
    """A data set and how much of it is scored.

    Attributes:
        name: in the log.
        data: images and truth.
        limit: first images only; ``None`` for all.
    """

    name: str
    data: DataSet
    limit: int | None

    @property
    def images(self) -> int:
        """Number of images that are scored."""
        return len(self.data) if self.limit is None else min(self.limit, len(self.data))


def open_evaluations(settings: EvaluationSettings | None, folder: Path | None) -> list[Evaluated]:
    """Open all that will be scored, so that what is missing is found before the training.

    Args:
        settings: of the phase; ``None`` scores nothing.
        folder: of the benchmarks.

    Raises:
        SettingsError: benchmarks are asked for without a folder.
        DataSetError: one is not there, or not whole.
    """
    if settings is None:
        return []
    found = []
    if settings.playground:
        for split in ("seen", "held-out"):
            found.append(Evaluated(f"playground {split}", PlaygroundDataSet(split, "validation"), settings.playground))
    for name in settings.benchmarks:
        if folder is None:
            raise SettingsError(f"The recipe evaluates on {name}; name the folder of the data sets with --eval-data.")
        data = open_benchmark(name, folder, settings.split)
        found.append(Evaluated(f"{name} {settings.split}", data, settings.limit))
    return found


def check_words(trained: Trained, evaluations: Sequence[Evaluated], device: torch.device) -> None:
    """Find words that the model does not know before the training, and not after hours.

    Raises:
        VocabularyError: there is one.
    """
    segmenter = Segmenter(trained.model(device), refine=False)
    for evaluated in evaluations:
        vocabulary = evaluated.data.classes.vocabulary
        segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)


def evaluate(
    trained: Trained, evaluations: Sequence[Evaluated], refine: bool, device: torch.device
) -> dict[str, float]:
    """Score the weights as they are now; called in all processes at the same time.

    Args:
        trained: on ``device``.
        evaluations: what is scored.
        refine: whether masks are refined along the image's edges (PAMR).
        device: where the model is.

    Returns:
        Mean IoU in percent by the name of the data set, the same in every process.

    Raises:
        TclError: an image or its truth cannot be read, in any process.
    """
    segmenter = Segmenter(trained.model(device), refine=refine)
    found: dict[str, float] = {}
    for evaluated in evaluations:
        data = evaluated.data
        classes = len(data.classes.names)
        total = np.zeros((classes, classes + 1), np.int64)
        failure: TclError | None = None
        try:
            for index in range(process_rank(), evaluated.images, world_size()):
                prediction = predict_classes(segmenter, data.classes, data.image(index))
                total += confusion_matrix(data.truth(index), prediction, classes)
        except TclError as error:
            failure = error
        fail_together(failure, device)
        if world_size() > 1:
            summed = torch.from_numpy(total).to(device)
            dist.all_reduce(summed)
            total = summed.cpu().numpy()
        found[evaluated.name] = round(100 * scores_of(total).mean_iou, 2)
    return found
