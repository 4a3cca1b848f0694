"""What the routes do: predictions for tasks, the project's version, and the server's status."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import anyio
from anyio import CapacityLimiter, create_task_group

from labelstudio_backend.image_fetch.locations import origin_of
from labelstudio_backend.image_fetch.tokens import Token
from labelstudio_backend.interactive import Question, answer_command
from labelstudio_backend.labeling_config import LabelingConfig, parse_labeling_config
from labelstudio_backend.metrics import Metrics
from labelstudio_backend.model_options import FAILED_VERSION, model_version
from labelstudio_backend.predictor import image_digest
from labelstudio_backend.prompts import PromptStore
from labelstudio_backend.requests import freeze, read_context
from labelstudio_backend.schemas import PredictRequest, SetupRequest, TaskData
from labelstudio_backend.settings import ServerSettings
from labelstudio_backend.supervisor import ModelUnavailableError, Supervisor, WorkerDiedError
from labelstudio_backend.worker import Failed, Job, Reply
from tcl_core.caching import ByteBoundedCache
from tcl_core.errors import SettingsError, TclError, VocabularyError

__all__ = ["BusyError", "RefusedError", "Service"]

logger = logging.getLogger(__name__)

_TASKS_AT_ONCE = 4
"""So many of a batch's images are fetched while the model works on another."""
_FAILURES_KEPT = 200
_VERSIONS_KEPT = 100
_UNCONFIGURED = "unconfigured"

parse_config = lru_cache(maxsize=64)(parse_labeling_config)


class BusyError(Exception):
    """As many requests as the server takes are worked on or wait; or there is no model now."""


class RefusedError(Exception):
    """An interactive request that cannot be answered; the message is for the annotator."""


@dataclass(frozen=True)
class _Outcome:
    """One task's answer, or why there is none."""

    reply: Reply | None
    reason: str = ""


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
        self.supervisor = Supervisor(
            settings.model, settings.feature_cache_bytes, settings.job_seconds, self.metrics.restarts.inc
        )
        self._requests = 0
        self._replies = ByteBoundedCache[tuple[str, str], Reply](
            settings.result_cache_bytes, lambda reply: len(reply.results)
        )
        self._failures: deque[dict[str, Any]] = deque(maxlen=_FAILURES_KEPT)
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
            if request.access_token and self.fetcher.token is None and self._is_our_server(request.hostname):
                self.fetcher.token = Token(request.access_token)
        try:
            return self._version(parse_config(request.labeling_config), request.project or "")
        except TclError as error:
            logger.warning("project %s: %s", request.project, error)
            return f"{self.settings.model.model}-{_UNCONFIGURED}"

    async def predict(self, request: PredictRequest) -> bytes:
        """Answer a request for predictions, task by task.

        Without a context a task that fails does not affect others: it gets an empty result of another version, so that
        Label Studio asks again for it, and its reason stands in the status.

        Returns:
            The response's JSON.

        Raises:
            SettingsError: the configuration cannot be used.
            RefusedError: an interactive request cannot be answered.
            BusyError: there are too many requests, or there is no model.
        """
        config = parse_config(request.label_config)
        project = request.project or ""
        context = read_context(request.params.context if request.params else None, config)
        with self._admitted():
            lines = answer_command(context, config, self.prompts, project)
            if lines is not None:
                spoken = json.dumps(lines).encode()
                outcomes = [_Outcome(Reply(spoken, len(lines), 1.0, (), None)) for _ in request.tasks]
            else:
                question = Question(config, freeze(self.prompts.get(project)), context)
                outcomes = await self._answer_all(request.tasks, question, project)
        return self._response(outcomes, self._version(config, project))

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
            "worker_pid": supervisor.pid,
            "worker_restarts": supervisor.restarts,
            "requests": self._requests,
            "queue": self.settings.queue,
            "jobs_waiting": supervisor.waiting,
            "uptime_seconds": round(time.time() - self._started, 1),
            "tasks": {"done": int(self.metrics.count("done")), "failed": int(self.metrics.count("failed"))},
            "failures": list(self._failures),
        }

    # -- predictions ---------------------------------------------------------------------------------------------

    async def _answer_all(self, tasks: Sequence[TaskData], question: Question, project: str) -> list[_Outcome]:
        outcomes: list[_Outcome] = [_Outcome(None)] * len(tasks)
        errors: list[BusyError | RefusedError] = []
        limiter = CapacityLimiter(_TASKS_AT_ONCE)

        async def one(place: int, task: TaskData) -> None:
            async with limiter:
                if errors:
                    return
                try:
                    outcomes[place] = await self._answer_one(task, question, project)
                except ModelUnavailableError as error:
                    errors.append(BusyError(f"no model is loaded: {error}"))
                except (BusyError, RefusedError) as error:
                    errors.append(error)

        async with create_task_group() as group:
            for place, task in enumerate(tasks):
                group.start_soon(one, place, task)
        if errors:
            raise errors[0]
        return outcomes

    async def _answer_one(self, task: TaskData, question: Question, project: str) -> _Outcome:
        interactive = question.context is not None
        began = time.perf_counter()
        try:
            reply = await self._reply(task, question, project)
        except TclError as error:
            return self._fail(task, project, str(error), interactive)
        except WorkerDiedError as error:
            if interactive:
                raise BusyError("the model process ended during this request; try again") from error
            return self._fail(task, project, f"the model process ended ({error})", interactive)
        self.metrics.tasks.labels("done").inc()
        self.metrics.seconds.labels("interactive" if interactive else "default").observe(time.perf_counter() - began)
        for note in reply.notes:
            logger.warning("project %s: %s", project, note)
        return _Outcome(reply)

    async def _reply(self, task: TaskData, question: Question, project: str) -> Reply:
        url = task.data.get(question.config.image_key)
        if url is None:
            raise SettingsError(f"the task has no {question.config.image_key!r} in its data")
        image = await self.fetcher.fetch(url)
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
        if reply.learned is not None:
            self.prompts.add(project, *reply.learned)
        if key is not None:
            self._replies.put(key, reply)
        return reply

    def _fail(self, task: TaskData, project: str, reason: str, interactive: bool) -> _Outcome:
        self.metrics.tasks.labels("failed").inc()
        logger.warning("project %s, task %s: %s", project, task.id, reason)
        if interactive:
            raise RefusedError(reason)
        self._failures.append({"project": project, "task": task.id, "reason": reason})
        return _Outcome(None, reason)

    def _response(self, outcomes: Sequence[_Outcome], version: str) -> bytes:
        quoted = json.dumps(version).encode()
        failed = json.dumps(FAILED_VERSION).encode()
        parts = [
            b'{"result":[],"score":0.0,"model_version":%b}' % failed
            if outcome.reply is None
            else b'{"result":%b,"score":%b,"model_version":%b}'
            % (outcome.reply.results, str(outcome.reply.score).encode(), quoted)
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

    def _version(self, config: LabelingConfig, project: str) -> str:
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
