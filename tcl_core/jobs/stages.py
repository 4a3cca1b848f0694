"""What a job does to an image before and after the network: functions of their arguments alone.

A job calls them in its own process, in worker processes, or on other machines; the results are the same. Nothing here
imports PyTorch, so that a worker is small and starts quickly.
"""

from __future__ import annotations

import os
import pickle
import time
import traceback
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ImageError, SettingsError, TclError, VocabularyError, WeightsError, is_out_of_memory
from tcl_core.export.base import Exporter, ImageRegions
from tcl_core.export.names import is_text
from tcl_core.images import RemoteFile, RemoteFolder, ResizedImage, image_size, load_image
from tcl_core.jobs.journal import image_line
from tcl_core.jobs.sources import Source
from tcl_core.preview.card import Outlines, Thumbnail
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

__all__ = [
    "DecidedImage",
    "Failure",
    "ImageToRead",
    "ReadImage",
    "ReadSettings",
    "Stages",
    "TraceSettings",
    "TracedImage",
    "packed_map",
    "printable_name",
    "read_image",
    "trace_image",
]

_MOST_METADATA = 2**26
_MOST_BYTES_PER_PIXEL = 8
"""Of four channels with 16 bits, without compression; what is larger is not fetched to be refused after it."""


@dataclass(frozen=True)
class Failure:
    """Why an image has no result.

    Attributes:
        reason: for the user, without the file name.
        error: what was raised.
        internal: whether the program is at fault, not the image.
        fatal: whether the same would happen to every image, so that the job has to end.
    """

    reason: str
    error: Exception
    internal: bool = False
    fatal: bool = False

    @classmethod
    def of(cls, name: str, error: Exception) -> Failure:
        """Judge what was raised while an image was worked on."""
        if isinstance(error, TclError):
            fatal = isinstance(error, (SettingsError, VocabularyError, WeightsError))
            return cls(str(error).removeprefix(f"{printable_name(name)}: "), error, fatal=fatal)
        if is_out_of_memory(error):
            remedy = "use a smaller --batch-size, or --max-pixels to leave it out"
            return cls(f"there is not enough memory for it; {remedy}", error)
        text = " ".join(str(error).split())
        reason = f"internal error, {type(error).__name__}: {text}; please report it"
        return cls(reason, error, internal=True)

    def portable(self) -> Failure:
        """The same with an error that another process can receive, which still tells where it was raised."""
        error = self.error
        if not isinstance(error, TclError):
            error.add_note("".join(traceback.format_exception(error)))
        try:
            if type(pickle.loads(pickle.dumps(error))) is type(error):
                return self
        except Exception:
            # Whatever a library's exception needs to be made anew.
            pass
        other = RuntimeError(f"{type(error).__name__}: {error}")
        other.add_note("".join(traceback.format_exception(error)))
        return replace(self, error=other)


@dataclass(frozen=True)
class ReadSettings:
    """How images are read.

    Attributes:
        short_side: of the model's preprocessing.
        max_long_side: likewise.
        max_pixels: larger images fail.
        bit_depth: see `tcl_core.images.load_image`.
    """

    short_side: int
    max_long_side: int
    max_pixels: int
    bit_depth: int | None = None


@dataclass(frozen=True)
class ImageToRead:
    """An image of a job.

    Attributes:
        root: folder that the name is relative to.
        name: file name.
        wanted: whether a result is wanted; otherwise it is read for the company of others.
        thumbnail: longer side of its copy for a preview; ``None`` makes none.
    """

    root: Path | RemoteFolder
    name: str
    wanted: bool = True
    thumbnail: int | None = None


@dataclass(frozen=True)
class ReadImage:
    """An image that was read, or why it could not be.

    Attributes:
        name: file name.
        image: at the working size; ``None`` if it failed.
        source: the file as it was, if a result is wanted.
        thumbnail: for a preview, if one is wanted.
        warnings: what is odd about the image, each beginning with its name.
        failure: why it could not be read.
        seconds: that it took.
    """

    name: str
    image: ResizedImage | None = None
    source: Source | None = None
    thumbnail: Thumbnail | None = None
    warnings: tuple[str, ...] = ()
    failure: Failure | None = None
    seconds: float = 0.0


