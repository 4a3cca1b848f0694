"""Processes that belong to the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SIGNALS", "attach_to_parent", "blocked_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""By which a terminal or a job scheduler asks for the end."""


def attach_to_parent() -> None:
    """Leave signals to the parent, and end when it does, whatever ended that; for a process that is started here."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Hold signals back while processes are started, which then leave them to this one from their first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
