"""What the routes do: predictions for tasks, the project's version, and the server's status."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import anyio
from anyio import CapacityLimiter, create_task_group

from labelstudio_backend.image_fetch.locations import Owner, origin_of
from labelstudio_backend.image_fetch.tokens import Token, is_token
from labelstudio_backend.interactive import Question, answer_command
from labelstudio_backend.known_regions import results_of_task
from labelstudio_backend.labeling_config import LabelingConfig, ProjectConfig, parse_project_config
from labelstudio_backend.metrics import Metrics
from labelstudio_backend.model_options import FAILED_VERSION, model_version
from labelstudio_backend.predictor import image_digest
from labelstudio_backend.prompts import PromptStore
from labelstudio_backend.replacing import Replacer, stale_predictions
from labelstudio_backend.reports import Reports
from labelstudio_backend.requests import Asked, Context, freeze, read_context
from labelstudio_backend.results import text_result
from labelstudio_backend.schemas import PredictRequest, SetupRequest, TaskData, project_number
from labelstudio_backend.settings import ServerSettings
from labelstudio_backend.supervisor import ModelUnavailableError, Supervisor, WorkerDiedError
from labelstudio_backend.task_answer import asked_images, field_of_unusable, prompt_field, put_together
from labelstudio_backend.worker import Failed, Job, Reply
from labelstudio_backend.worker_pool import WorkerPool
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import SettingsError, TclError, VocabularyError

__all__ = ["BusyError", "RefusedError", "Service"]

logger = logging.getLogger(__name__)

_TASKS_AT_ONCE = 4
"""So many of a batch's images are fetched while the model works on another."""
_VERSIONS_KEPT = 100
_SUGGESTIONS_KEPT = 10
_SUGGESTED_BYTES = 32 << 20
_UNCONFIGURED = "unconfigured"

parse_config = lru_cache(maxsize=64)(parse_project_config)


class BusyError(Exception):
    """As many requests as the server takes are worked on or wait; or there is no model now."""


class RefusedError(Exception):
    """An interactive request that cannot be answered; the message is for the annotator."""


@dataclass(frozen=True)
class _Outcome:
    """One task's answer.

    Attributes:
        results: a JSON list.
        score: of the prediction.
        failed: whether something of the task could not be predicted.
    """

    results: bytes
    score: float
    failed: bool = False


