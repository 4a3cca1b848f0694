"""Workers that sleep instead of working; they import this module, so it does without PyTorch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from tcl_core.images import ResizedImage
from tcl_core.jobs.stages import DecidedImage, ImageToRead, ReadImage, Stages, TracedImage

__all__ = ["Simulation", "SleepingStages"]


@dataclass(frozen=True)
class Simulation:
    """What is simulated.

    Attributes:
        images: how many.
        workers: processes that sleep.
        read: seconds that reading an image takes one of them.
        trace: seconds that tracing its regions does.
        device: seconds that the device needs for an image.
        size: height and width of the images.
        batch_size: images that the device takes together.
        line: bytes of a line of the journal.
        maps: whether the device's seconds hold the way of an image's maps to main memory.
        ahead: whether a group is encoded while the one before is decided, as on a GPU.
    """

    images: int = 400
    workers: int = 16
    read: float = 0.02
    trace: float = 0.04
    device: float = 0.005
    size: tuple[int, int] = (480, 640)
    batch_size: int = 8
    line: int = 60_000
    maps: bool = True
    ahead: bool = True


@dataclass(frozen=True)
class SleepingStages(Stages):
    """Both stages of a simulation."""

    simulation: Simulation

    def read(self, task: ImageToRead) -> ReadImage:
        """Sleep, and give an image at the working size."""
        started = time.perf_counter()
        time.sleep(self.simulation.read)
        image = ResizedImage(np.zeros((448, 597, 3), np.uint8), self.simulation.size, task.name)
        return ReadImage(task.name, image, seconds=time.perf_counter() - started)

    def trace(self, decided: DecidedImage) -> TracedImage:
        """Sleep, and give a line of the journal."""
        started = time.perf_counter()
        time.sleep(self.simulation.trace)
        line = b'{"image": "%s", "rest": "%s"}\n' % (decided.name.encode(), b"x" * self.simulation.line)
        return TracedImage(decided.name, line, seconds=time.perf_counter() - started)
