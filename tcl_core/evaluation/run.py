"""Evaluating a model on a data set: every process does its share, and what is done stays done."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterator
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
from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["Evaluation", "Share", "predict_classes"]

_AHEAD = 2
"""Images that are read before their turn, and results that are counted behind it."""

_PREDICTIONS = "predictions"


def predict_classes(segmenter: Segmenter, classes: ClassList, image: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The class of each pixel.

    An image is encoded by itself, so that its result does not depend on which others are evaluated with it.

    Args:
        segmenter: the model and its settings.
        classes: what competes.
        image: uint8 ``[H, W, 3]``, RGB.

    Returns:
        int16 ``[H, W]``, 0 to K - 1; -1 where no class is strong enough and there is no background.
    """
    features = segmenter.encode(image)
    return classes.from_label_map(segmenter.segment(features, classes.vocabulary).label_map)


@dataclass(frozen=True)
class Share:
    """The part of the images that a process evaluates: every ``count``-th from ``process`` on.

    Raises:
        SettingsError: there is no such part.
    """

    process: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.count:
            raise SettingsError(f"process {self.process} of {self.count}: count processes from 0")


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set, in a folder.

    Attributes:
        data: images and truth.
        segmenter: the model and its settings.
        folder: for the journal and results; it is made.
        limit: evaluate the first images only.
        effort: whether the effort of correcting is measured, which takes the time of making polygons.
        keep_predictions: whether label maps are written as PNG, for the page of worst and best images.
        classes: what competes, where that is not as the data set has it: other templates or another background.
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
        """What competes."""
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
        """Remove an earlier evaluation from the folder; anything else stays."""
        for path in self.folder.glob("journal-*.jsonl"):
            path.unlink()
        shutil.rmtree(self.folder / _PREDICTIONS, ignore_errors=True)

    def work(
        self,
        share: Share = Share(),  # noqa: B008 - immutable
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Evaluate the images of a share that are in no journal yet.

        Labels are checked first, all of the share's, for that takes seconds where the model takes hours.

        Args:
            share: of this process.
            on_progress: called with what is being done (``"check"`` or ``"evaluate"``), the images done and of all;
                what it raises ends the work, and the images done so far stay done.

        Raises:
            DataSetError: a label does not fit.
            ImageError: an image cannot be read.
            VocabularyError: the model does not know a word of a class.
            SettingsError: the folder holds another evaluation, or another process writes to it.
            ExportError: the folder cannot be written to.
        """
        identity = self.identity()
        names = self.images
        mine = range(share.process, len(names), share.count)
        vocabulary = self.competing.vocabulary
        # Unknown words are found in a moment.
        self.segmenter.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
        journal = Journal(self.folder, share.process, identity)
        try:
            done = JournalIndex(self.folder, identity)
            pending = [index for index in mine if names[index] not in done]
            report = on_progress or (lambda what, done, total: None)
            for number, index in enumerate(pending):
                report("check", number, len(pending))
                self.data.check(index)
            finished = len(mine) - len(pending)
            report("evaluate", finished, len(mine))
            for record in self._records(pending):
                journal.add(record)
                finished += 1
                report("evaluate", finished, len(mine))
        finally:
            journal.close()

    def _records(self, pending: list[int]) -> Iterator[ImageRecord]:
        """Read ahead and count behind, while the model works in between; in the order of the images."""
        with ThreadPoolExecutor(2) as pool:
            reading: deque[tuple[int, Future[tuple[NDArray[np.uint8], NDArray[np.int16]]]]] = deque()
            counting: deque[Future[ImageRecord]] = deque()
            queue = iter(pending)
            try:
                while True:
                    while len(reading) < _AHEAD and (index := next(queue, None)) is not None:
                        reading.append((index, pool.submit(self._read, index)))
                    if not reading:
                        break
                    index, future = reading.popleft()
                    image, truth = future.result()
                    prediction = predict_classes(self.segmenter, self.competing, image)
                    counting.append(pool.submit(self._count, index, truth, prediction))
                    if len(counting) >= _AHEAD:
                        yield counting.popleft().result()
                while counting:
                    yield counting.popleft().result()
            except TclError:
                # An image that cannot be read takes nothing with it that was done before.
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
                f"{truth.shape[1]}x{truth.shape[0]}; unpack the data set again"
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
        """Where the prediction of an image is kept."""
        return self.folder / _PREDICTIONS / f"{index:06}.png"

    def prediction(self, index: int) -> NDArray[np.int16]:
        """A prediction that was kept, int16 ``[H, W]``.

        Raises:
            OSError: it is not there.
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
