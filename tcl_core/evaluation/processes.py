"""One evaluation shared by several processes, started here or by ``torchrun``."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.queues import Queue
from typing import Any, NoReturn

import torch

from tcl_core.errors import SettingsError, TclError
from tcl_core.evaluation.jobs import EvaluationJob
from tcl_core.evaluation.page import write_page
from tcl_core.evaluation.report import write_result
from tcl_core.evaluation.run import Evaluation, Share

__all__ = ["OnProgress", "on_device_of_torchrun", "run_job", "torchrun_share"]

OnProgress = Callable[[str, int, int], None]
"""Called with the current step (``"check"`` or ``"evaluate"``), the number of finished images and the total."""

_WAITS = timedelta(days=7)
_POLL_SECONDS = 0.5


def torchrun_share(environment: Mapping[str, str] = os.environ) -> Share | None:
    """The share of this process under ``torchrun``; ``None`` without it.

    Raises:
        SettingsError: its variables are not numbers.

    >>> torchrun_share({"RANK": "1", "WORLD_SIZE": "4"})
    Share(process=1, count=4)
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    try:
        return Share(int(environment["RANK"]), int(environment["WORLD_SIZE"]))
    except ValueError:
        raise SettingsError("RANK and WORLD_SIZE are not numbers; unset them, or start with torchrun") from None


def run_job(
    job: EvaluationJob,
    processes: int = 1,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    checked: bool = False,
) -> dict[str, Any] | None:
    """Evaluate, or resume an earlier run, and write the results.

    Args:
        job: what to evaluate.
        processes: number of processes on this machine that share the images; under ``torchrun``, its processes do.
        overwrite: start over instead of resuming.
        on_progress: called for all processes together.
        checked: whether labels and images were checked before.

    Returns:
        The result, see `tcl_core.evaluation.report.build_result`; ``None`` in all but the first process of
        ``torchrun``.

    Raises:
        TclError: something cannot be read, written or used; finished images stay finished.
    """
    share = torchrun_share()
    if share is not None and share.count > 1:
        return _run_under_torchrun(job, share, overwrite, on_progress, checked)
    evaluation = job.open()
    if overwrite:
        evaluation.start_anew()
    if processes > 1:
        _start(job, processes, on_progress, checked)
    else:
        evaluation.work(on_progress=on_progress, checked=checked)
    return _finish(job, evaluation, [])


def _finish(job: EvaluationJob, evaluation: Evaluation, more: list[str]) -> dict[str, Any]:
    result = write_result(evaluation, more)
    if job.page:
        write_page(evaluation, result, more)
    return result


# -- started by torchrun -----------------------------------------------------------------------------------------------


def _run_under_torchrun(
    job: EvaluationJob, share: Share, overwrite: bool, on_progress: OnProgress | None, checked: bool
) -> dict[str, Any] | None:
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_WAITS)
    evaluation = on_device_of_torchrun(job, share).open()
    if overwrite and share.process == 0:
        evaluation.start_anew()
    distributed.barrier()
    evaluation.work(share, on_progress, checked)
    path = evaluation.folder / f"journal-{share.process}.jsonl"
    # Machines need not share a disk, so counts are sent; those of this machine arrive twice and are counted once.
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    gathered: list[list[str] | None] | None = [None] * share.count if share.process == 0 else None
    distributed.gather_object(lines, gathered)
    result = None
    if gathered is not None:
        result = _finish(job, evaluation, [line for part in gathered for line in part or ()])
    distributed.barrier()
    return result


def on_device_of_torchrun(job: EvaluationJob, share: Share) -> EvaluationJob:
    """The job with the GPU of this process, which torchrun counts on each machine anew."""
    return _on_own_device(job, int(os.environ.get("LOCAL_RANK", share.process)))


def _on_own_device(job: EvaluationJob, process: int) -> EvaluationJob:
    """The job with a GPU of its own for each process of this machine, if it has GPUs and the job names none."""
    from dataclasses import replace

    count = torch.cuda.device_count() if job.model.device in ("auto", "cuda") else 0
    if not count:
        return job
    return replace(job, model=replace(job.model, device=f"cuda:{process % count}"))


# -- started here ------------------------------------------------------------------------------------------------------


def _start(job: EvaluationJob, count: int, on_progress: OnProgress | None, checked: bool) -> None:
    """Start a process for each share, and wait for them."""
    context = multiprocessing.get_context("spawn")
    messages: Queue[tuple[Any, ...]] = context.Queue()
    workers = [
        context.Process(target=_work, args=(job, Share(number, count), messages, checked), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    progress: dict[int, tuple[str, int, int]] = {}
    finished: set[int] = set()
    try:
        while len(finished) < count:
            try:
                number, what, done, total = messages.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                _look_after(workers, finished)
                continue
            if what == "finished":
                finished.add(number)
            elif what == "error":
                _raise(done, total)
            else:
                progress[number] = (what, done, total)
                if on_progress is not None and len(progress) == count:
                    # The slowest process determines which step is shown.
                    last = "check" if any(each[0] == "check" for each in progress.values()) else "evaluate"
                    parts = [each for each in progress.values() if each[0] == last]
                    on_progress(last, sum(each[1] for each in parts), sum(each[2] for each in parts))
    finally:
        for worker in workers:
            if worker.exitcode is None and len(finished) < count:
                worker.terminate()
        for worker in workers:
            worker.join()


def _work(job: EvaluationJob, share: Share, messages: Queue[tuple[Any, ...]], checked: bool) -> None:
    """Evaluate a share in a process of its own."""
    torch.set_num_threads(max(1, torch.get_num_threads() // share.count))
    with contextlib.suppress(KeyboardInterrupt):
        try:
            evaluation = _on_own_device(job, share.process).open()
            evaluation.work(share, lambda what, done, total: messages.put((share.process, what, done, total)), checked)
            messages.put((share.process, "finished", 0, 0))
        except TclError as error:
            messages.put((share.process, "error", type(error), str(error)))
        except Exception as error:
            messages.put((share.process, "error", None, f"{type(error).__name__}: {error}"))


def _look_after(workers: list[Any], finished: set[int]) -> None:
    """Notice a process that ended without a message, such as one that was killed for its memory."""
    for number, worker in enumerate(workers):
        if worker.exitcode is not None and number not in finished and worker.exitcode != 0:
            raise SettingsError(
                f"process {number} of the evaluation ended with code {worker.exitcode}, perhaps for lack of memory; to "
                "resume, run the command again with fewer --processes"
            )


def _raise(kind: type[TclError] | None, message: str) -> NoReturn:
    if kind is None:
        raise RuntimeError(message)
    raise kind(message)
