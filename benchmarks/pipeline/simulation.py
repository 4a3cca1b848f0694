"""The job's own loop around a device that takes 5 ms an image, with workers that sleep instead of working.

Everything else is real: processes, what goes through their connections, order, bounds, the thread that encodes ahead
and the journal. So it shows whether the loop could keep such a device busy on a machine with so many cores.

The device's 5 ms hold the network, and with `Simulation.maps` also the way of an image's maps to main memory. Without,
the process that decides makes a copy of them for each image, while the device may work on the next.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from benchmarks.pipeline.sleeping import Simulation, SleepingStages
from tcl_core.export.coco import CocoExporter
from tcl_core.images import ResizedImage
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.journal import Journal
from tcl_core.jobs.labeling import Labeling
from tcl_core.jobs.processes import start_workers
from tcl_core.jobs.stages import ImageToRead, ReadSettings, TraceSettings
from tcl_core.jobs.times import StageTimes
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = ["simulate"]


class _Device:
    """What the loop asks of a segmenter; encoding waits as long as the device would take."""

    def __init__(self, simulation: Simulation, vocabulary: Vocabulary) -> None:
        self.batch_size = simulation.batch_size
        self.busy = 0.0
        self.model = SimpleNamespace(device=SimpleNamespace(type="simulated"))
        self._simulation = simulation
        self._found = Segmentation(
            np.zeros(simulation.size, np.int32), np.zeros(simulation.size, np.float32), vocabulary
        )

    def encode_batch(
        self, images: Sequence[ResizedImage], on_progress: Callable[[int, int], None] | None = None
    ) -> list[Any]:
        seconds = self._simulation.device * len(images)
        time.sleep(seconds)
        # Not until this thread goes on: a device does not wait for a core of this machine.
        self.busy += seconds
        return list(images)

    def segment(self, features: Any, vocabulary: Vocabulary) -> Segmentation:
        found = self._found
        if self._simulation.maps:
            return found
        return replace(found, label_map=found.label_map.copy(), score_map=found.score_map.copy())


def simulate(simulation: Simulation) -> tuple[float, StageTimes]:
    """Run the loop.

    Returns:
        The share of the time in which the device is busy, from the first result on, because processes start once a
        job; and the stages' times.
    """
    vocabulary = Vocabulary.from_options(["a", "b"])
    exporter = CocoExporter()
    stages = SleepingStages(ReadSettings(448, 1792, 10**8), TraceSettings(vocabulary, exporter), simulation)
    device = _Device(simulation, vocabulary)
    names = tuple(f"{number:06d}.jpg" for number in range(simulation.images))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        with Journal.open(out, exporter, vocabulary, {}) as journal, InterruptGuard() as guard:
            started: list[float] = []

            def start(images: int) -> Any:
                workers = start_workers(simulation.workers, stages, images, simulation.batch_size)
                # All of them have to be up before the clock runs.
                tasks = [ImageToRead(Path(folder), "warm") for _ in range(4 * simulation.workers)]
                for future in [workers.read(task) for task in tasks]:
                    future.result()
                started.append(time.perf_counter())
                return workers

            job = Labeling(
                ImageList(Path(folder), names),
                cast(Any, device),
                vocabulary,
                0,
                journal,
                None,
                start,
                ahead=simulation.ahead,
            )
            job.run(guard)
            elapsed = time.perf_counter() - started[0]
    return device.busy / elapsed, job.times