class Service:
    """The backend's logic without its HTTP. To be used from one event loop.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.fetcher = settings.images.fetcher(settings.token)
        self.prompts = PromptStore(settings.state_dir / "prompts.json")
        share = settings.feature_cache_bytes // settings.workers
        restarted = self.metrics.restarts.inc
        self.supervisor = WorkerPool(
            [Supervisor(settings.model, share, settings.job_seconds, restarted) for _ in range(settings.workers)]
        )
        self._requests = 0
        self._replies = ByteBoundedCache[tuple[str, str], Reply](
            settings.result_cache_bytes, lambda reply: len(reply.results)
        )
        self._suggested = ByteBoundedCache[tuple[str, int | None], tuple[bytes, ...]](
            _SUGGESTED_BYTES, lambda suggested: sum(map(len, suggested))
        )
        self.reports = Reports()
        self.replacer = Replacer(settings.images.label_studio_url, self._token_text)
        self._versions: dict[str, None] = {}
        self._started = time.time()

    # -- the routes ----------------------------------------------------------------------------------------------

    async def setup(self, request: SetupRequest) -> str:
        """Take note of a project; returns its model version.

        A project whose configuration cannot be used yet is no error here: backends may be connected first.
        """
        if request.hostname:
            # Requests go to the configured address all the same, so a wrong name can lead nowhere.
            self.fetcher.add_alias(request.hostname)
            if request.access_token and self._is_our_server(request.hostname):
                self._take_token(request.access_token)
        try:
            config = parse_config(request.labeling_config, self.settings.max_names)
            return self._version(config, request.project or "")
        except TclError as error:
            logger.warning("project %s: %s", request.project, error)
            return f"{self.settings.model.model}-{_UNCONFIGURED}"

    async def predict(self, request: PredictRequest) -> bytes:
        """Answer a request for predictions, task by task.

        Without a context a task that fails does not affect others: it gets a result of another version, so that Label
        Studio asks again for it. Why a task failed, or has no regions, stands in its prompt field and in the status.
        What an annotator typed or drew and cannot be answered is answered in the prompt field, too; and so is
        everything where the configuration itself cannot be used.

        Returns:
            The response's JSON.

        Raises:
            SettingsError: the configuration cannot be used, and has no prompt field to say so.
            RefusedError: an interactive request cannot be answered, and there is no prompt field to say so.
            BusyError: there are too many requests, or there is no model.
        """
        project = request.project or ""
        context = request.params.context if request.params else None
        with self._admitted():
            try:
                config = parse_config(request.label_config, self.settings.max_names)
            except TclError as error:
                if (field := field_of_unusable(request.label_config, context)) is None:
                    raise
                return self._response(self._all_failed(request.tasks, field, context, str(error), project))
            version = FAILED_VERSION
            try:
                if context is not None and request.tasks:
                    config = config.for_task(request.tasks[0].data)
                asked = read_context(context, config)
                lines = answer_command(asked, self.prompts, project, remember=self.settings.remember_prompts)
                if asked is not None and asked.context == Context():
                    outcomes = [_Outcome(b"[]", 0.0)] * len(request.tasks)
                elif lines is None:
                    outcomes = await self._answer_all(request.tasks, config, asked, project)
                else:
                    outcomes = _spoken(prompt_field(config, context), lines, len(request.tasks), 1.0)
                version = self._version(config, project)
            except (TclError, RefusedError) as error:
                if (field := prompt_field(config, context)) is None:
                    raise RefusedError(str(error)) from error
                outcomes = _spoken(field, [str(error)], len(request.tasks))
        return self._response(outcomes, version)

    def versions(self) -> list[str]:
        """Model versions that were given out, newest last."""
        return list(self._versions)

    def status(self) -> dict[str, Any]:
        """The server's status, for people."""
        supervisor = self.supervisor
        return {
            "model": self.settings.model.model,
            "state": supervisor.state,
            "reason": supervisor.reason,
            "device": supervisor.device,
            "worker_pid": next(iter(supervisor.pids), None),
            "worker_pids": supervisor.pids,
            "worker_restarts": supervisor.restarts,
            "requests": self._requests,
            "queue": self.settings.queue,
            "jobs_waiting": supervisor.waiting,
            "uptime_seconds": round(time.time() - self._started, 1),
            "typed_prompts": self._prompts_state(),
            "old_predictions_replaced": self.replacer.state,
            "tasks": {name: int(self.metrics.count(name)) for name in ("done", "empty", "failed")},
            "projects": self.reports.summary(),
            "failures": self.reports.failures,
            "empty": self.reports.empty,
        }

    # -- predictions ---------------------------------------------------------------------------------------------

    async def _answer_all(
        self, tasks: Sequence[TaskData], config: ProjectConfig, asked: Asked | None, project: str
    ) -> list[_Outcome]:
        outcomes: list[_Outcome] = [_Outcome(b"[]", 0.0, True)] * len(tasks)
        errors: list[BusyError | RefusedError] = []
        limiter = CapacityLimiter(_TASKS_AT_ONCE)
        added = freeze(self.prompts.get(project))

        async def one(place: int, task: TaskData) -> None:
            async with limiter:
                if errors:
                    return
                try:
                    outcomes[place] = await self._answer_one(task, config, asked, added, project)
                except ModelUnavailableError as error:
                    errors.append(BusyError(f"no model is loaded: {error}"))
                except (BusyError, RefusedError) as error:
                    errors.append(error)

        async with create_task_group() as group:
            for place, task in enumerate(tasks):
                group.start_soon(one, place, task)
        if errors:
            raise errors[0]
        if asked is None:
            self._replace_old(tasks, outcomes, self._version(config, project))
        return outcomes

    async def _answer_one(
        self,
        task: TaskData,
        config: ProjectConfig,
        asked: Asked | None,
        added: Mapping[str, tuple[str, ...]],
        project: str,
    ) -> _Outcome:
        """Answer for all images of a task, or for the one that somebody works on."""
        began = time.perf_counter()
        replies: list[Reply | str] = []
        images: Sequence[tuple[LabelingConfig, object]] = []
        try:
            images = asked_images(config, task.data, asked)
        except TclError as error:
            replies = [str(error)]
        context, known = (None, ()) if asked is None else (asked.context, self._known(task, project))
        for image, url in images:
            question = Question(image, added, context, known)
            try:
                if isinstance(url, TclError):
                    raise url
                replies.append(await self._reply(task, url, question, project))
            except TclError as error:
                replies.append(str(error))
            except WorkerDiedError as error:
                if asked is not None:
                    raise BusyError("the model process ended during this request; try again") from error
                replies.append(f"the model process ended ({error})")
        kind = "default" if asked is None else "interactive"
        self.metrics.seconds.labels(kind).observe(time.perf_counter() - began)
        return self._outcome(task, config, asked, images, replies, project)

    def _outcome(
        self,
        task: TaskData,
        config: ProjectConfig,
        asked: Asked | None,
        images: Sequence[tuple[LabelingConfig, object]],
        replies: Sequence[Reply | str],
        project: str,
    ) -> _Outcome:
        """Put the answers for a task's images together, with the reasons where there are no regions."""
        answer = put_together(images, replies)
        self.metrics.tasks.labels(answer.outcome).inc()
        for note in dict.fromkeys(note for reply in replies if isinstance(reply, Reply) for note in reply.notes):
            logger.warning("project %s: %s", project, note)
        if answer.reason:
            logger.warning("project %s, task %s: %s", project, task.id, answer.reason)
        lines = answer.lines(asked)
        lines += [reply.unkept for reply in replies if isinstance(reply, Reply) and reply.unkept]
        field = prompt_field(config, None) if asked is None else asked.config
        if asked is None:
            self.reports.add(project, task.id, answer.outcome, answer.reason)
        elif lines and (field is None or field.prompt_name is None):
            raise RefusedError("; ".join(lines))
        parts = [reply.results[1:-1] for reply in answer.drawn]
        if asked is not None and parts:
            self._remember(task, project, b"[%b]" % b",".join(parts))
        if field is not None:
            parts += [json.dumps(result).encode() for result in text_result(field, lines)]
        return _Outcome(b"[%b]" % b",".join(parts), answer.score, answer.failed and asked is None)

    def _known(self, task: TaskData, project: str) -> tuple[Mapping[str, Any], ...]:
        """What the task has already, with what was suggested since Label Studio saved the annotator's draft."""
        suggested = [{"result": json.loads(results)} for results in self._suggested.get((project, task.id)) or ()]
        return results_of_task(task.drafts, suggested, task.annotations, task.predictions)

    def _remember(self, task: TaskData, project: str, results: bytes) -> None:
        key = (project, task.id)
        self._suggested.put(key, (results, *(self._suggested.get(key) or ())[: _SUGGESTIONS_KEPT - 1]))

    async def _reply(self, task: TaskData, url: object, question: Question, project: str) -> Reply:
        image = await self.fetcher.fetch(url, Owner(task.id, project_number(project)))
        key = None
        # Region ids must be new in an annotation, so only default predictions can be given twice.
        if question.context is None:
            version = model_version(self.settings.model, question.config, question.added)
            key = (await anyio.to_thread.run_sync(image_digest, image), version)
            if (kept := self._replies.get(key)) is not None:
                return kept
        reply = await self.supervisor.submit(Job(question, image), urgent=key is None)
        if isinstance(reply, Failed):
            raise SettingsError(reply.reason) if reply.internal else VocabularyError(reply.reason)
        if reply.learned is not None and self.settings.remember_prompts:
            try:
                self.prompts.add(project, *reply.learned)
            except TclError as error:
                # The regions were found all the same.
                reply = replace(reply, unkept=f"the prompt is not remembered: {error}")
        if key is not None:
            self._replies.put(key, reply)
        return reply

    def _replace_old(self, tasks: Sequence[TaskData], outcomes: Sequence[_Outcome], version: str) -> None:
        """Have the predictions replaced that are out of date now; where a task failed, those of a model stay."""
        found = []
        for task, outcome in zip(tasks, outcomes, strict=True):
            new = FAILED_VERSION if outcome.failed else version
            if (stale := stale_predictions(task.id, task.predictions, new)) is not None:
                found.append(stale)
        self.replacer.schedule(found)

    def _all_failed(
        self, tasks: Sequence[TaskData], field: LabelingConfig, context: object, reason: str, project: str
    ) -> list[_Outcome]:
        """No task can be predicted, for the same reason; an annotator's question is answered with it alone."""
        if context is not None:
            return _spoken(field, [reason], len(tasks))
        logger.warning("project %s: %s", project, reason)
        said = json.dumps(text_result(field, ["Not predicted:", reason])).encode()
        outcomes = [_Outcome(said, 0.0, True)] * len(tasks)
        for task in tasks:
            self.metrics.tasks.labels("failed").inc()
            self.reports.add(project, task.id, "failed", reason)
        self._replace_old(tasks, outcomes, FAILED_VERSION)
        return outcomes

    def _response(self, outcomes: Sequence[_Outcome], version: str = FAILED_VERSION) -> bytes:
        quoted = json.dumps(version).encode()
        failed = json.dumps(FAILED_VERSION).encode()
        parts = [
            b'{"result":%b,"score":%b,"model_version":%b}'
            % (outcome.results, str(outcome.score).encode(), failed if outcome.failed else quoted)
            for outcome in outcomes
        ]
        return b'{"results":[%b],"model_version":%b}' % (b",".join(parts), quoted)

    # -- helpers -------------------------------------------------------------------------------------------------

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self.supervisor.state == "failed":
            raise BusyError(f"no model is loaded: {self.supervisor.reason}")
        if self._requests >= self.settings.queue:
            self.metrics.refused.inc()
            raise BusyError(f"{self.settings.queue} requests are running or queued; try again soon")
        self._requests += 1
        self.metrics.requests.set(self._requests)
        try:
            yield
        finally:
            self._requests -= 1
            self.metrics.requests.set(self._requests)

    def _take_token(self, text: str) -> None:
        """Use the token that Label Studio sends, unless the operator gave one; a later one takes its place."""
        if self.settings.token is not None:
            return
        if not is_token(text):
            logger.warning("the token of a setup request was ignored: it contains a character that no token has")
        elif self.fetcher.token is None or self.fetcher.token.secret != text:
            self.fetcher.token = Token(text)

    def _token_text(self) -> str | None:
        return None if self.fetcher.token is None else self.fetcher.token.secret

    def _prompts_state(self) -> str:
        if not self.settings.remember_prompts:
            return "answered, not remembered"
        return "remembered" if self.settings.credentials else "remembered, from anybody who can connect"

    def _version(self, config: ProjectConfig, project: str) -> str:
        version = model_version(self.settings.model, config, self.prompts.get(project))
        self._versions[version] = None
        if len(self._versions) > _VERSIONS_KEPT:
            del self._versions[next(iter(self._versions))]
        return version

    def _is_our_server(self, hostname: str) -> bool:
        try:
            return origin_of(hostname) == self.fetcher.site.origin
        except SettingsError:
            return False


def _spoken(field: LabelingConfig | None, lines: Sequence[str], tasks: int, score: float = 0.0) -> list[_Outcome]:
    """The same text for every task."""
    said = [] if field is None else text_result(field, lines)
    return [_Outcome(json.dumps(said).encode(), score)] * tasks
