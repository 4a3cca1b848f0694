"""Stopping a run between two images rather than in the middle of writing one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["InterruptGuard"]


class InterruptGuard:
    """Turns SIGINT and SIGTERM into `KeyboardInterrupt`, but not while something is being written.

    As a context manager it installs its handlers and gives the old ones back at the end. It raises once: what follows,
    which puts the results together, is not to be broken off by an impatient second signal. Outside the main thread,
    where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._writing = 0
        self._pending = False
        self._over = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A block that runs to its end; a signal that came meanwhile raises `KeyboardInterrupt` after it."""
        self._writing += 1
        try:
            yield
        finally:
            self._writing -= 1
        if self._pending and not self._writing:
            self._raise()

    def hold(self) -> None:
        """From now on signals are ignored: all work is done and only has to be put together."""
        self._over = True

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        if self._writing:
            self._pending = True
        else:
            self._raise()

    def _raise(self) -> None:
        if not self._over:
            self._over = True
            raise KeyboardInterrupt
