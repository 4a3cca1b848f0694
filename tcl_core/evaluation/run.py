"""Evaluate a model on a data set: each process takes its share of the images and keeps a journal of finished ones."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tcl_core
from tcl_core.errors import ExportError, ImageError, SettingsError, TclError, reason_of, remedy_of
from tcl_core.evaluation.datasets.base import ClassList, DataSet
from tcl_core.evaluation.effort import correction_effort
from tcl_core.evaluation.records import ImageRecord, Journal, JournalIndex, fingerprint, record_image
from tcl_core.jobs.pipeline import in_order
from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["Evaluation", "Share", "check_images", "predict_classes"]

_AHEAD = 2
"""Images that are read ahead of the model, and predictions that are counted behind it."""

_PREDICTIONS = "predictions"


def predict_classes(segmenter: Segmenter, classes: ClassList, image: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Predict the class of each pixel.

    Images are never batched together, so that a result does not depend on which images are evaluated with it.

    Args:
        segmenter: the model and its settings.
        classes: the competing classes.
        image: uint8 ``[H, W, 3]``, RGB.

    Returns:
        int16 ``[H, W]``, 0 to K - 1; -1 where no class reaches the threshold and there is no background class.
    """
    features = segmenter.encode(image)
    return classes.from_label_map(segmenter.segment(features, classes.vocabulary).label_map)


