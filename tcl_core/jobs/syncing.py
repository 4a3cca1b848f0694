"""Forcing a file to the disk while more is written to it."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO

__all__ = ["BackgroundSync"]

_SECONDS_BETWEEN = 1.0


class BackgroundSync:
    """Forces a file to the disk about every second, in a thread of its own.

    When the power fails, at most what two seconds brought is lost: if the disk has not taken the last second's by the
    time the next would begin, `written` waits for it.

    Args:
        file: open, without a buffer; it has to stay open until `close`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._begun = time.monotonic()
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tcl-annotate journal")

    def written(self) -> None:
        """To be called after each write.

        Raises:
            OSError: the disk did not take what was written before.
        """
        is_due = time.monotonic() - self._begun > _SECONDS_BETWEEN
        if is_due or (self._running is not None and self._running.done()):
            self._settle()
        if is_due:
            self._begin()

    def finish(self) -> None:
        """Wait until all that was written is on the disk.

        Raises:
            OSError: the disk does not take it, or did not take what was written before.
        """
        self._settle()
        os.fsync(self._file.fileno())
        self._begun = time.monotonic()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _begin(self) -> None:
        self._begun = time.monotonic()
        self._running = self._thread.submit(os.fsync, self._file.fileno())

    def _settle(self) -> None:
        """Wait for the thread. An error is raised here, for the system tells it once."""
        if self._running is None:
            return
        try:
            self._running.result()
        except OSError:
            self._running = None
            raise
        self._running = None
