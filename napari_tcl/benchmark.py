"""How quick the plugin is on this machine: ``python -m napari_tcl.benchmark``.

Opens a window, so it needs a display (or ``xvfb-run``). Times mean little on another machine and less on a busy one;
beside each stands what it is compared with, measured in the same run.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import napari
import numpy as np
import psutil
from napari.layers import Labels
from numpy.typing import NDArray
from qtpy.QtCore import QTimer
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QApplication

from napari_tcl.widget import SegmentWidget
from tcl_core.playground.export import sample_scene, world_vocabulary
from tcl_core.playground.scenes import CLASS_NAMES
from tcl_core.polygons import TOLERANCES
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession

__all__ = ["BenchmarkRow", "format_rows", "run"]

_TICK = 2  # milliseconds
_IDLE = 2  # seconds
_PAUSE = 0.0005  # seconds
_PATIENCE = 600  # seconds
_SEED = 1
_SMALL, _LARGE, _MEGAPIXEL = (200, 300), (1024, 4096), (1000, 1000)
_LABELS = 10
_TIMES = 3
_STEPS = 31
_RUNS, _RUNS_BEFORE = 50, 5
_MIB = 1 << 20


@dataclass(frozen=True)
class BenchmarkRow:
    """One measurement.

    Attributes:
        what: what was measured.
        value: with its unit.
        beside: what to compare it with.
    """

    what: str
    value: str
    beside: str


def run(runs: int = _RUNS) -> list[BenchmarkRow]:
    """Measure in a window of its own.

    Args:
        runs: how many runs on one image the growth of memory is measured over.
    """
    viewer = napari.Viewer(show=True)
    try:
        return _Benchmark(viewer).rows(runs)
    finally:
        viewer.close()


def format_rows(rows: list[BenchmarkRow]) -> str:
    """The rows as a plain table, one line each."""
    wide, value = max(len(row.what) for row in rows), max(len(row.value) for row in rows)
    return "\n".join(f"{row.what:<{wide}}  {row.value:<{value}}  {row.beside}".rstrip() for row in rows)


class _Benchmark:
    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        # As the Plugins menu does, which hands over a proxy of the viewer.
        _, widget = viewer.window.add_plugin_dock_widget("tcl-annotate", "Segment from text")
        self.widget: SegmentWidget = widget
        self.widget.model.device.value = "cpu"
        # Exact polygons take the least time, and how long they take is not measured here.
        self.widget.polygons.tolerance.value = TOLERANCES["exact"]
        self.widget.labels.set_vocabulary(world_vocabulary(CLASS_NAMES[:_LABELS]))
        self._gaps: list[float] = []
        self._last = 0.0
        self._clock = QTimer()
        self._clock.setInterval(_TICK)
        self._clock.timeout.connect(self._tick)
        self._frames = 0
        # The frame in which the latest change of a labels layer is seen.
        self._due = 0
        viewer.layers.events.inserted.connect(self._follow)
        window = self.widget.window()
        assert window is not None
        self._canvases = window.findChildren(QOpenGLWidget)
        for canvas in self._canvases:
            canvas.frameSwapped.connect(self._count_frame)

    def rows(self, runs: int) -> list[BenchmarkRow]:
        # The first run loads the model.
        self._add("small", _scene(0, _SMALL))
        self._segment()
        return [self._responsiveness(), self._cancelling(), self._new_prompt(), *self._drawn(), self._memory(runs)]

    def _responsiveness(self) -> BenchmarkRow:
        self._add("large", _scene(1, _LARGE))
        end = time.monotonic() + _IDLE
        idle = self._longest_gap(lambda: self._wait(lambda: time.monotonic() > end))
        # Only the work in the thread: that a layer of megapixels is added at the end is napari's time.
        self.widget.segment()
        busy = self._longest_gap(lambda: self._wait(lambda: self._says("finding labels")))
        self.widget.cancel()
        self._wait(lambda: not self.widget.busy)
        return BenchmarkRow(
            "longest gap of the event loop, encoding", _ms(busy), f"idle: {_ms(idle)}; target: under 100 ms"
        )

    def _cancelling(self) -> BenchmarkRow:
        seconds = []
        for number in range(_TIMES):
            self._add("large", _scene(2 + number, _LARGE))
            self.widget.segment()
            self._wait(lambda: self._says("encoding the image"))
            begun = time.perf_counter()
            self.widget.cancel()
            self._wait(lambda: not self.widget.busy)
            seconds.append(time.perf_counter() - begun)
        return BenchmarkRow("from Cancel to the end of the work, slowest", _ms(max(seconds)), "target: under 1000 ms")

    def _new_prompt(self) -> BenchmarkRow:
        """The thread's work alone: what a prompt costs in the window beyond that is napari's drawing."""
        loaded = self.widget.engine.loaded
        assert loaded is not None
        firsts: list[float] = []
        prompts: list[float] = []
        for number in range(_TIMES):
            # Without the caches, in which the texts of the last image lie.
            session = ImageSession(Segmenter(loaded.model, batch_size=1), _scene(20 + number, _MEGAPIXEL))
            for count, seconds in ((_LABELS, firsts), (_LABELS + 1, prompts)):
                begun = time.perf_counter()
                session.segment(world_vocabulary(CLASS_NAMES[:count]))
                seconds.append(time.perf_counter() - begun)
        first, prompt = statistics.median(firsts), statistics.median(prompts)
        share = f"{prompt / first:.3f} of the first run; target: under 0.1"
        return BenchmarkRow(f"new prompt beside {_LABELS} labels, 1 megapixel", _ms(prompt), share)

    def _drawn(self) -> list[BenchmarkRow]:
        firsts, prompts = [], []
        for number in range(_TIMES):
            self._add("megapixel", _scene(10 + number, _MEGAPIXEL))
            firsts.append(self._segment())
            self.widget.labels.add_row(CLASS_NAMES[_LABELS])
            prompts.append(self._segment())
            self.widget.labels.remove_current()
            if self.widget.question.isVisible():
                # Asked where pixels have the label.
                self.widget.question.answer("Remove")
            self._segment()
        first, prompt = statistics.median(firsts), statistics.median(prompts)
        steps = self._thresholds()
        return [
            BenchmarkRow("  from the click until it is drawn", _ms(prompt), f"first run: {_ms(first)}"),
            BenchmarkRow(
                f"threshold, 1 megapixel, {_LABELS} labels, until it is drawn",
                _ms(statistics.median(steps)),
                f"slowest of {len(steps)}: {_ms(max(steps))}; target: under 50 ms",
            ),
            BenchmarkRow(
                "  of which napari takes to draw its canvas, though unchanged", _ms(self._frame()), "median of as many"
            ),
        ]

    def _memory(self, runs: int) -> BenchmarkRow:
        before = 0
        for number in range(runs):
            if number == _RUNS_BEFORE:
                before = _resident()
            self._segment()
        grown = (_resident() - before) / _MIB
        return BenchmarkRow(f"memory, run {_RUNS_BEFORE} to run {runs}", f"{grown:+.0f} MiB", "target: +50 MiB")

    def _add(self, name: str, image: NDArray[np.uint8]) -> None:
        self.viewer.layers.clear()
        self.widget.image_form.layer.value = self.viewer.add_image(image, name=name, rgb=True)
        self._wait(lambda: not self.widget.busy)

    def _says(self, text: str) -> bool:
        return text in self.widget.buttons.message.text()

    def _segment(self) -> float:
        """Seconds from the click until the labels are drawn."""
        seconds = self._until_drawn(self.widget.segment)
        # Polygons follow, and would slow down what comes next.
        self._wait(lambda: not self.widget.busy)
        return seconds

    def _thresholds(self) -> list[float]:
        """Seconds of each step of a threshold that changes pixels: of the largest label, over all of its scores."""
        current = self.widget.current()
        assert current is not None
        results, index = current
        draft = results.annotation.draft[index]
        number = int(np.bincount(draft[draft > 0]).argmax())
        row = self.widget.labels.ids.index(number)
        scores = results.annotation.scores(index)
        assert scores is not None
        lowest, highest = (float(np.percentile(scores[draft == number], share)) / 255 for share in (1, 99))
        steps = []
        for value in np.unique(np.round(np.linspace(lowest, highest, _STEPS), 2)):
            before = draft.copy()
            step = self._until_drawn(partial(self.widget.labels.set_threshold, row, float(value)))
            if not np.array_equal(draft, before):
                steps.append(step)
            # Polygons follow, and would slow down what comes next.
            self._wait(lambda: not self.widget.busy)
        return steps

    def _until_drawn(self, action: Callable[[], None]) -> float:
        begun = time.perf_counter()
        action()
        self._wait(lambda: self.widget.idle)
        self._wait(lambda: self._frames >= self._due)
        return time.perf_counter() - begun

    def _frame(self) -> float:
        """Seconds until napari has drawn the canvas again, though nothing changed: what no plugin can save."""
        (canvas,) = self._canvases
        seconds = []
        for _ in range(_STEPS):
            frame, begun = self._frames, time.perf_counter()
            canvas.update()
            self._wait(partial(self._drawn_after, frame))
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    def _follow(self, event: object) -> None:
        for layer in self.viewer.layers:
            if isinstance(layer, Labels):
                for change in (layer.events.set_data, layer.events.labels_update):
                    change.connect(self._expect_frame)

    def _expect_frame(self, _: object) -> None:
        self._due = self._frames + 1

    def _drawn_after(self, frame: int) -> bool:
        return self._frames > frame

    def _count_frame(self) -> None:
        self._frames += 1

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
        end = time.monotonic() + _PATIENCE
        while not condition():
            QApplication.processEvents()
            if time.monotonic() > end:
                raise TimeoutError(f"timed out; the widget shows: {self.widget.buttons.message.text()}")
            time.sleep(_PAUSE)


def _scene(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    return sample_scene(_SEED, number, size).image


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _resident() -> int:
    """Bytes of memory that the process holds now."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    print(format_rows(run()))