def read_image(task: ImageToRead, settings: ReadSettings) -> ReadImage:
    """Decode an image, resize it for the network, and note what its file was.

    Args:
        task: the image.
        settings: of the job.

    Returns:
        Also for an image that fails; nothing that is wrong with it is raised.
    """
    started = time.perf_counter()
    warnings: list[str] = []
    name, path, shown = task.name, task.root / task.name, printable_name(task.name)
    try:
        if not is_text(name):
            raise ImageError(
                f"{shown}: the file name is not valid UTF-8, so it cannot be written to COCO; rename the file"
            )
        decode = partial(
            load_image,
            max_pixels=settings.max_pixels,
            name=shown,
            bit_depth=settings.bit_depth,
            on_warning=warnings.append,
        )
        if isinstance(path, RemoteFile):
            content, listed = path.read(_MOST_METADATA + _MOST_BYTES_PER_PIXEL * settings.max_pixels)
            pixels = decode(content)
            source = Source.of_content(content, listed) if task.wanted else None
        else:
            before = os.stat(path) if task.wanted and path.is_file() else None
            pixels = decode(path)
            source = None if before is None else Source.of(path, before)
        small = None if task.thumbnail is None else Thumbnail.of(pixels, task.thumbnail)
        image = ResizedImage.of(pixels, settings.short_side, settings.max_long_side)
        read = ReadImage(name, image, source, small)
    except Exception as error:
        read = ReadImage(name, failure=Failure.of(name, error))
    return replace(read, warnings=tuple(warnings) if task.wanted else (), seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class TraceSettings:
    """How regions are made of label maps.

    Attributes:
        vocabulary: the labels.
        exporter: prepares what its format needs.
        small: what becomes of small regions, see `tcl_core.regions.label_map_to_regions`.
        tolerance: of the polygons; ``None`` makes none.
    """

    vocabulary: Vocabulary
    exporter: Exporter
    small: Literal["drop", "merge"] = "merge"
    tolerance: str | float | None = "default"


@dataclass(frozen=True)
class DecidedImage:
    """The network's answer about an image.

    Attributes:
        name: file name.
        label_map: whole numbers ``[H, W]``; 0 is background, and k the k-th label.
        score_map: float32 ``[H, W]``.
        min_area: pixels below which a region is small.
        source: of the image's file.
        scale: of its thumbnail; ``None`` without a preview.
    """

    name: str
    label_map: NDArray[Any]
    score_map: NDArray[np.float32]
    min_area: int
    source: Source | None = None
    scale: float | None = None

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.label_map.size

    def packed(self) -> DecidedImage:
        """The same with a label map in as few bytes as it needs, for the way to another process."""
        return replace(self, label_map=packed_map(self.label_map))


@dataclass(frozen=True)
class TracedImage:
    """The regions of an image as they are written, or why there are none.

    Attributes:
        name: file name.
        line: for `tcl_core.jobs.journal.Journal.add_line`.
        outlines: for a preview.
        failure: why it failed.
        seconds: that it took.
    """

    name: str
    line: bytes = b""
    outlines: Outlines | None = None
    failure: Failure | None = None
    seconds: float = 0.0


def trace_image(decided: DecidedImage, settings: TraceSettings) -> TracedImage:
    """Make regions of a label map, and of them what the journal and the preview hold.

    Args:
        decided: the image.
        settings: of the job.

    Returns:
        Also for an image that fails; nothing that is wrong with it is raised.
    """
    started = time.perf_counter()
    name = decided.name
    try:
        label_map = decided.label_map.astype(np.int32, copy=False)
        regions = label_map_to_regions(
            Segmentation(label_map, decided.score_map, settings.vocabulary),
            min_area=decided.min_area,
            small=settings.small,
            tolerance=settings.tolerance,
        )
        found = ImageRegions(name, label_map.shape[0], label_map.shape[1], regions)
        # What cannot be exported is found now, when it costs only this image.
        line = image_line(found, settings.exporter.prepare(found), decided.source)
        outlines = None if decided.scale is None else Outlines.of(regions, decided.scale)
        traced = TracedImage(name, line, outlines)
    except Exception as error:
        traced = TracedImage(name, failure=Failure.of(name, error))
    return replace(traced, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class Stages:
    """Both functions with the settings of a job, as one thing that can be sent to a worker.

    Attributes:
        reading: how images are read.
        tracing: how regions are made.
    """

    reading: ReadSettings
    tracing: TraceSettings

    @property
    def custom(self) -> str:
        """See `tcl_core.jobs.workers.AnyStages`."""
        return f"the exporter {self.tracing.exporter.name}"

    def header_pixels(self, task: ImageToRead) -> int:
        """See `tcl_core.jobs.workers.AnyStages`."""
        path = task.root / task.name
        if isinstance(path, RemoteFile):
            # Only fetching it would tell.
            return 0
        try:
            height, width = image_size(path)
        except ImageError:
            # Reading it will say what is wrong.
            return 0
        return height * width

    def read(self, task: ImageToRead) -> ReadImage:
        """See `read_image`."""
        return read_image(task, self.reading)

    def trace(self, decided: DecidedImage) -> TracedImage:
        """See `trace_image`."""
        return trace_image(decided, self.tracing)


def packed_map(label_map: NDArray[Any]) -> NDArray[Any]:
    """A label map of whole numbers, 0 or more, in the smallest type that holds them.

    >>> packed_map(np.array([[0, 255]])).dtype.name, packed_map(np.array([[0, 256]])).dtype.name
    ('uint8', 'uint16')
    """
    return label_map.astype(np.min_scalar_type(int(label_map.max(initial=0))))


def printable_name(name: str) -> str:
    """A file name with bytes that are no valid text written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
