"""What the bulk command does to an image before and after the network, in this process or in workers beside it.

Nothing here imports PyTorch, so that a worker is small and starts quickly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from labelstudio_backend.decoding import decode_image
from labelstudio_backend.drawing import Decided, Prediction
from tcl_core.errors import ImageError, TclError, is_out_of_memory
from tcl_core.images import ResizedImage, image_size
from tcl_core.jobs.stages import Failure, ReadImage, ReadSettings

__all__ = ["DecidedTaskImage", "DrawnImage", "FetchedImage", "TaskStages", "failure_of"]


@dataclass(frozen=True)
class FetchedImage:
    """An image of a task.

    Attributes:
        name: for messages.
        content: the encoded file.
    """

    name: str
    content: bytes


@dataclass(frozen=True)
class DecidedTaskImage:
    """The network's answer about an image.

    Attributes:
        name: for messages.
        decided: the answer.
    """

    name: str
    decided: Decided

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.decided.segmentation.label_map.size

    def packed(self) -> DecidedTaskImage:
        """See `Decided.packed`."""
        return replace(self, decided=self.decided.packed())


@dataclass(frozen=True)
class DrawnImage:
    """An image's prediction, or why there is none.

    Attributes:
        name: for messages.
        prediction: ``None`` if it failed.
        failure: why it failed.
        seconds: that drawing took.
    """

    name: str
    prediction: Prediction | None = None
    failure: Failure | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class TaskStages:
    """Both stages with their settings; see `tcl_core.jobs.workers.AnyStages`.

    Attributes:
        reading: how images are read.
    """

    reading: ReadSettings

    @property
    def custom(self) -> str:
        """See `tcl_core.jobs.workers.AnyStages`."""
        return "the settings of images"

    def header_pixels(self, task: FetchedImage) -> int:
        """See `tcl_core.jobs.workers.AnyStages`."""
        try:
            height, width = image_size(task.content)
        except ImageError:
            # Reading it will say what is wrong.
            return 0
        return height * width

    def read(self, task: FetchedImage) -> ReadImage:
        """Decode an image and resize it for the network; nothing that is wrong with it is raised."""
        started = time.perf_counter()
        try:
            pixels = decode_image(task.content, self.reading.max_pixels)
            image = ResizedImage.of(pixels, self.reading.short_side, self.reading.max_long_side)
            read = ReadImage(task.name, image)
        except Exception as error:
            read = ReadImage(task.name, failure=failure_of(error))
        return replace(read, seconds=time.perf_counter() - started)

    def trace(self, decided: DecidedTaskImage) -> DrawnImage:
        """Trace an image's regions and draw them; nothing that is wrong with it is raised."""
        started = time.perf_counter()
        try:
            drawn = DrawnImage(decided.name, decided.decided.prediction())
        except Exception as error:
            drawn = DrawnImage(decided.name, failure=failure_of(error))
        return replace(drawn, seconds=time.perf_counter() - started)


def failure_of(error: Exception) -> Failure:
    """Judge what was raised while an image of a task was worked on."""
    if isinstance(error, TclError):
        return Failure(str(error), error)
    if is_out_of_memory(error):
        return Failure("there is not enough free memory for its image; use a smaller one, or another device", error)
    return Failure(f"internal error, {type(error).__name__}", error, internal=True)
