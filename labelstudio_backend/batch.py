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

from labelstudio_backend.client import LabelStudioClient, Project
from labelstudio_backend.image_fetch.fetching import ImageFetcher
from labelstudio_backend.interactive import Question, answer
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.model_options import ModelOptions, model_version
from labelstudio_backend.predictor import Predictor
from labelstudio_backend.prompts import Added
from labelstudio_backend.requests import freeze
from tcl_core.errors import ImageError, TclError, is_out_of_memory
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
        interrupted: whether the run was stopped before its end.
    """

    model_version: str
    total: int = 0
    done: int = 0
    skipped: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    interrupted: bool = False


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

    A task that fails is skipped and reported. SIGINT and SIGTERM end the run between two tasks, with what is done
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
    config = parse_labeling_config(project.label_config)
    version = model_version(options, config, added)
    summary = BulkSummary(version)
    known = {task["id"] for page in client.tasks(project.id, model_version=version) for task in page}
    wanted: list[dict[str, Any]] = []
    for page in client.tasks(project.id, view=view):
        for task in page:
            summary.total += 1
            if task["id"] in known or (only_unlabeled and (task.get("total_annotations") or task.get("is_labeled"))):
                summary.skipped += 1
            else:
                wanted.append({"id": task["id"], "url": (task.get("data") or {}).get(config.image_key)})
    if not wanted:
        return summary
    predictor = Predictor(options.load(), options, cache_bytes=0)
    question = Question(config, freeze(added))
    progress = Progress(summary.total, summary.skipped, quiet=quiet)
    sender = _Sender(client, project.id, summary, progress)
    try:
        with (
            InterruptGuard() as guard,
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(fetcher),
        ):
            try:
                for task, fetched in _prefetched(wanted, fetcher, portal):
                    _predict_task(task, fetched, predictor, question, sender)
                    if sender.is_full:
                        with guard.writing():
                            sender.send()
            except KeyboardInterrupt:
                summary.interrupted = True
            guard.hold()
            sender.send()
    finally:
        progress.close()
    return summary


def _prefetched(
    tasks: Sequence[dict[str, Any]], fetcher: ImageFetcher, portal: BlockingPortal
) -> Iterator[tuple[dict[str, Any], Future[bytes]]]:
    """Tasks with their images on the way; every image is released once its task is over."""
    running: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
    coming = iter(tasks)
    try:
        while True:
            while len(running) <= _AHEAD and (task := next(coming, None)) is not None:
                running.append((task, portal.start_task_soon(fetcher.fetch, task["url"])))
            if not running:
                return
            yield running.popleft()
    finally:
        for _, future in running:
            future.cancel()


def _predict_task(
    task: dict[str, Any], fetched: Future[bytes], predictor: Predictor, question: Question, sender: _Sender
) -> None:
    try:
        if task["url"] is None:
            raise ImageError(f"the task has no {question.config.image_key!r} in its data")
        found = answer(predictor, question, fetched.result()).prediction
    except TclError as error:
        sender.fail(task["id"], str(error))
    except Exception as error:
        logger.exception("task %s", task["id"])
        short = "there is not enough free memory for its image; use a smaller one, or another device"
        sender.fail(task["id"], short if is_out_of_memory(error) else f"internal error, {type(error).__name__}")
    else:
        sender.add(task["id"], found.results, found.score)


class _Sender:
    """Stores predictions in batches and keeps the books."""

    def __init__(self, client: LabelStudioClient, project: int, summary: BulkSummary, progress: Progress) -> None:
        self._client = client
        self._project = project
        self._summary = summary
        self._progress = progress
        self._batch: list[dict[str, Any]] = []
        self._characters = 0

    @property
    def is_full(self) -> bool:
        return len(self._batch) >= _BATCH or self._characters >= _BATCH_CHARACTERS

    def add(self, task: int, results: list[dict[str, Any]], score: float) -> None:
        version = self._summary.model_version
        self._batch.append({"task": task, "result": results, "score": score, "model_version": version})
        self._characters += len(json.dumps(results))

    def fail(self, task: int, reason: str) -> None:
        self._summary.failed[task] = reason
        self._progress.skip(f"task {task}: {reason}")

    def send(self) -> None:
        """Store the batch; Label Studio drops what it does not like without a word, so its count is compared."""
        if not self._batch:
            return
        batch, self._batch, self._characters = self._batch, [], 0
        try:
            created = self._client.import_predictions(self._project, batch)
        except TclError as error:
            if len(batch) == 1:
                self.fail(batch[0]["task"], str(error))
                return
            # One prediction, such as that of a task which is gone by now, makes Label Studio refuse all.
            for prediction in batch:
                self._batch = [prediction]
                self.send()
            return
        lost = set() if created == len(batch) else {p["task"] for p in batch if not self._is_stored(p)}
        for prediction in batch:
            if prediction["task"] in lost:
                self.fail(prediction["task"], "Label Studio did not store the prediction")
            else:
                self._summary.done += 1
                self._progress.advance()

    def _is_stored(self, prediction: dict[str, Any]) -> bool:
        found = self._client.get("/api/predictions/", task=prediction["task"])
        return any(entry.get("model_version") == prediction["model_version"] for entry in found)
