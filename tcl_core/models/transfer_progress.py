"""How far a download is, for a bar on the terminal or for whoever draws one of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

__all__ = ["Transfer", "TransferProgress", "bar_class", "passing_on"]


@dataclass(frozen=True)
class Transfer:
    """How far the download of a file is.

    Attributes:
        file_name: of the file.
        done: bytes on this disk, with those of an earlier, interrupted download.
        total: bytes of the whole file, ``None`` where the server does not say.
    """

    file_name: str
    done: int
    total: int | None


TransferProgress = bool | Callable[[Transfer], None]
"""``True`` for a bar on standard error, ``False`` for none, or what is told of each part that arrives.

What a function raises ends the download and is passed on, so it can cancel; files that continue do so at the next call.
"""


class _Stopped(BaseException):
    """Carries what a function raised through the libraries, which catch exceptions and try again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def passing_on() -> Iterator[None]:
    """Let out of a download what the function that is told of it raised."""
    try:
        yield
    except _Stopped as stopped:
        raise stopped.error from None


def bar_class(progress: TransferProgress) -> type[tqdm]:
    """The kind of bar that the libraries for downloads make.

    Args:
        progress: see `TransferProgress`.
    """
    report = None if isinstance(progress, bool) else progress

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Some versions of huggingface_hub name their bars, and switch them off where nobody sees them.
            kwargs.pop("name", None)
            # A bar that is switched off neither counts nor keeps its title.
            self._done, self._title = int(kwargs.get("initial") or 0), str(kwargs.get("desc") or "")
            super().__init__(*args, **{**kwargs, "unit_divisor": 1024, "disable": progress is not True})

        # pooch asks the bar itself whether there is one; tqdm would answer whether anything is expected.
        def __bool__(self) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            if report is not None:
                total = int(self.total) if self.total else None
                # pooch counts whole chunks, also the last.
                done = self._done if total is None else min(self._done, total)
                try:
                    report(Transfer(self._title, done, total))
                except Exception as error:
                    raise _Stopped(error) from error
            return super().update(n)

        # pooch counts all bytes once more at the end, to be sure.
        def reset(self, total: float | None = None) -> None:
            self._done = 0
            super().reset(total)

    return Bar
