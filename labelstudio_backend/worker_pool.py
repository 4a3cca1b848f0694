"""Several worker processes that share the server's jobs."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from labelstudio_backend.supervisor import State, Supervisor
from labelstudio_backend.worker import Failed, Job, Reply

__all__ = ["WorkerPool"]

_IMAGES_REMEMBERED = 1000


class WorkerPool:
    """One or more workers, each with a model of its own. To be used from one event loop.

    An image goes to the worker that had it last, which still knows its features, unless another one has less to do.

    Args:
        workers: at least one, none of them started.
    """

    def __init__(self, workers: Sequence[Supervisor]) -> None:
        self._workers = tuple(workers)
        self._running = [0] * len(self._workers)
        self._last: dict[bytes, int] = {}

    @property
    def state(self) -> State:
        """That of the worker that is best off."""
        states = [worker.state for worker in self._workers]
        best: Sequence[State] = ("ready", "loading", "failed", "stopped")
        return next(state for state in best if state in states)

    @property
    def reason(self) -> str:
        """Why a worker has no model, where none has one."""
        return next((worker.reason for worker in self._workers if worker.reason), "")

    @property
    def device(self) -> str:
        """Where the models run."""
        return ", ".join(dict.fromkeys(worker.device for worker in self._workers if worker.device))

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    @property
    def restarts(self) -> int:
        """How often a worker was started again."""
        return sum(worker.restarts for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Number of jobs that wait for a worker."""
        return sum(worker.waiting for worker in self._workers)

    def start(self) -> None:
        """Begin to load the models, in the background."""
        for worker in self._workers:
            worker.start()

    async def stop(self) -> None:
        """End the workers; jobs that wait are refused."""
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def submit(self, job: Job, *, urgent: bool) -> Reply | Failed:
        """Have a job done; see :meth:`labelstudio_backend.supervisor.Supervisor.submit`."""
        place = self._place(hashlib.sha256(job.image).digest())
        self._running[place] += 1
        try:
            return await self._workers[place].submit(job, urgent=urgent)
        finally:
            self._running[place] -= 1

    def _place(self, image: bytes) -> int:
        best = self.state
        able = [place for place, worker in enumerate(self._workers) if worker.state == best]
        place = min(able, key=lambda each: self._running[each])
        last = self._last.pop(image, place)
        if last in able and self._running[last] <= self._running[place]:
            place = last
        self._last[image] = place
        if len(self._last) > _IMAGES_REMEMBERED:
            del self._last[next(iter(self._last))]
        return place
