"""Work that processes share, whose results come in order."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tcl_core.errors import SettingsError
from tcl_core.jobs.attached import attach_to_parent, blocked_signals

__all__ = ["in_order"]

_KEEPING_MEMORY = ("MALLOC_CONF", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
"""Set by ``make train-playground``."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    what: Callable[[_Item], _Result], items: Iterable[_Item], workers: int, together: int = 1
) -> Generator[_Result, None, None]:
    """Results of a function, in the order of the items and each as soon as it is ready.

    A generator that is closed, or left by an error, ends its processes once they are done with what they have. They
    leave signals to this process, and end when it does.

    Args:
        what: a function that can be sent to another process.
        items: its arguments, a finite number.
        workers: processes; 0 calls the function in this one.
        together: items that are sent together.

    Raises:
        SettingsError: a process was killed.
    """
    if not workers:
        yield from map(what, items)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), attach_to_parent)
    try:
        with _usual_allocator(), blocked_signals():
            # Everything is submitted, and so all processes are started, before this returns.
            results = pool.map(what, items, chunksize=together)
        yield from results
    except BrokenProcessPool as error:
        raise SettingsError(
            "One of the processes that work beside this one ended unexpectedly, most often because memory ran out; "
            "what was saved before is kept, so run the same command again, with fewer --workers if it happens again."
        ) from error
    finally:
        # Waited for, so that their CPU time is known.
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _usual_allocator() -> Iterator[None]:
    """Start processes without the settings that keep the memory of a training.

    A training frees and needs the same sizes in every step. Where sizes vary, jemalloc does not find what it keeps: a
    process that drew 78,000 images held 20 GB.
    """
    kept = {name: os.environ.pop(name) for name in _KEEPING_MEMORY if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
