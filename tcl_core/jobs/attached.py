"""Processes that belong to the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

__all__ = ["SIGNALS", "attach_to_parent"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""By which a terminal or a job scheduler asks for the end."""


def attach_to_parent() -> None:
    """Leave signals to the parent, and end when it does, whatever ended that; for a process that is started here."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
