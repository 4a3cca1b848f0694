"""Work in threads that tells how far it is, can be cancelled, and outlives its window without harm.

Not `napari.qt.threading`: there the last reference to a piece of work, and to the Qt objects that it holds, may be
dropped by its thread, and the process-wide warning hook is exchanged while the work runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtpy.QtCore import QObject, Qt, Signal

from tcl_core.errors import TclError, is_out_of_memory

__all__ = ["Cancelled", "Outcome", "Reporter", "Task", "TaskList"]

_log = logging.getLogger(__name__)


class Cancelled(Exception):  # noqa: N818 - it is no error
    """The user asked to end the work."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Attributes:
        result: what it returned, or ``None``.
        error: the sentence for the user if it failed.
        cause: what was raised then.
        cancelled: whether the user ended it.
    """

    result: Any = None
    error: str | None = None
    cause: Exception | None = None
    cancelled: bool = False


class Reporter:
    """Passed to the work: `tell` shows how far it is, and raises once the user asked to cancel."""

    def __init__(self, emit: Callable[[object], None]) -> None:
        self._emit = emit
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the work to end at its next step."""
        self._cancelled.set()

    def tell(self, news: object) -> None:
        """Hand news to the window's thread.

        Raises:
            Cancelled: the user asked to cancel.
        """
        if self._cancelled.is_set():
            raise Cancelled
        self._emit(news)


Work = Callable[[Reporter], Any]
OnNews = Callable[[object], None]
OnEnd = Callable[[Outcome], None]


class Task(QObject):
    """One piece of work in a thread of its own; it begins at once.

    Args:
        work: is given a `Reporter`; must not touch the viewer.
        on_end: called in the window's thread with how the work ended, once.
        on_news: called in the window's thread with what the work tells, before ``on_end``.
    """

    _told = Signal(object)
    _over = Signal(object)

    def __init__(self, work: Work, on_end: OnEnd, on_news: OnNews) -> None:
        # Without a parent, because Qt would free it under its thread when the parent's window closes.
        super().__init__()
        self._reporter = Reporter(self._told.emit)
        self._on_end = on_end
        self._told.connect(on_news, Qt.ConnectionType.QueuedConnection)
        self._over.connect(self._finish, Qt.ConnectionType.QueuedConnection)
        self._thread = threading.Thread(target=self._run, args=(work,), name="tcl-annotate")
        _unfinished.add(self)
        self._thread.start()

    def cancel(self) -> None:
        """Ask the work to end; ``on_end`` follows when it does."""
        self._reporter.cancel()

    def _run(self, work: Work) -> None:
        # Everything is caught here, for nobody else would show it.
        try:
            outcome = Outcome(work(self._reporter))
        except Cancelled:
            outcome = Outcome(cancelled=True)
        except TclError as error:
            outcome = Outcome(error=str(error), cause=error)
        except Exception as error:
            if is_out_of_memory(error):
                outcome = Outcome(error="not enough memory for this image; use a smaller image, or fewer labels")
            else:
                _log.exception("the task failed")
                text = " ".join(str(error).split())
                outcome = Outcome(error=f"internal error, {type(error).__name__}: {text}; please report it")
        self._over.emit(outcome)

    def _finish(self, outcome: Outcome) -> None:
        # From here on no other thread holds anything of Qt's, so what is freed is freed in this one.
        self._thread.join()
        _unfinished.discard(self)
        self._on_end(outcome)


_unfinished: set[Task] = set()
"""Holds tasks until the window's thread has seen their end, even if their window is gone before."""


class TaskList:
    """The work of one window."""

    def __init__(self) -> None:
        self._running: set[Task] = set()
        self._closed = False

    def start(self, work: Work, on_end: OnEnd, on_news: OnNews | None = None) -> Task:
        """Begin a piece of work; see `Task`."""

        def told(news: object) -> None:
            if on_news is not None and not self._closed:
                on_news(news)

        def ended(outcome: Outcome) -> None:
            self._running.discard(task)
            if not self._closed:
                on_end(outcome)

        task = Task(work, ended, told)
        self._running.add(task)
        return task

    def while_open(self, reaction: Callable[[], None]) -> Callable[[object], None]:
        """A callback for what outlives the window, such as layers: it does nothing once `close` was called."""

        def react(event: object) -> None:
            if not self._closed:
                reaction()

        return react

    def close(self) -> None:
        """Cancel all work, and tell nobody how it ends."""
        self._closed = True
        for task in self._running:
            task.cancel()
