"""How a run tells how far it is: a bar on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

__all__ = ["Progress"]

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts images and shows rate and time left.

    Args:
        total: images of the job.
        already: images that an earlier run has done; they count as done, but not for the rate.
        stream: where to write; the standard error stream by default. ``None`` is silent only with ``quiet``.
        quiet: show nothing.

    Attributes:
        bottleneck: the stage that the others wait for, shown where it is known.
    """

    def __init__(self, total: int, already: int = 0, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._total, self._already, self._done, self._skipped = total, already, already, 0
        self._quiet = quiet
        self.bottleneck = ""
        self._started = self._last_line = time.monotonic()
        self._bar: tqdm | None = None
        if not quiet and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=already, file=self._stream, unit=" images", smoothing=0.05, dynamic_ncols=True
            )

    def advance(self, count: int = 1) -> None:
        """Some more images are done; those that were finished together count at once, for the sake of the rate."""
        self._done += count
        if self._bar is not None:
            notes = [f"{self._skipped} skipped"] if self._skipped else []
            notes += [f"bottleneck: {self.bottleneck}"] if self.bottleneck else []
            self._bar.set_postfix_str(", ".join(notes), refresh=False)
            self._bar.update(count)
        elif not self._quiet and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(self._line())

    def skip(self, message: str) -> None:
        """One more image is over, but failed; ``message`` is shown."""
        self._skipped += 1
        self.say(f"skipped: {message}")
        self.advance()

    def say(self, message: str) -> None:
        """Show a line without spoiling the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        rate = (self._done - self._already) / seconds if seconds > 0 else 0.0
        left = f", about {_duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        skipped = f", {self._skipped} skipped" if self._skipped else ""
        speed = f"{rate:.1f} a second" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} seconds each"
        slowest = f", bottleneck: {self.bottleneck}" if self.bottleneck else ""
        return f"{self._done:,} of {self._total:,} images, {speed}{left}{skipped}{slowest}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
