"""The loop of a job whose groups are labeled by the machines of a Ray cluster.

Groups are those of a job in one process, at the same places in the list, so that the numbers are the same. This process
keeps the journal: what is in it need not be done again, whatever is lost or stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tcl_core.jobs.groups import GroupJob, GroupResult, GroupTask, Written
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.journal import Journal
from tcl_core.jobs.progress import Progress
from tcl_core.jobs.ray_cluster import Crew, RayCluster
from tcl_core.jobs.remote_inputs import RemoteImages
from tcl_core.jobs.stages import Stages, printable_name
from tcl_core.jobs.times import StageTimes
from tcl_core.preview.page import MAX_SIDE, PreviewWriter
from tcl_core.segmentation.specks import MinArea

if TYPE_CHECKING:
    pass

__all__ = ["RayLabeling", "group_job"]

_GROUPS_OF_TASK = 4
"""Where an actor has processes, which would run dry at the end of each task."""
_TASKS_AHEAD = 4
"""For each actor, so many may be done or under way before the first of them is shown in a preview."""
_TOO_MANY_INTERNAL = 3


def group_job(
    cluster: RayCluster,
    images: ImageList | RemoteImages,
    stages: Stages,
    min_area: MinArea,
    preview: bool,
) -> GroupJob:
    """What the machines of a cluster have to know of a job."""
    max_side = MAX_SIDE if preview else None
    return GroupJob(
        cluster.make_segmenter,
        images.root,
        stages,
        min_area,
        max_side,
        cluster.processes,
        cluster.threads,
        os.getcwd(),
    )


@dataclass
class RayLabeling:
    """One run over the images of a job, like `tcl_core.jobs.labeling.Labeling`.

    Attributes:
        images: all images.
        batch_size: images of a group.
        journal: takes the results.
        pages: takes the preview; ``None`` for none.
        crew: does the work.
        cluster: that the crew belongs to.
        quiet: show no progress.
        changed: after `run`, images that had changed since they were labeled.
        warnings: after `run`, what is odd about images, by file name.
        times: after `run`, what the stages took on all machines.
    """

    images: ImageList | RemoteImages
    batch_size: int
    journal: Journal
    pages: PreviewWriter | None
    crew: Crew
    cluster: RayCluster
    quiet: bool = True
    changed: list[str] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    times: StageTimes = field(default_factory=StageTimes)

    def __post_init__(self) -> None:
        self._shown = self.pages.names() if self.pages is not None else set()
        self._internal_failures = 0
        self._under_way: set[int] = set()
        self._cards: dict[int, list[Written]] = {}
        self._progress: Progress | None = None

    def run(self, guard: InterruptGuard) -> bool:
        """Work off what is not done yet; returns whether a signal stopped it.

        Raises:
            TclError: results cannot be written, or something is wrong with the job as a whole.
            Exception: an internal error.
        """
        self._guard = guard
        try:
            self.changed = self.journal.forget_changed(self.images.root)
            self._shown -= set(self.changed)
            self._begin()
            with self.times.of("elapsed"):
                for task, result in self.crew.results(self._tasks(), self._may_start):
                    self._finish(task, result)
            guard.hold()
            return False
        except KeyboardInterrupt:
            return True
        finally:
            self.crew.dismiss()
            if self._progress is not None:
                self._progress.close()

    def _begin(self) -> None:
        total = len(self.images)
        already = sum(not self._is_wanted(name) for name in self.images.file_names)
        self._progress = progress = Progress(total, already, quiet=self.quiet)
        self.crew.say = progress.say
        if already:
            progress.say(f"{already:,} of {total:,} images are already done")
        if self.changed:
            progress.say(f"{len(self.changed):,} of them have changed and are labeled again")
        self.times.networks = self.cluster.count

    def _is_wanted(self, name: str) -> bool:
        return name not in self.journal.done or (self.pages is not None and name not in self._shown)

    def _tasks(self) -> Iterator[GroupTask]:
        names, size = self.images.file_names, self.batch_size
        places = [
            place
            for place in range(0, len(names), size)
            if any(self._is_wanted(name) for name in names[place : place + size])
        ]
        step = _GROUPS_OF_TASK if self.cluster.processes else 1
        for begin in range(0, len(places), step):
            chosen = tuple(places[begin : begin + step])
            groups = tuple(names[place : place + size] for place in chosen)
            members = {name for group in groups for name in group}
            self._under_way.update(chosen)
            yield GroupTask(groups, chosen, frozenset(members & self.journal.done), frozenset(members & self._shown))

    def _may_start(self) -> bool:
        return self.pages is None or len(self._under_way) < _TASKS_AHEAD * self.cluster.count * _GROUPS_OF_TASK

    def _finish(self, task: GroupTask, result: GroupResult | None) -> None:
        progress = self._progress
        assert progress is not None
        if result is None:
            result = _given_up(task)
        self.times.add(result.times)
        for name, message in result.warnings.items():
            self.warnings[name] = message
            progress.say(f"warning: {printable_name(name)}: {message}")
        for call in result.written:
            if call.to == "journal":
                self._write(call)
        if result.error is not None:
            raise result.error
        if self.pages is not None:
            self._show(task, [call for call in result.written if call.to == "pages"])
            for _ in task.annotated - task.shown:
                # Its card was all that was missing.
                progress.advance()

    def _write(self, call: Written) -> None:
        name = call.arguments[0]
        if call.method == "add_failure" and str(call.arguments[1]).startswith("internal error, "):
            self._internal_failures += 1
            if self._internal_failures >= _TOO_MANY_INTERNAL and not self.journal.done:
                raise RuntimeError(f"{printable_name(name)}: {call.arguments[1]}")
        progress = self._progress
        assert progress is not None
        with self._guard.writing():
            with self.times.of("write"):
                call.write(self.journal, self.pages)
            progress.bottleneck = self.times.bottleneck
            if call.method == "add_failure":
                progress.skip(f"{printable_name(name)}: {call.arguments[1]}")
            else:
                progress.advance()

    def _show(self, task: GroupTask, cards: list[Written]) -> None:
        """Add cards to the preview in the order of the images, because colors follow it."""
        for place, group in zip(task.places, task.groups, strict=True):
            self._cards[place] = [call for call in cards if call.arguments[0] in group]
        while self._under_way and (first := min(self._under_way)) in self._cards:
            with self._guard.writing():
                for call in self._cards.pop(first):
                    call.write(self.journal, self.pages)
            self._under_way.discard(first)


def _given_up(task: GroupTask) -> GroupResult:
    (place,), names = task.places, task.names
    reason = (
        f"three workers of Ray ended while they had the images {place + 1:,} to {place + len(names):,} of the job; "
        "there may be too little memory, so use a smaller --batch-size or --max-pixels, and --resume"
    )
    failed = [name for name in names if name not in task.annotated]
    written = [Written("pages", "add_failure", (name, reason)) for name in names if name not in task.shown]
    written += [Written("journal", "add_failure", (name, reason)) for name in failed]
    return GroupResult(tuple(written), {}, StageTimes())
