"""Tasks become predictions in their order: images are fetched and read ahead of the network, and drawn behind it.

Fetching, the network and the decision belong to this process. Images go through the network in groups. Reading and
drawing are done by `tcl_core.jobs.workers.AnyWorkers`, perhaps at the same time; as groups and order do not depend on
them, neither do the predictions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import anyio
from anyio.from_thread import BlockingPortal

from labelstudio_backend.drawing import Prediction
from labelstudio_backend.image_fetch.fetching import ImageFetcher, SignInRefusedError
from labelstudio_backend.image_fetch.locations import Owner
from labelstudio_backend.labeling_config import LabelingConfig
from labelstudio_backend.predictor import Predictor, Wanted
from labelstudio_backend.requests import Plan
from labelstudio_backend.task_stages import DecidedTaskImage, DrawnImage, FetchedImage, TaskStages, failure_of
from tcl_core.errors import TclError
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.labeling import PIXELS_AT_ONCE
from tcl_core.jobs.pipeline import done, in_order
from tcl_core.jobs.processes import WorkerLostError
from tcl_core.jobs.stages import Failure, ReadImage, ReadSettings
from tcl_core.jobs.times import StageTimes
from tcl_core.jobs.workers import AnyWorkers

if TYPE_CHECKING:
    from tcl_core.images import ResizedImage
    from tcl_core.segmentation.features import ImageFeatures

__all__ = ["StopError", "Task", "TaskPipeline", "TaskResult", "TaskWorkers", "stages_of"]

logger = logging.getLogger(__name__)

TaskWorkers = AnyWorkers[FetchedImage, ReadImage, DecidedTaskImage, DrawnImage]

_REQUESTS = 5
"""So many images are fetched at a time."""


class StopError(Exception):
    """The run cannot go on; the message says why."""


@dataclass(frozen=True)
class Task:
    """A task to predict.

    Attributes:
        id: its number.
        images: each with its configuration and address, see :func:`labelstudio_backend.task_answer.asked_images`.
        predicted: whether it has predictions.
    """

    id: int
    images: Sequence[tuple[LabelingConfig, object]]
    predicted: bool


TaskResult = tuple[Task, list[Prediction | str]]
"""A task, and for each of its images a prediction or the reason why there is none."""


@dataclass
class _Image:
    """An image of a task; ``arrived`` is the time at which it was fetched."""

    task: Task
    config: LabelingConfig
    url: object
    arrived: float | None = None

    @property
    def name(self) -> str:
        return f"of task {self.task.id}"


@dataclass(frozen=True)
class _Asked:
    """An image at the working size, and what to look for in it."""

    image: ResizedImage
    wanted: Wanted


@dataclass(frozen=True)
class _Unfinished:
    """An image whose prediction is not known yet."""

    task: Task
    drawn: Future[DrawnImage]
    pixels: int = 0


def stages_of(predictor: Predictor) -> TaskStages:
    """What workers do for a predictor."""
    preprocess = predictor.segmenter.model.preprocess
    return TaskStages(ReadSettings(preprocess.short_side, preprocess.max_long_side, predictor.options.max_pixels))


@dataclass
class TaskPipeline:
    """One run over tasks. Not for several threads.

    Attributes:
        predictor: the model.
        version: of the model; ids of results are made from it, so that they are the same in every run.
        added: the project's typed prompts.
        fetcher: gets the images, in the portal's loop.
        portal: of that loop.
        workers: read and draw, with `stages_of` the predictor.
        guard: holds signals back for the moments in which a result is put in its place.
        times: what the stages take.
    """

    predictor: Predictor
    version: str
    added: Mapping[str, tuple[str, ...]]
    fetcher: ImageFetcher
    portal: BlockingPortal
    workers: TaskWorkers
    guard: InterruptGuard
    times: StageTimes = field(default_factory=StageTimes)

    def __post_init__(self) -> None:
        self.times.workers = self.workers.count
        self._requests = anyio.Semaphore(_REQUESTS)
        # What is fetched waits in memory for a worker, whole files.
        self._encoded = anyio.Semaphore(_REQUESTS + 2 * self.workers.count)
        self._running: set[Future[FetchedImage | ReadImage]] = set()
        self._unfinished: deque[_Unfinished] = deque()
        self._found: list[Prediction | str] = []
        self._ready: deque[TaskResult] = deque()

    def results(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Predict tasks.

        Yields:
            The tasks in their order.

        Raises:
            StopError: Label Studio does not accept the token any more, or a worker was lost.
        """
        images = (_Image(task, config, url) for task in tasks for config, url in task.images)
        coming = in_order(images, self._fetch, max(self.workers.ahead, _REQUESTS))
        try:
            while group := list(islice(coming, self.predictor.segmenter.batch_size)):
                yield from self._do_group(group)
            while self._unfinished:
                self._finish()
                yield from self._taken()
        except WorkerLostError as error:
            raise StopError(str(error)) from error

    def finished(self) -> Iterator[TaskResult]:
        """After `results` was broken off: the next tasks whose results are there without waiting."""
        while self._unfinished and self._unfinished[0].drawn.done():
            if self._unfinished[0].drawn.exception() is not None:
                break
            self._finish()
        yield from self._taken()

    def close(self) -> None:
        """Give up what is still on its way."""
        for future in list(self._running):
            future.cancel()

    # -- before the network ----------------------------------------------------------------------------------------

    def _fetch(self, image: _Image) -> Future[FetchedImage | ReadImage]:
        if isinstance(image.url, TclError):
            return done(ReadImage(image.name, failure=failure_of(image.url)))
        future: Future[FetchedImage | ReadImage] = self.portal.start_task_soon(self._fetched, image)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    async def _fetched(self, image: _Image) -> FetchedImage | ReadImage:
        async with self._encoded:
            async with self._requests:
                content = await self.fetcher.fetch(image.url, Owner(image.task.id))
            image.arrived = time.perf_counter()
            fetched = FetchedImage(image.name, content)
            if not self.workers.count:
                # This process reads it when it comes to it.
                return fetched
            return await asyncio.wrap_future(self.workers.read(fetched))

    def _read(self, image: _Image, coming: Future[FetchedImage | ReadImage]) -> ReadImage:
        """Wait for an image.

        Raises:
            StopError: Label Studio does not accept the token.
            WorkerLostError: it was lost with a worker.
        """
        started = time.perf_counter()
        try:
            found = coming.result()
            if isinstance(found, FetchedImage):
                found = self.workers.read(found).result()
            self.times.read += found.seconds
            return found
        except SignInRefusedError as error:
            raise StopError(str(error)) from error
        except WorkerLostError:
            raise
        except Exception as error:
            return ReadImage(image.name, failure=failure_of(error))
        finally:
            arrived = time.perf_counter() if image.arrived is None else image.arrived
            self.times.fetch += max(0.0, arrived - started)

    # -- the network -----------------------------------------------------------------------------------------------

    def _do_group(self, group: Sequence[tuple[_Image, Future[FetchedImage | ReadImage]]]) -> Iterator[TaskResult]:
        pending: list[tuple[_Image, ReadImage]] = []
        pixels = 0
        for image, coming in group:
            read = self._read(image, coming)
            pending.append((image, read))
            pixels += 0 if read.image is None else read.image.size[0] * read.image.size[1]
            if pixels >= PIXELS_AT_ONCE:
                yield from self._decide(pending)
                pending, pixels = [], 0
        yield from self._decide(pending)

    def _decide(self, pending: Sequence[tuple[_Image, ReadImage]]) -> Iterator[TaskResult]:
        asked = [(image, self._asked(image, read)) for image, read in pending]
        encoded = iter(self._encode([each.image for _, each in asked if isinstance(each, _Asked)]))
        for image, each in asked:
            if isinstance(each, Failure):
                self._failed(image, each)
            else:
                self._decide_one(image, each, next(encoded))
            self._finish_done()
            yield from self._taken()

    def _decide_one(self, image: _Image, asked: _Asked, features: Callable[[], ImageFeatures]) -> None:
        pixels = asked.image.size[0] * asked.image.size[1]
        self._make_room(pixels)
        seed = f"{self.version}/{image.task.id}/{image.config.image_name}/{image.config.item_index}"
        try:
            with self.times.of("network"):
                decided = self.predictor.decide(asked.wanted, features(), seed)
        except Exception as error:
            self._failed(image, failure_of(error))
        else:
            drawn = self.workers.trace(DecidedTaskImage(image.name, decided))
            self._unfinished.append(_Unfinished(image.task, drawn, pixels))

    def _asked(self, image: _Image, read: ReadImage) -> _Asked | Failure:
        """An image with what to look for in it, or why there is nothing to look at or for."""
        if read.image is None:
            assert read.failure is not None
            return read.failure
        try:
            return _Asked(read.image, self.predictor.wanted(Plan(image.config, self.added)))
        except Exception as error:
            return failure_of(error)

    def _encode(self, images: Sequence[ResizedImage]) -> list[Callable[[], ImageFeatures]]:
        """For each image a call that gives its features, or raises what went wrong with this one image."""
        segmenter = self.predictor.segmenter
        features: list[ImageFeatures] | None = None
        with suppress(Exception), self.times.of("network"):
            features = segmenter.encode_batch(images)
        # Not while the error is handled: it holds on to the tensors of the batch, for which there may be no room.
        if features is None:
            # One of them is to blame; alone, each gives its own features or its own error.
            return [partial(segmenter.encode, image) for image in images]
        return [partial(features.__getitem__, place) for place in range(len(images))]

    # -- results, in the order of the images -----------------------------------------------------------------------

    def _failed(self, image: _Image, failure: Failure) -> None:
        self._unfinished.append(_Unfinished(image.task, done(DrawnImage(image.name, failure=failure))))

    def _make_room(self, pixels: int) -> None:
        """Wait until one more label map may be held."""
        while self._unfinished and (
            len(self._unfinished) >= self.workers.behind
            or sum(one.pixels for one in self._unfinished) + pixels > self.workers.pixels_behind
        ):
            self._finish()

    def _finish_done(self) -> None:
        while self._unfinished and self._unfinished[0].drawn.done():
            self._finish()

    def _finish(self) -> None:
        """Wait for the prediction of the first image that has none yet."""
        task, drawn = self._unfinished[0].task, self._unfinished[0].drawn.result()
        with self.guard.writing():
            self._unfinished.popleft()
            self.times.trace += drawn.seconds
            if drawn.prediction is not None:
                self._found.append(drawn.prediction)
            elif drawn.failure is not None:
                if not isinstance(drawn.failure.error, TclError):
                    logger.error("task %s", task.id, exc_info=drawn.failure.error)
                self._found.append(drawn.failure.reason)
            if len(self._found) == len(task.images):
                self._ready.append((task, self._found))
                self._found = []

    def _taken(self) -> Iterator[TaskResult]:
        while self._ready:
            yield self._ready.popleft()
