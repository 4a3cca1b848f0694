"""A Ray cluster that works for a job: connecting, what it has, and actors that are replaced when they are lost.

Ray starts actors where there is room, carries tasks and results, and notices what dies. Tasks are given out again here
rather than by Ray, because a task that ends every actor it is given to has to be told from one that had bad luck.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from tcl_core import __version__
from tcl_core.errors import SettingsError
from tcl_core.jobs.groups import GroupJob, GroupLabeler, GroupResult, GroupTask, LabelerState

if TYPE_CHECKING:
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["Crew", "RayCluster"]

_OBJECT_STORE = 200_000_000
"""Bytes of a local cluster's store: only tasks and results pass through it."""
_TASKS_OF_ACTOR = 2
"""One that it works on, and one so that it need not wait."""
_MOST_LOSSES = 3
_MOST_PROCESSES = 16
_SECONDS_OF_WAITING = 1.0
_SECONDS_TO_SAY = 60.0
_OWN = ("precision", "backend")
"""Settings that follow from a machine's device."""


class RayCluster:
    """A connection to a Ray cluster, as a context manager.

    Args:
        address: ``local`` for processes on this machine, ``auto`` for the cluster that this machine belongs to,
            ``HOST:PORT``, or ``ray://HOST:PORT``.
        make_segmenter: loads the model on a machine of the cluster; it is sent there.
        count: actors, each with a model. ``"auto"``: one for each GPU, or without GPUs as many as there are cores for.
        processes: of each actor, that read and trace beside its network. ``"auto"``: none without a GPU, otherwise the
            cores there are for each GPU, at most 16.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Attributes:
        threads: of each actor's network: as many as PyTorch has here, so that results are those of one process here.
            Without a GPU, so many cores are asked for.

    Raises:
        SettingsError: Ray is not installed, there is no cluster at the address, or it is too small.
    """

    def __init__(
        self,
        address: str,
        make_segmenter: Callable[[], Segmenter],
        count: int | Literal["auto"] = "auto",
        processes: int | Literal["auto"] = "auto",
        device: str = "auto",
    ) -> None:
        if not address:
            raise SettingsError("--ray: the address is empty; give local, auto or HOST:PORT")
        if count != "auto" and count < 1:
            raise SettingsError(f"--ray-workers {count}: give auto, or a number of workers, 1 or more")
        if device.startswith("cuda:"):
            raise SettingsError(f"--device {device}: Ray chooses which device each worker gets; use --device cuda")
        self.address = address
        self.make_segmenter = make_segmenter
        self.count = 0 if count == "auto" else count
        self.processes = 0 if processes == "auto" else processes
        self.gpus = 0
        self.threads = 1
        self._automatic = (count == "auto", processes == "auto")
        self._device = device

    def __enter__(self) -> Self:
        ray = _import_ray()
        import torch

        self.threads = torch.get_num_threads()
        options: dict[str, Any] = {"address": self.address}
        if self.address == "local":
            # A cluster that lives as long as this process has nothing to report to anybody.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            cores = max(os.cpu_count() or 1, self.count * self.cores)
            options |= {"num_cpus": cores, "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
        in_main = threading.current_thread() is threading.main_thread()
        # Ray would take SIGTERM, which ends a job in good order.
        handler = signal.getsignal(signal.SIGTERM) if in_main else None
        try:
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise SettingsError(
                f"--ray {self.address}: no connection to a cluster ({_first_line(error)}); start one (ray start "
                "--head), or use --ray local"
            ) from None
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, handler)
        try:
            self._divide(ray.cluster_resources())
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _import_ray().shutdown()

    def _divide(self, resources: Mapping[str, float]) -> None:
        """Settle how many actors there are, and what each has."""
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if self._device == "cuda" and not gpus:
            raise SettingsError(f"--device cuda: the cluster at {self.address} has no GPU; use --device auto")
        self.gpus = 1 if gpus and self._device in ("auto", "cuda") else 0
        count_is_auto, processes_are_auto = self._automatic
        if self.gpus and processes_are_auto:
            self.processes = max(0, min(_MOST_PROCESSES, cores // gpus - 1))
        if count_is_auto:
            self.count = gpus if self.gpus else max(1, cores // self.cores)
        if self.cores > cores:
            raise SettingsError(
                f"--ray {self.address}: a worker needs {self.cores} cores (its threads and --workers), and the "
                f"cluster has {cores}; use fewer --workers, or set OMP_NUM_THREADS=1"
            )

    @property
    def cores(self) -> int:
        """Of each actor."""
        return (1 if self.gpus else self.threads) + self.processes

    def hire(self, job: GroupJob) -> Any:
        """Start an actor, once there is room for it."""
        actor = _import_ray().remote(GroupLabeler)
        options = {"num_cpus": self.cores, "num_gpus": self.gpus, "scheduling_strategy": "SPREAD"}
        return actor.options(**options, max_restarts=0, max_task_retries=0).remote(job)


@dataclass(eq=False)
class _Worker:
    actor: Any
    starting: Any
    state: LabelerState | None = None
    tasks: deque[tuple[GroupTask, Any]] = field(default_factory=deque)

    def waited_for(self) -> list[Any]:
        return [self.starting] if self.state is None else [ref for _, ref in self.tasks]


class Crew:
    """The actors of one job.

    Args:
        cluster: where they are.
        job: what they do.
        settings: of the segmenter here, which theirs must agree with.
        say: told what a user may want to know.
        count: how many.
    """

    def __init__(
        self,
        cluster: RayCluster,
        job: GroupJob,
        settings: Mapping[str, Any],
        say: Callable[[str], None],
        count: int,
    ) -> None:
        self._ray = _import_ray()
        self._cluster, self._job, self._count = cluster, job, count
        self.say = say
        self._expected = {name: value for name, value in settings.items() if name not in _OWN}
        self._workers: list[_Worker] = []
        self._again: deque[GroupTask] = deque()
        self._losses: dict[int, int] = {}
        self._failed_starts = 0
        self._waiting_since = time.monotonic()
        self.lost = 0

    def settings(self) -> Mapping[str, Any]:
        """Settings of the actors' segmenters, as soon as the first has loaded its model.

        Raises:
            SettingsError: none can load it.
        """
        while True:
            for worker in self._workers:
                if worker.state is not None:
                    return worker.state.settings
            self._keep(self._count)
            self._look()

    def results(
        self, tasks: Iterator[GroupTask], may_start: Callable[[], bool]
    ) -> Iterator[tuple[GroupTask, GroupResult | None]]:
        """Let the actors work off tasks.

        Args:
            tasks: taken only when an actor is free for one.
            may_start: whether one more may be taken now.

        Yields:
            Each task with its result, in the order in which they end; ``None`` for a task of one group that ended three
            actors. Tasks of several groups that were lost come back as one task for each group.

        Raises:
            SettingsError: actors cannot load the model, or have another one.
        """
        upcoming = next(tasks, None)
        while True:
            self._keep(self._count if upcoming is not None or self._again else 1)
            for worker in self._idlest():
                while len(worker.tasks) < _TASKS_OF_ACTOR:
                    if self._again:
                        task = self._again.popleft()
                    elif upcoming is not None and may_start():
                        task, upcoming = upcoming, next(tasks, None)
                    else:
                        break
                    worker.tasks.append((task, worker.actor.label.remote(task)))
            if not self._again and upcoming is None and not any(worker.tasks for worker in self._workers):
                return
            yield from self._look()

    def dismiss(self) -> None:
        """End all actors, in the middle of a task if they have one."""
        for worker in self._workers:
            self._end(worker)
        self._workers.clear()

    def _idlest(self) -> list[_Worker]:
        ready = [worker for worker in self._workers if worker.state is not None]
        return sorted(ready, key=lambda worker: len(worker.tasks))

    def _keep(self, count: int) -> None:
        while len(self._workers) < count:
            actor = self._cluster.hire(self._job)
            self._workers.append(_Worker(actor, actor.state.remote()))

    def _look(self) -> list[tuple[GroupTask, GroupResult | None]]:
        """Wait a moment for whatever happens next, and take account of it."""
        by_ref = {ref: worker for worker in self._workers for ref in worker.waited_for()}
        done, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=_SECONDS_OF_WAITING)
        self._say_if_waiting()
        answers: list[tuple[GroupTask, GroupResult | None]] = []
        for worker in {by_ref[ref] for ref in done}:
            try:
                if worker.state is None:
                    self._welcome(worker, self._ray.get(worker.starting))
                else:
                    answers += self._take(worker)
            except self._ray.exceptions.RayTaskError as error:
                # A fault of the program, which another actor would have too.
                raise error from None
            except self._ray.exceptions.RayError as error:
                answers += self._mourn(worker, _first_line(error))
        return answers

    def _take(self, worker: _Worker) -> list[tuple[GroupTask, GroupResult | None]]:
        answers: list[tuple[GroupTask, GroupResult | None]] = []
        while worker.tasks:
            task, ref = worker.tasks[0]
            if not self._ray.wait([ref], timeout=0)[0]:
                break
            try:
                answers.append((task, self._ray.get(ref)))
            except self._ray.exceptions.RayTaskError as error:
                raise error from None
            except self._ray.exceptions.RayError as error:
                answers += self._mourn(worker, _first_line(error))
                break
            worker.tasks.popleft()
        return answers

    def _welcome(self, worker: _Worker, state: LabelerState) -> None:
        where = f"the worker on {state.machine}"
        if state.problem:
            raise SettingsError(f"{where} cannot work: {state.problem}")
        if state.version != __version__:
            raise SettingsError(f"{where} has tcl-annotate {state.version}, here it is {__version__}; install the same")
        others = next((other.state for other in self._workers if other.state is not None), None)
        known = self._expected if others is None else {**self._expected, **others.settings}
        for name, value in known.items():
            if state.settings[name] != value:
                raise SettingsError(
                    f"{where} has {name} {state.settings[name]}, elsewhere it is {value}; use the same model, packages "
                    "and kind of device on every machine"
                )
        worker.state = state
        self._failed_starts = 0
        self.say(f"worker on {state.machine} is ready ({state.device})")

    def _mourn(self, worker: _Worker, reason: str) -> list[tuple[GroupTask, GroupResult | None]]:
        """Give a lost actor's tasks to others; the one it worked on only so often."""
        self._workers.remove(worker)
        self._end(worker)
        if worker.state is None:
            self._failed_starts += 1
            if self._failed_starts >= _MOST_LOSSES:
                raise SettingsError(
                    f"{self._failed_starts} workers of Ray ended while they loaded the model ({reason}); there may be "
                    "too little memory for so many, so use fewer --ray-workers"
                )
            return []
        self.lost += 1
        self.say(f"worker on {worker.state.machine} was lost; its images are done again")
        tasks = [task for task, _ in worker.tasks]
        if not tasks:
            return []
        answers: list[tuple[GroupTask, GroupResult | None]] = []
        blamed, *others = tasks
        again = []
        for task in blamed.single():
            place = task.places[0]
            self._losses[place] = self._losses.get(place, 0) + 1
            if len(blamed.groups) == 1 and self._losses[place] >= _MOST_LOSSES:
                answers.append((task, None))
            else:
                again.append(task)
        self._again.extendleft(reversed([*again, *others]))
        return answers

    def _end(self, worker: _Worker) -> None:
        self._ray.kill(worker.actor, no_restart=True)

    def _say_if_waiting(self) -> None:
        now = time.monotonic()
        if any(worker.state is not None for worker in self._workers):
            self._waiting_since = now
        elif now - self._waiting_since > _SECONDS_TO_SAY:
            self._waiting_since = now
            self.say("waiting for the cluster to start a worker")


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise SettingsError("--ray: Ray is not installed; install it (pip install 'tcl-annotate[ray]')") from None
    return ray


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    first = text.partition(". ")[0].removesuffix(".")
    return first if len(first) <= 200 else f"{first[:197]}..."