def check_images(
    data: DataSet, indices: Sequence[int], on_progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Decode images and their labels before a model sees them, so that a damaged file does not cost hours.

    Args:
        data: the data set.
        indices: numbers of the images.
        on_progress: called with ``"check"``, the number of checked images and the total; an exception that it raises
            ends the check.

    Raises:
        DataSetError: a label cannot be read, or does not fit its image or the classes.
        ImageError: an image cannot be read.
    """

    def check(index: int) -> None:
        data.check(index)
        data.check_image(index)

    with ThreadPoolExecutor(_AHEAD) as pool:
        try:
            for number, _ in enumerate(pool.map(check, indices), start=1):
                if on_progress is not None:
                    on_progress("check", number, len(indices))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Share:
    """The images that one process evaluates: every ``count``-th, starting with number ``process``.

    Raises:
        SettingsError: ``process`` is not in ``range(count)``.
    """

    process: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.count:
            raise SettingsError(f"process {self.process} of {self.count}: processes are numbered from 0")


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set, with a folder for its results.

    Attributes:
        data: images and ground truth.
        segmenter: the model and its settings.
        folder: for the journal and the results; created if needed.
        limit: evaluate only the first images.
        effort: whether to measure the correction effort, which takes the time of tracing polygons.
        keep_predictions: whether to write label maps as PNG, for the page of worst and best images.
        classes: the competing classes, if they differ from the data set's: other templates, another background.
    """

    data: DataSet
    segmenter: Segmenter
    folder: Path
    limit: int | None = None
    effort: bool = True
    keep_predictions: bool = True
    classes: ClassList | None = None

    @property
    def competing(self) -> ClassList:
        """The competing classes."""
        return self.data.classes if self.classes is None else self.classes

    @property
    def images(self) -> list[str]:
        """Names of the images to evaluate, in order."""
        return list(self.data.images[: self.limit])

    def identity(self) -> dict[str, Any]:
        """Everything that the figures depend on, as JSON values."""
        names, classes = self.images, self.competing
        return {
            "version": tcl_core.__version__,
            "data": {
                "name": self.data.name,
                "split": self.data.split,
                "images": len(names),
                "images_sha256": fingerprint(names),
                "limit": self.limit,
                **self.data.about,
            },
            "classes": list(classes.names),
            "vocabulary": classes.vocabulary.to_dict(),
            "model": {**self.segmenter.settings(), "device": self.segmenter.model.device.type},
            "effort": self.effort,
        }

    def start_anew(self) -> None:
        """Remove an earlier evaluation from the folder; other files stay."""
        for path in self.folder.glob("journal-*.jsonl"):
            path.unlink()
        shutil.rmtree(self.folder / _PREDICTIONS, ignore_errors=True)

    def pending(self, share: Share = Share()) -> list[int]:  # noqa: B008 - immutable
        """Numbers of the images of a share that are not in a journal yet, in order.

        Raises:
            SettingsError: the folder contains an evaluation with other settings.
        """
        names = self.images
        done = JournalIndex(self.folder, self.identity())
        return [index for index in range(share.process, len(names), share.count) if names[index] not in done]

    def work(
        self,
        share: Share = Share(),  # noqa: B008 - immutable
        on_progress: Callable[[str, int, int], None] | None = None,
        checked: bool = False,
    ) -> None:
        """Evaluate the images of a share that are not in a journal yet.

        All labels and images of the share are checked first, because that takes seconds where the model takes hours.

        Args:
            share: of this process.
            on_progress: called with the current step (``"check"`` or ``"evaluate"``), the number of finished images and
                the total; an exception that it raises ends the work, and finished images stay finished.
            checked: whether labels and images were checked before.

        Raises:
            DataSetError: a label does not fit.
            ImageError: an image cannot be read.
            VocabularyError: the model does not know a word of a class name.
            SettingsError: the folder contains another evaluation, or another process writes to it.
            ExportError: the folder cannot be written to.
        """
        vocabulary = self.competing.vocabulary
        # Unknown words are found at once, damaged files only after a while.
        self.segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
        journal = Journal(self.folder, share.process, self.identity())
        try:
            pending = self.pending(share)
            total = len(range(share.process, len(self.images), share.count))
            report = on_progress or (lambda what, done, total: None)
            if not checked:
                check_images(self.data, pending, report)
            finished = total - len(pending)
            report("evaluate", finished, total)
            for record in self._records(pending):
                journal.add(record)
                finished += 1
                report("evaluate", finished, total)
        finally:
            journal.close()

    def _records(self, pending: list[int]) -> Iterator[ImageRecord]:
        """Records in the order of the images; files are read and predictions counted while the model runs."""
        with ThreadPoolExecutor(2) as pool:
            counting: deque[Future[ImageRecord]] = deque()
            try:
                for index, future in in_order(pending, lambda index: pool.submit(self._read, index), _AHEAD):
                    image, truth = future.result()
                    prediction = predict_classes(self.segmenter, self.competing, image)
                    counting.append(pool.submit(self._count, index, truth, prediction))
                    if len(counting) >= _AHEAD:
                        yield counting.popleft().result()
                while counting:
                    yield counting.popleft().result()
            except TclError:
                # An unreadable image must not cost the ones before it.
                while counting:
                    yield counting.popleft().result()
                raise
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        image, truth = self.data.image(index), self.data.truth(index)
        if image.shape[:2] != truth.shape:
            raise ImageError(
                f"{self.data.images[index]}: has {image.shape[1]}x{image.shape[0]} pixels, but its labels have "
                f"{truth.shape[1]}x{truth.shape[0]}; restore the original files"
            )
        return image, truth

    def _count(self, index: int, truth: NDArray[np.int16], prediction: NDArray[np.int16]) -> ImageRecord:
        classes = len(self.competing.names)
        name = self.data.images[index]
        effort = None
        if self.effort:
            first = int(self.competing.has_background)
            least = self.segmenter.speck_area((int(truth.shape[0]), int(truth.shape[1])))
            effort = correction_effort(truth, prediction, first, least).to_dict()
        if self.keep_predictions:
            self._keep(index, prediction)
        return record_image(name, truth, prediction, classes, effort)

    def prediction_path(self, index: int) -> Path:
        """File of the prediction of an image."""
        return self.folder / _PREDICTIONS / f"{index:06}.png"

    def prediction(self, index: int) -> NDArray[np.int16]:
        """The stored prediction of an image, int16 ``[H, W]``.

        Raises:
            OSError: it was not stored.
        """
        with Image.open(self.prediction_path(index)) as image:
            return np.asarray(image).astype(np.int16) - 1

    def _keep(self, index: int, prediction: NDArray[np.int16]) -> None:
        path = self.prediction_path(index)
        values = prediction + 1
        kind = np.uint8 if len(self.competing.names) < 255 else np.uint16
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(kind)).save(path, compress_level=1)
        except OSError as error:
            raise ExportError(
                f"{path}: cannot be written ({reason_of(error)}); {remedy_of(error)} and run the command again"
            ) from error
