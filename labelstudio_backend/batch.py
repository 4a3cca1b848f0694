"""Predicting all tasks of a project, without the time-out of Label Studio's own button."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from anyio.from_thread import start_blocking_portal

from labelstudio_backend.client import (
    GoneError,
    LabelStudioClient,
    LabelStudioError,
    Project,
    RefusedError,
    SignInError,
)
from labelstudio_backend.image_fetch.fetching import ImageFetcher
from labelstudio_backend.labeling_config import LabelingConfig, ProjectConfig, parse_project_config
from labelstudio_backend.model_options import ModelOptions, model_version
from labelstudio_backend.predictor import Prediction, Predictor
from labelstudio_backend.prompts import Added
from labelstudio_backend.replacing import Stale, is_older_version, replace_predictions
from labelstudio_backend.requests import freeze
from labelstudio_backend.results import text_result
from labelstudio_backend.task_answer import prompt_field, put_together
from labelstudio_backend.task_pipeline import StopError, Task, TaskPipeline, TaskResult, stages_of
from tcl_core.errors import TclError
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.processes import start_workers
from tcl_core.jobs.progress import Progress
from tcl_core.jobs.times import StageTimes

__all__ = ["BulkSummary", "predict_project"]

logger = logging.getLogger(__name__)

_REMEDY = "run the command again with fewer --workers"
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
        stages: what reading, network, drawing and storing took.
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
    stages: StageTimes = field(default_factory=StageTimes, compare=False)


def predict_project(
    client: LabelStudioClient,
    project: Project,
    fetcher: ImageFetcher,
    options: ModelOptions,
    added: Added,
    *,
    view: int | None = None,
    only_unlabeled: bool = False,
    workers: int | Literal["auto"] = 0,
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
        workers: processes that decode images and draw regions while the network runs, see
            `tcl_core.jobs.processes.start_workers`. The predictions do not depend on it. The processes import the main
            module, so that a script that asks for them has to guard what it does by ``if __name__ == "__main__"``.
        quiet: show no progress.

    Returns:
        What was done, also when the run was stopped.

    Raises:
        TclError: before the first task if the configuration or the model cannot be used, or the tasks cannot be read.
    """
    config = parse_project_config(project.label_config)
    version = model_version(options, config, added)
    summary = BulkSummary(version)
    wanted = _tasks_to_predict(client, project.id, config, summary, view, only_unlabeled)
    if not wanted:
        return summary
    predictor = Predictor(options.load(), options, cache_bytes=0)
    progress = Progress(summary.total, summary.skipped, quiet=quiet)
    sender = _Sender(client, project.id, summary, progress, prompt_field(config, None))
    with (
        closing(progress),
        InterruptGuard() as guard,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(fetcher),
        ExitStack() as stack,
    ):
        finished: Iterable[TaskResult] = ()
        times = summary.stages
        try:
            with guard.writing():
                count = sum(len(task.images) for task in wanted)
                started = start_workers(workers, stages_of(predictor), count, options.batch_size, _REMEDY)
                stack.callback(started.close)
                pipeline = TaskPipeline(predictor, version, freeze(added), fetcher, portal, started, guard, times)
                stack.callback(pipeline.close)
                finished = pipeline.finished()
                stack.enter_context(times.of("elapsed"))
            for task, found in pipeline.results(wanted):
                with times.of("write"):
                    sender.add(task, found)
                    if sender.is_full:
                        with guard.writing():
                            sender.send()
                progress.bottleneck = times.bottleneck
        except KeyboardInterrupt:
            summary.interrupted = True
        except (SignInError, StopError) as error:
            summary.stopped = str(error)
        guard.hold()
        try:
            with times.of("write"):
                for task, found in finished:
                    sender.add(task, found)
                sender.send()
        except SignInError as error:
            summary.stopped = str(error)
    return summary


def _tasks_to_predict(
    client: LabelStudioClient,
    project: int,
    config: ProjectConfig,
    summary: BulkSummary,
    view: int | None,
    only_unlabeled: bool,
) -> list[Task]:
    """The tasks without a prediction of the summary's version; those looked at and passed over are counted."""
    known = {task["id"] for page in client.tasks(project, model_version=summary.model_version) for task in page}
    wanted: list[Task] = []
    for page in client.tasks(project, view=view):
        for task in page:
            summary.total += 1
            if task["id"] in known or (only_unlabeled and (task.get("total_annotations") or task.get("is_labeled"))):
                summary.skipped += 1
            else:
                images = config.images_of(task.get("data") or {})
                wanted.append(Task(task["id"], images, bool(task.get("total_predictions", 1))))
    return wanted


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

    def add(self, task: Task, found: Sequence[Prediction | str]) -> None:
        """Take a task's predictions; where one of its images failed, the task is reported instead."""
        answer = put_together(task.images, found)
        if answer.failed:
            self._fail(task.id, answer.reason)
            return
        version = self._summary.model_version
        results = [result for each in answer.drawn for result in each.results]
        if answer.outcome == "empty":
            self._reasons[task.id] = answer.reason
        if self._field is not None:
            results += text_result(self._field, answer.lines(None), f"{version}/{task.id}")
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
            self._send_one_by_one(batch, error)
            return
        lost = [] if created == len(batch) else [p["task"] for p in batch if not self._is_stored(p)]
        for task in lost:
            self._fail(task, "Label Studio did not store the prediction")
        self._note([prediction for prediction in batch if prediction["task"] not in lost])

    def _send_one_by_one(self, batch: list[dict[str, Any]], error: TclError) -> None:
        """Send what one prediction, such as that of a task which is gone by now, made Label Studio refuse with it."""
        stored: list[dict[str, Any]] = []
        if not isinstance(error, RefusedError):
            # Without an answer it may have stored them all the same; stored again, every region would be there twice.
            with suppress(LabelStudioError):
                stored = [prediction for prediction in batch if self._is_stored(prediction)]
        self._note(stored)
        there = {prediction["task"] for prediction in stored}
        for prediction in batch:
            if prediction["task"] in there:
                continue
            if len(batch) == 1:
                self._fail(prediction["task"], str(error))
                return
            self._batch = [prediction]
            self.send()

    def _note(self, batch: list[dict[str, Any]]) -> None:
        """Count predictions that are stored, and replace older ones of their tasks."""
        for task in (prediction["task"] for prediction in batch):
            self._summary.done += 1
            if task in self._reasons:
                self._summary.empty[task] = self._reasons.pop(task)
            if task in self._predicted:
                self._replace(task)
        self._progress.advance(len(batch))

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
