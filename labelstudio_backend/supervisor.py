"""The server's side of the worker process: start it, hand it jobs by urgency, and start it anew when it dies."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Literal

from labelstudio_backend.model_options import ModelOptions
from labelstudio_backend.worker import Failed, Job, Ready, Reply, serve_jobs

__all__ = ["PAUSES", "ModelUnavailableError", "State", "Supervisor", "WorkerDiedError"]

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "failed", "stopped"]

_SECONDS_BETWEEN_CHECKS = 1.0
_STARTS_IN_A_ROW = 3
_SECONDS_TO_END = 5.0
PAUSES = (1.0, 5.0, 15.0, 60.0)
"""Seconds before the model is loaded again, after it could not be; the last one goes on for ever."""


class WorkerDiedError(Exception):
    """The worker process ended while it worked on this job."""


class ModelUnavailableError(Exception):
    """There is no model: it could not be loaded, or the server stops."""


@dataclass(order=True)
class _Waiting:
    urgency: int
    number: int
    job: Job = field(compare=False)
    reply: asyncio.Future[Reply | Failed] = field(compare=False)


class Supervisor:
    """Runs one worker process. To be used from one event loop.

    Args:
        options: the model.
        cache_bytes: bound of what the worker keeps of images.
        job_seconds: a job that takes longer costs the worker its life.
        on_restart: called whenever a worker has died.
        pauses: seconds before the model is loaded again, after it could not be; the last one goes on for ever.
    """

    def __init__(
        self,
        options: ModelOptions,
        cache_bytes: int,
        job_seconds: float,
        on_restart: Callable[[], None] | None = None,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self.state: State = "loading"
        self.reason = ""
        self.model = ""
        self.device = ""
        self.restarts = 0
        self._options = options
        self._cache_bytes = cache_bytes
        self._job_seconds = job_seconds
        self._on_restart = on_restart
        self._pauses = pauses
        self._waiting: list[_Waiting] = []
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for the worker."""
        return len(self._waiting)

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Begin to load the model, in the background."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End the worker; jobs that wait are refused."""
        self.state = "stopped"
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._refuse_all(ModelUnavailableError("the server is shutting down"))
        await asyncio.to_thread(self._end_process)

    async def submit(self, job: Job, *, urgent: bool) -> Reply | Failed:
        """Have a job done; urgent ones (somebody looks at the screen) go before the others.

        Raises:
            ModelUnavailableError: the model could not be loaded, or the server stops.
            WorkerDiedError: the worker ended during this job.
        """
        if self.state in ("failed", "stopped"):
            raise ModelUnavailableError(self.reason or "the server is shutting down")
        future: asyncio.Future[Reply | Failed] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, _Waiting(0 if urgent else 1, next(self._numbers), job, future))
        self._wake.set()
        return await future

    async def _run(self) -> None:
        failures = 0
        while True:
            self.state = "loading"
            if await self._load():
                failures = 0
                self.state, self.reason = "ready", ""
                await self._work()
                self.restarts += 1
                logger.error("the worker process ended; restarting it")
                if self._on_restart is not None:
                    self._on_restart()
                continue
            # What kept the model from loading may pass: a lack of memory, a file that is being replaced.
            pause = self._pauses[min(failures, len(self._pauses) - 1)]
            failures += 1
            self.state = "failed"
            self._refuse_all(ModelUnavailableError(self.reason))
            await asyncio.sleep(pause)

    async def _load(self) -> bool:
        """Start a worker and wait until its model is loaded."""
        for _ in range(_STARTS_IN_A_ROW):
            await asyncio.to_thread(self._end_process)
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            self._connection = ours
            arguments = (theirs, self._options, self._cache_bytes)
            self._process = multiprocessing.get_context("spawn").Process(
                target=serve_jobs, args=arguments, name="tcl-annotate worker", daemon=True
            )
            await asyncio.to_thread(self._process.start)
            theirs.close()
            try:
                first = await asyncio.to_thread(ours.recv)
            except (EOFError, OSError):
                self.reason = "the worker process ended while loading the model"
                continue
            if isinstance(first, Ready):
                self.model, self.device = first.model, first.device
                logger.info("model %s is ready on %s", first.model, first.device)
                return True
            self.reason = first.reason
            break
        logger.error("no model: %s", self.reason)
        return False

    async def _work(self) -> None:
        """Hand out jobs until the worker is gone."""
        while True:
            if not self._waiting:
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), _SECONDS_BETWEEN_CHECKS)
                except TimeoutError:
                    pass
            if self._process is None or not self._process.is_alive():
                return
            if not self._waiting:
                continue
            item = heapq.heappop(self._waiting)
            if item.reply.done():
                continue
            try:
                reply = await asyncio.to_thread(self._exchange, item.job)
            except asyncio.CancelledError:
                if not item.reply.done():
                    item.reply.set_exception(ModelUnavailableError("the server is shutting down"))
                raise
            # Whatever it is, what the worker says next could be the answer to another job.
            except Exception as error:
                if not item.reply.done():
                    item.reply.set_exception(WorkerDiedError(str(error) or "the worker process ended"))
                return
            if not item.reply.done():
                item.reply.set_result(reply)

    def _exchange(self, job: Job) -> Reply | Failed:
        assert self._connection is not None
        self._connection.send(job)
        if not self._connection.poll(self._job_seconds):
            raise TimeoutError(f"timed out after {self._job_seconds:g} seconds")
        return self._connection.recv()

    def _refuse_all(self, error: Exception) -> None:
        for item in self._waiting:
            if not item.reply.done():
                item.reply.set_exception(error)
        self._waiting.clear()

    def _end_process(self) -> None:
        # The process goes first: that wakes a thread which waits for its answer.
        if self._process is not None and self._process.pid is not None:
            self._process.terminate()
            self._process.join(_SECONDS_TO_END)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
