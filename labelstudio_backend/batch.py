"""Predicting all tasks of a project, without the time-out of Label Studio's own button."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from labelstudio_backend.client import GoneError, LabelStudioClient, LabelStudioError, Project, SignInError
from labelstudio_backend.image_fetch.fetching import ImageFetcher, SignInRefusedError
from labelstudio_backend.image_fetch.locations import Owner
from labelstudio_backend.interactive import Question, answer
from labelstudio_backend.labeling_config import LabelingConfig, parse_project_config
from labelstudio_backend.model_options import ModelOptions, model_version
from labelstudio_backend.predictor import Prediction, Predictor
from labelstudio_backend.prompts import Added
from labelstudio_backend.replacing import Stale, is_older_version, replace_predictions
from labelstudio_backend.requests import freeze
from labelstudio_backend.results import text_result
from labelstudio_backend.task_answer import prompt_field, put_together
from tcl_core.errors import TclError, is_out_of_memory
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.progress import Progress

__all__ = ["BulkSummary", "predict_project"]

logger = logging.getLogger(__name__)

_AHEAD = 4
"""So many images are fetched while the model works on another."""
_BATCH = 20
_BATCH_CHARACTERS = 8_000_000


@dataclass
class BulkSummary:
    """How a run ended.

    Attributes:
        model_version: of the predictions.
        total: tasks that were looked at.
        done: tasks that got a prediction in this run.
        skipped: tasks that had one of this version, or that somebody has annotated.
        failed: reason by task.
        empty: reason by task, of predictions without regions.
        replaced: older predictions whose place new ones took.
        interrupted: whether the run was stopped before its end.
        stopped: why it could not go on, if it could not.
    """

    model_version: str
    total: int = 0
    done: int = 0
    skipped: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    empty: dict[int, str] = field(default_factory=dict)
    replaced: int = 0
    interrupted: bool = False
    stopped: str = ""


@dataclass(frozen=True)
class _Task:
    """A task to predict: its images, each with its configuration and address, and whether it has predictions."""

    id: int
    images: Sequence[tuple[LabelingConfig, object]]
    predicted: bool


_Fetched = list["Future[bytes] | TclError"]


class _StopError(Exception):
    """The run cannot go on; the message says why."""


def predict_project(
    client: LabelStudioClient,
    project: Project,
    fetcher: ImageFetcher,
    options: ModelOptions,
    added: Added,
    *,
    view: int | None = None,
    only_unlabeled: bool = False,
    quiet: bool = True,
) -> BulkSummary:
    """Predict a project's tasks and store the predictions.

    A task that fails is skipped and reported. A prediction takes the place of the task's older ones of the same model.
    SIGINT and SIGTERM, and a token that is not accepted any more, end the run between two tasks, with what is done
    stored; another run resumes, because tasks that have a prediction of this version are skipped.

    Args:
        client: signed in.
        project: whose tasks.
        fetcher: gets the images.
        options: the model.
        added: the project's typed prompts.
        view: number of a tab of the data manager; only its tasks.
        only_unlabeled: leave out tasks that somebody has annotated.
        quiet: show no progress.

    Returns:
        What was done, also when the run was stopped.

    Raises:
        TclError: before the first task if the configuration or the model cannot be used, or the tasks cannot be read.
    """
    config = parse_project_config(project.label_config)
    version = model_version(options, config, added)
    summary = BulkSummary(version)
    known = {task["id"] for page in client.tasks(project.id, model_version=version) for task in page}
    wanted: list[_Task] = []
    for page in client.tasks(project.id, view=view):
        for task in page:
            summary.total += 1
            if task["id"] in known or (only_unlabeled and (task.get("total_annotations") or task.get("is_labeled"))):
                summary.skipped += 1
            else:
                images = config.images_of(task.get("data") or {})
                wanted.append(_Task(task["id"], images, bool(task.get("total_predictions", 1))))
    if not wanted:
        return summary
    predictor = Predictor(options.load(), options, cache_bytes=0)
    prompts = freeze(added)
    progress = Progress(summary.total, summary.skipped, quiet=quiet)
    sender = _Sender(client, project.id, summary, progress, prompt_field(config, None))
    try:
        with (
            InterruptGuard() as guard,
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(fetcher),
        ):
            try:
                for one, fetched in _prefetched(wanted, fetcher, portal):
                    sender.add(one, _predict_task(one, fetched, predictor, prompts))
                    if sender.is_full:
                        with guard.writing():
                            sender.send()
            except KeyboardInterrupt:
                summary.interrupted = True
            except (SignInError, _StopError) as error:
                summary.stopped = str(error)
            guard.hold()
            try:
                sender.send()
            except SignInError as error:
                summary.stopped = str(error)
    finally:
        progress.close()
    return summary


def _prefetched(
    tasks: Sequence[_Task], fetcher: ImageFetcher, portal: BlockingPortal
) -> Iterator[tuple[_Task, _Fetched]]:
    """Tasks with their images on the way; every image is released once its task is over."""
    running: deque[tuple[_Task, _Fetched]] = deque()
    coming = iter(tasks)
    try:
        while True:
            while len(running) <= _AHEAD and (task := next(coming, None)) is not None:
                owner = Owner(task.id)
                running.append(
                    (
                        task,
                        [
                            url if isinstance(url, TclError) else portal.start_task_soon(fetcher.fetch, url, owner)
                            for _, url in task.images
                        ],
                    )
                )
            if not running:
                return
            yield running.popleft()
    finally:
        for _, fetched in running:
            for future in fetched:
                if isinstance(future, Future):
                    future.cancel()


def _predict_task(
    task: _Task, fetched: _Fetched, predictor: Predictor, added: dict[str, tuple[str, ...]]
) -> list[Prediction | str]:
    """Predictions for the images of a task, or why there is none.

    Raises:
        _StopError: Label Studio does not accept the token.
    """
    found: list[Prediction | str] = []
    for (config, _), image in zip(task.images, fetched, strict=True):
        try:
            if isinstance(image, TclError):
                raise image
            found.append(answer(predictor, Question(config, added), image.result()).prediction)
        except SignInRefusedError as error:
            raise _StopError(str(error)) from error
        except TclError as error:
            found.append(str(error))
        except Exception as error:
            logger.exception("task %s", task.id)
            short = "there is not enough free memory for its image; use a smaller one, or another device"
            found.append(short if is_out_of_memory(error) else f"internal error, {type(error).__name__}")
    return found


class _Sender:
    """Stores predictions in batches and keeps the books."""

    def __init__(
        self,
        client: LabelStudioClient,
        project: int,
        summary: BulkSummary,
        progress: Progress,
        field: LabelingConfig | None,
    ) -> None:
        self._client = client
        self._project = project
        self._summary = summary
        self._progress = progress
        self._field = field
        self._batch: list[dict[str, Any]] = []
        self._predicted: set[int] = set()
        self._reasons: dict[int, str] = {}
        self._characters = 0

    @property
    def is_full(self) -> bool:
        return len(self._batch) >= _BATCH or self._characters >= _BATCH_CHARACTERS

    def add(self, task: _Task, found: Sequence[Prediction | str]) -> None:
        """Take a task's predictions; where one of its images failed, the task is reported instead."""
        answer = put_together(task.images, found)
        if answer.failed:
            self._fail(task.id, answer.reason)
            return
        results = [result for each in answer.drawn for result in each.results]
        if answer.outcome == "empty":
            self._reasons[task.id] = answer.reason
        if self._field is not None:
            results += text_result(self._field, answer.lines(None))
        version = self._summary.model_version
        self._batch.append({"task": task.id, "result": results, "score": answer.score, "model_version": version})
        self._characters += len(json.dumps(results))
        if task.predicted:
            self._predicted.add(task.id)

    def _fail(self, task: int, reason: str) -> None:
        try:
            if not self._client.has_task(task):
                reason = "the task is gone: it was deleted during this run"
        except SignInError:
            raise
        except LabelStudioError as error:
            logger.warning("task %s: %s", task, error)
        self._summary.failed[task] = reason
        self._progress.skip(f"task {task}: {reason}")

    def send(self) -> None:
        """Store the batch; Label Studio drops what it does not like without a word, so its count is compared.

        Raises:
            SignInError: the token is not accepted any more.
        """
        if not self._batch:
            return
        batch, self._batch, self._characters = self._batch, [], 0
        try:
            created = self._client.import_predictions(self._project, batch)
        except SignInError:
            raise
        except TclError as error:
            if len(batch) == 1:
                self._fail(batch[0]["task"], str(error))
                return
            # One prediction, such as that of a task which is gone by now, makes Label Studio refuse all.
            for prediction in batch:
                self._batch = [prediction]
                self.send()
            return
        lost = set() if created == len(batch) else {p["task"] for p in batch if not self._is_stored(p)}
        stored = 0
        for prediction in batch:
            task = prediction["task"]
            if task in lost:
                self._fail(task, "Label Studio did not store the prediction")
                continue
            self._summary.done += 1
            if task in self._reasons:
                self._summary.empty[task] = self._reasons.pop(task)
            if task in self._predicted:
                self._replace(task)
            stored += 1
        self._progress.advance(stored)

    def _is_stored(self, prediction: dict[str, Any]) -> bool:
        try:
            found = self._client.predictions(prediction["task"])
        except GoneError:
            return False
        return any(entry.get("model_version") == prediction["model_version"] for entry in found)

    def _replace(self, task: int) -> None:
        """Replace what is out of date; Label Studio would go on to show it, as the older one."""
        version = self._summary.model_version
        try:
            found = self._client.predictions(task)
            fresh = {each["id"] for each in found if each.get("model_version") == version}
            old = [int(each["id"]) for each in found if is_older_version(each.get("model_version"), version)]
            if old and fresh:
                known = frozenset(int(each["id"]) for each in found) - fresh
                stale = Stale(task, version, tuple(old), known)
                self._summary.replaced += replace_predictions(self._client, stale) or 0
        except SignInError:
            raise
        except LabelStudioError as error:
            logger.warning("task %s: older predictions were left (%s)", task, error)
