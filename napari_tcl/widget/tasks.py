"""Work in threads that tells how far it is and can be cancelled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from napari.qt.threading import create_worker
from qtpy.QtCore import QObject, Signal

from tcl_core.errors import TclError

__all__ = ["Cancelled", "Outcome", "Reporter", "Task"]

_log = logging.getLogger(__name__)


class Cancelled(Exception):  # noqa: N818 - it is no error
    """The user asked to end the work."""


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    Attributes:
        result: what it returned, or ``None``.
        error: the sentence for the user if it failed.
        cancelled: whether the user ended it.
    """

    result: Any = None
    error: str | None = None
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
        try:
            self._emit(news)
        except RuntimeError:
            # The window is gone, and Qt's side of the signal with it.
            raise Cancelled from None


class Task(QObject):
    """One piece of work in a thread of its own.

    Signals arrive in the window's thread: ``news`` with what the work tells, then ``ended`` with its `Outcome`, once.

    Args:
        work: is given a `Reporter`; must not touch the viewer.
        parent: what the task belongs to.
    """

    news = Signal(object)
    ended = Signal(object)

    def __init__(self, work: Callable[[Reporter], Any], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._work = work
        self._reporter = Reporter(self.news.emit)
        self._worker = create_worker(self._run, _start_thread=False)
        self._worker.returned.connect(self.ended.emit)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def cancel(self) -> None:
        """Ask the work to end; ``ended`` follows when it does."""
        self._reporter.cancel()

    def _run(self) -> Outcome:
        # Everything is caught here: a thread's exception would only reach napari's console.
        try:
            return Outcome(self._work(self._reporter))
        except Cancelled:
            return Outcome(cancelled=True)
        except TclError as error:
            return Outcome(error=str(error))
        except MemoryError:
            return Outcome(error="there is not enough memory for this picture; use a smaller one, or fewer labels")
        except Exception as error:
            _log.exception("the work failed")
            text = " ".join(str(error).split())
            return Outcome(error=f"internal error, {type(error).__name__}: {text}; please report it")
