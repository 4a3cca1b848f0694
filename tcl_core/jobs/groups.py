"""What a machine of a cluster does for a job: it labels whole groups of images, and sends back what is to be written.

It runs the loop of a job in one process (`tcl_core.jobs.labeling.Labeling`) on the names of some groups; what that
loop would write is recorded and written by the process that keeps the journal. Nothing here knows how tasks and results
travel.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tcl_core import __version__
from tcl_core.errors import TclError
from tcl_core.images import RemoteFolder
from tcl_core.jobs.encoding import can_encode_ahead
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.journal import Journal
from tcl_core.jobs.labeling import Labeling
from tcl_core.jobs.processes import WorkerLostError, start_workers
from tcl_core.jobs.remote_inputs import RemoteImages
from tcl_core.jobs.stages import Failure, Stages
from tcl_core.jobs.times import StageTimes
from tcl_core.jobs.workers import Workers
from tcl_core.preview.page import PreviewWriter
from tcl_core.segmentation.specks import MinArea

if TYPE_CHECKING:
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["GroupJob", "GroupLabeler", "GroupResult", "GroupTask", "LabelerState", "Written"]

_SOME_RESULT = ""
"""Name of no image. With it a worker never takes its own first images for the first of the job."""


@dataclass(frozen=True)
class GroupJob:
    """What a machine has to know of a job.

    Attributes:
        make_segmenter: loads the model there.
        root: of the images.
        stages: how images are read and regions traced.
        min_area: see `tcl_core.jobs.job.PrelabelSettings`.
        max_side: of a preview's copies; ``None`` without a preview.
        processes: that read and trace beside the network.
        threads: of the network; numbers depend on it in the last bits.
        folder: where relative paths begin, if the machine has such a folder.
    """

    make_segmenter: Callable[[], Segmenter]
    root: Path | RemoteFolder
    stages: Stages
    min_area: MinArea
    max_side: int | None
    processes: int
    threads: int
    folder: str


@dataclass(frozen=True)
class GroupTask:
    """Whole groups of a job.

    Attributes:
        groups: the names of each, in the order of the job.
        places: where the groups begin in the list of images.
        annotated: names among them that have a result.
        shown: names among them that the preview has.
    """

    groups: tuple[tuple[str, ...], ...]
    places: tuple[int, ...]
    annotated: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all groups."""
        return tuple(name for group in self.groups for name in group)

    def single(self) -> list[GroupTask]:
        """A task for each group."""
        return [
            GroupTask((group,), (place,), self.annotated, self.shown)
            for group, place in zip(self.groups, self.places, strict=True)
        ]


@dataclass(frozen=True)
class Written:
    """A call that the job's own process has to make.

    Attributes:
        to: whose method it is.
        method: of `tcl_core.jobs.journal.Journal` or `tcl_core.preview.page.PreviewWriter`.
        arguments: the file name first.
        options: by name.
    """

    to: Literal["journal", "pages"]
    method: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, journal: Journal, pages: PreviewWriter | None) -> None:
        """Make the call."""
        getattr(journal if self.to == "journal" else pages, self.method)(*self.arguments, **self.options)


@dataclass(frozen=True)
class GroupResult:
    """What became of a task.

    Attributes:
        written: calls to make, in their order.
        warnings: by file name.
        times: of the stages.
        error: something that is wrong with the job as a whole.
    """

    written: tuple[Written, ...]
    warnings: Mapping[str, str]
    times: StageTimes
    error: Exception | None = None


@dataclass(frozen=True)
class LabelerState:
    """What a machine has loaded.

    Attributes:
        machine: its name.
        version: of this package.
        settings: of the segmenter.
        device: that the network runs on.
        problem: why it cannot work; then the rest says nothing.
    """

    machine: str
    version: str = __version__
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    problem: str = ""


class GroupLabeler:
    """Labels groups of a job on one machine; the model is loaded by the first call of `state`.

    Args:
        job: what to do.
    """

    def __init__(self, job: GroupJob) -> None:
        self._job = job
        self._segmenter: Segmenter
        self._workers: Workers

    def state(self) -> LabelerState:
        """Load the model."""
        job, machine = self._job, platform.node()
        with suppress(OSError):
            os.chdir(job.folder)
        if isinstance(job.root, Path) and not job.root.is_dir():
            return LabelerState(
                machine,
                problem=f"there is no folder {job.root}; use a folder that all machines share, or s3:// or gs://",
            )
        import torch

        # Ray would give each worker one, and then results would not be those of one process.
        torch.set_num_threads(job.threads)
        try:
            self._segmenter = job.make_segmenter()
            self._segmenter.embed_vocabulary(job.stages.tracing.vocabulary)
        except TclError as error:
            return LabelerState(machine, problem=str(error))
        self._workers = start_workers(job.processes, job.stages, 0, self._segmenter.batch_size)
        model = self._segmenter.model
        return LabelerState(machine, settings=self._segmenter.settings(), device=str(model.device))

    def label(self, task: GroupTask) -> GroupResult:
        """Label the images of a task; returns also what is wrong with the job as a whole."""
        job, tracing = self._job, self._job.stages.tracing
        record = _Record(task, job.max_side)
        images = ImageList(job.root, task.names) if isinstance(job.root, Path) else RemoteImages(job.root, task.names)
        pages = None if job.max_side is None else record.pages
        labeling = Labeling(
            images,
            self._segmenter,
            tracing.vocabulary,
            job.min_area,
            record.journal,  # type: ignore[arg-type]
            pages,  # type: ignore[arg-type]
            lambda _: _Kept(self._workers),
            ahead=can_encode_ahead(self._segmenter),
        )
        error: Exception | None = None
        try:
            # A guard that is not entered leaves signals to whoever started this process.
            labeling.run(InterruptGuard())
        except WorkerLostError:
            # Whoever lost a part of itself is lost as a whole, and its groups are done again.
            os._exit(1)
        except Exception as raised:
            error = Failure.of("", raised).portable().error
        return GroupResult(tuple(record.written), dict(labeling.warnings), labeling.times, error)


class _Record:
    """Stands for the journal and the preview of a job, and notes what is written to them."""

    def __init__(self, task: GroupTask, max_side: int | None) -> None:
        self.written: list[Written] = []
        self.journal = _RecordedJournal(self.written, {_SOME_RESULT, *task.annotated})
        self.pages = _RecordedPages(self.written, max_side or 0, task.shown)


class _RecordedJournal:
    def __init__(self, written: list[Written], done: set[str]) -> None:
        self._written, self.done = written, done

    def forget_changed(self, root: Path | RemoteFolder) -> list[str]:
        return []

    def add_line(self, file_name: str, *arguments: Any) -> None:
        self.done.add(file_name)
        self._written.append(Written("journal", "add_line", (file_name, *arguments)))

    def add_failure(self, file_name: str, reason: str) -> None:
        self._written.append(Written("journal", "add_failure", (file_name, reason)))


class _RecordedPages:
    def __init__(self, written: list[Written], max_side: int, shown: frozenset[str]) -> None:
        self._written, self.max_side, self._shown = written, max_side, shown

    def names(self) -> set[str]:
        return set(self._shown)

    def add_card(self, *arguments: Any, **options: Any) -> None:
        self._written.append(Written("pages", "add_card", arguments, options))

    def add_failure(self, file_name: str, reason: str) -> None:
        self._written.append(Written("pages", "add_failure", (file_name, reason)))


class _Kept:
    """Workers that outlive a task."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)

    def close(self) -> None:
        """They stay."""
