"""How quick the plugin is on this machine: ``python -m napari_tcl.benchmark``.

Opens a window, so it needs a display (or ``xvfb-run``). Times mean little on another machine and less on a busy one;
beside each stands what it is compared with, measured in the same run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import napari
import numpy as np
import psutil
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from napari_tcl.widget import SegmentWidget
from tcl_core.models import load_model
from tcl_core.playground.export import sample_scene
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["Row", "format_rows", "run"]

_TICK = 2  # milliseconds
_IDLE = 2  # seconds
_LARGE, _MEGAPIXEL = (512, 4096), (1000, 1000)
_LABELS = 10
_RUNS, _RUNS_BEFORE = 50, 5
_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: what was measured.
        value: with its unit.
        beside: what to compare it with.
    """

    what: str
    value: str
    beside: str


def run(runs: int = _RUNS) -> list[Row]:
    """Measure in a window of its own.

    Args:
        runs: how many runs on one picture the growth of memory is measured over.
    """
    viewer = napari.Viewer(show=True)
    try:
        return _Benchmark(viewer).rows(runs)
    finally:
        viewer.close()


def format_rows(rows: list[Row]) -> str:
    """The rows as a plain table, one line each."""
    wide, value = max(len(row.what) for row in rows), max(len(row.value) for row in rows)
    return "\n".join(f"{row.what:<{wide}}  {row.value:<{value}}  {row.beside}".rstrip() for row in rows)


class _Benchmark:
    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        self.widget = SegmentWidget(viewer)
        viewer.window.add_dock_widget(self.widget, name="Segment from text")
        known = getattr(load_model("playground").tokenizer, "words", ())
        words = [str(word) for word in known if len(word) > 3 and word != "background"]
        self.words = words[: _LABELS + 1]
        self.widget.model.device.value = "cpu"
        self.widget.labels.set_vocabulary(Vocabulary(tuple(Label(word) for word in words[:_LABELS]), background=False))
        self._gaps: list[float] = []
        self._last = 0.0
        self._clock = QTimer()
        self._clock.setInterval(_TICK)
        self._clock.timeout.connect(self._tick)

    def rows(self, runs: int) -> list[Row]:
        self._add("small", sample_scene(1, 0, (200, 300)).image)
        self._segment()
        return [*self._responsiveness(), self._cancelling(), *self._speed(), self._memory(runs)]

    def _responsiveness(self) -> list[Row]:
        self._add("large", np.random.default_rng(0).integers(0, 256, (*_LARGE, 3), dtype=np.uint8))
        end = time.monotonic() + _IDLE
        idle = self._longest_gap(lambda: self._wait(lambda: time.monotonic() > end))
        # Only the work in the thread: that a layer of megapixels is added at the end is napari's time.
        self.widget.segment()
        busy = self._longest_gap(lambda: self._wait(lambda: "finding labels" in self.widget.buttons.message.text()))
        self._wait(lambda: not self.widget.busy)
        return [Row("longest gap of the event loop, encoding", _ms(busy), f"idle: {_ms(idle)}; bar: under 100 ms")]

    def _cancelling(self) -> Row:
        self._add("large again", np.random.default_rng(1).integers(0, 256, (*_LARGE, 3), dtype=np.uint8))
        self.widget.segment()
        self._wait(lambda: "looking at the picture" in self.widget.buttons.message.text())
        begun = time.perf_counter()
        self.widget.cancel()
        self._wait(lambda: not self.widget.busy)
        return Row("from Cancel to the end of the work", _ms(time.perf_counter() - begun), "bar: under 1000 ms")

    def _speed(self) -> list[Row]:
        self._add("megapixel", sample_scene(2, 0, _MEGAPIXEL).image)
        first = self._segment()
        threshold = min(self._threshold(value) for value in np.linspace(0.2, 0.8, 9))
        self.widget.labels.set_threshold(0, 0)
        self._wait(lambda: not self.widget.busy)
        self._add("wide", sample_scene(3, 0, (300, 1800)).image)
        first_wide = self._segment()
        self.widget.labels.add_row(self.words[_LABELS])
        prompt_wide = self._segment()
        return [
            Row(f"threshold, 1 megapixel, {_LABELS} labels", _ms(threshold), f"first run: {_ms(first)}; bar: 50 ms"),
            Row("new prompt", _ms(prompt_wide), f"{first_wide / prompt_wide:.1f} times as fast as the first; bar: 10"),
        ]

    def _memory(self, runs: int) -> Row:
        before = 0
        for number in range(runs):
            if number == _RUNS_BEFORE:
                before = _resident()
            self._segment()
        grown = (_resident() - before) / _MIB
        return Row(f"memory, run {_RUNS_BEFORE} to run {runs}", f"{grown:+.0f} MiB", "bar: +50 MiB")

    def _add(self, name: str, image: np.ndarray) -> None:
        self.viewer.layers.clear()
        self.widget.picture.layer.value = self.viewer.add_image(image, name=name, rgb=True)

    def _segment(self) -> float:
        """Seconds from the click until the labels are shown."""
        begun = time.perf_counter()
        self.widget.segment()
        self._wait(lambda: self.widget.idle)
        return time.perf_counter() - begun

    def _threshold(self, value: float) -> float:
        begun = time.perf_counter()
        self.widget.labels.set_threshold(0, value)
        self._wait(lambda: self.widget.idle)
        return time.perf_counter() - begun

    def _longest_gap(self, work: Callable[[], None]) -> float:
        self._gaps.clear()
        self._last = time.perf_counter()
        self._clock.start()
        work()
        self._clock.stop()
        return max(self._gaps)

    def _tick(self) -> None:
        now = time.perf_counter()
        self._gaps.append(now - self._last)
        self._last = now

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            QApplication.processEvents()
            time.sleep(0.0005)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _resident() -> int:
    """Bytes of memory that the process holds now."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    print(format_rows(run()))
