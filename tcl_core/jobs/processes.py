"""Worker processes for the stages before and after the network.

Each worker is a process with a connection of its own, so that one that is killed is noticed at once, by name of the
image it had, and holds no lock that others wait for. A worker ends when its parent does, whatever ended that.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Lock
from typing import Any, Generic, Literal

from tcl_core.errors import SettingsError
from tcl_core.jobs.attached import attach_to_parent, blocked_signals
from tcl_core.jobs.pipeline import done
from tcl_core.jobs.stages import printable_name
from tcl_core.jobs.workers import AnyStages, AnyWorkers, DecidedT, InlineWorkers, ReadT, TaskT, TracedT

__all__ = ["LARGE_IMAGE", "ProcessWorkers", "WorkerLostError", "automatic_count", "check_workers", "start_workers"]

LARGE_IMAGE = 24_000_000
"""Images of more pixels are worked on one at a time, so that memory does not grow with the number of workers."""

_PIXELS_BEHIND = 48_000_000
_PIXELS_BEHIND_OF_WORKER = 12_000_000
_SECONDS_TO_END = 5
_MOST_WORKERS = 16
_MOST_ASKED, _MOST_OF_A_CORE = 32, 4
_FEW_IMAGES = 32
"""Fewer are done before workers have started."""


class WorkerLostError(SettingsError):
    """A worker process ended before its work did."""


def start_workers(
    count: int | Literal["auto"],
    stages: AnyStages[TaskT, ReadT, DecidedT, TracedT],
    images: int,
    batch_size: int = 8,
    remedy: str = "go on with --resume and fewer --workers",
) -> AnyWorkers[TaskT, ReadT, DecidedT, TracedT]:
    """The workers of a job.

    Args:
        count: number of processes; 0 does all work in this one. ``"auto"`` is `automatic_count`, and 0 for an exporter
            that cannot be sent to another process.
        stages: what to do.
        images: how many have no result yet.
        batch_size: images that the network takes together.
        remedy: what to do if a worker is lost.

    Raises:
        SettingsError: the count is negative or too large for the machine, or the exporter cannot be sent.
    """
    if count == "auto":
        count = automatic_count(images) if _can_be_sent(stages) else 0
    check_workers(count)
    return ProcessWorkers(stages, count, batch_size, remedy) if count else InlineWorkers(stages)


def check_workers(count: int) -> None:
    """Refuse a number of workers that would take the machine's memory and gain nothing.

    Raises:
        SettingsError: it is negative, or above 32 and four for each core.
    """
    if count < 0:
        raise SettingsError(f"--workers {count}: give auto, or a number of processes, 0 or more")
    cores = _cores()
    most = max(_MOST_ASKED, _MOST_OF_A_CORE * cores)
    if count > most:
        raise SettingsError(
            f"--workers {count}: this machine has {cores} core{'s' * (cores > 1)}, where more than {most} processes "
            "gain nothing and can take all its memory; give auto, or fewer"
        )


def automatic_count(images: int) -> int:
    """One worker for each core that this process may use, at most 16; none for few images or on one core."""
    cores = _cores()
    return min(cores, _MOST_WORKERS) if cores > 1 and images >= _FEW_IMAGES else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_be_sent(stages: object) -> bool:
    try:
        pickle.dumps(stages)
    except Exception:
        return False
    return True


class ProcessWorkers(Generic[TaskT, ReadT, DecidedT, TracedT]):
    """Processes that read images and trace regions.

    Args:
        stages: what to do.
        count: number of processes, at least 1.
        batch_size: images that the network takes together, so that two batches are read ahead of it.
        remedy: what to do if a worker is lost.

    Raises:
        SettingsError: the exporter cannot be sent to another process.
    """

    def __init__(
        self,
        stages: AnyStages[TaskT, ReadT, DecidedT, TracedT],
        count: int,
        batch_size: int = 8,
        remedy: str = "go on with --resume and fewer --workers",
    ) -> None:
        if not _can_be_sent(stages):
            raise SettingsError(f"{stages.custom} cannot be sent to another process; use 0 workers")
        self.count = count
        self.ahead = 2 * batch_size + 2 * count
        self.behind = batch_size + 2 * count
        self.pixels_behind = max(_PIXELS_BEHIND, count * _PIXELS_BEHIND_OF_WORKER)
        self._stages, self._remedy = stages, remedy
        context = multiprocessing.get_context("spawn")
        self._one_large = context.Lock()
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._closed = False
        # A worker inherits what is blocked: signals are for this process, which ends the workers in its own time.
        with blocked_signals():
            for _ in range(count):
                worker = _Worker(context, (stages, self._one_large))
                self._workers.append(worker)
                self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="tcl-annotate worker")

    def read(self, task: TaskT) -> Future[ReadT]:
        """Let a worker read an image."""
        return self._threads.submit(self._call, "read", task)

    def trace(self, decided: DecidedT) -> Future[TracedT]:
        """Let a worker trace regions; those of a large image are traced here, before this returns."""
        if decided.pixels > LARGE_IMAGE:
            with self._one_large:
                return done(self._stages.trace(decided))
        return self._threads.submit(self._call, "trace", decided)

    def close(self) -> None:
        """End the workers, in the middle of an image if they have one."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.end()
        self._threads.shutdown(wait=True)

    def _call(self, stage: Literal["read", "trace"], task: Any) -> Any:
        if stage == "trace":
            # Here rather than in `trace`, which the network waits for.
            task = task.packed()
        worker = self._idle.get()
        try:
            return worker.call((stage, task))
        except (EOFError, OSError) as error:
            raise self._lost(worker, task.name) from error
        finally:
            # One that is gone answers the next call with the same error.
            self._idle.put(worker)

    def _lost(self, worker: _Worker, name: str) -> WorkerLostError:
        return WorkerLostError(
            f"a worker process ended while it had the image {printable_name(name)} ({worker.ending()}); what was done "
            f"is kept, so {self._remedy} (there were {self.count})"
        )


class _Worker:
    """A process and the connection to it, for one call at a time."""

    def __init__(self, context: Any, arguments: tuple[Any, Lock]) -> None:
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *arguments), daemon=True)
        self._process.start()
        # Else this process would keep the connection open after the worker's end.
        theirs.close()

    def call(self, task: Any) -> Any:
        self._connection.send(task)
        return self._connection.recv()

    def ending(self) -> str:
        """How the process ended."""
        self._process.join(_SECONDS_TO_END)
        code = self._process.exitcode
        if code is not None and code < 0:
            killed = " (perhaps for lack of memory)" if code == -getattr(signal, "SIGKILL", 9) else ""
            return f"{signal.Signals(-code).name}{killed}"
        return f"exit code {code}"

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


# -- in a worker -------------------------------------------------------------------------------------------------------


def _work(connection: Connection, stages: Any, one_large: Lock) -> None:
    """Answer calls until the parent closes the connection."""
    attach_to_parent()
    while True:
        try:
            stage, task = connection.recv()
        except (EOFError, OSError):
            return
        answer: Any
        if stage == "read":
            with one_large if _is_large(stages, task) else nullcontext():
                answer = stages.read(task)
        else:
            answer = stages.trace(task)
        if answer.failure is not None:
            answer = replace(answer, failure=answer.failure.portable())
        try:
            connection.send(answer)
        except OSError:
            return
        del task, answer


def _is_large(stages: AnyStages[TaskT, Any, Any, Any], task: TaskT) -> bool:
    return stages.header_pixels(task) > LARGE_IMAGE
