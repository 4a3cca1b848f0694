"""The loop of a job: images are read ahead, go through the network in fixed groups, and are written in their order.

The network, the decision and all writing belong to this process. What comes before and after is done by `Workers`,
perhaps at the same time, and the network may be a group ahead of the decision; as groups and order do not depend on
that, neither do the results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from tcl_core.jobs.encoding import EncodedBatch, Encoder
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.journal import Journal
from tcl_core.jobs.pipeline import done, in_order
from tcl_core.jobs.processes import WorkerLostError
from tcl_core.jobs.progress import Progress
from tcl_core.jobs.remote_inputs import RemoteImages
from tcl_core.jobs.stages import DecidedImage, Failure, ImageToRead, ReadImage, TracedImage, printable_name
from tcl_core.jobs.times import OverlappingTime, StageTimes
from tcl_core.jobs.workers import Workers
from tcl_core.preview.card import Overlay
from tcl_core.preview.page import PreviewWriter
from tcl_core.segmentation.specks import MinArea
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tcl_core.images import ResizedImage
    from tcl_core.segmentation.features import ImageFeatures
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.types import Segmentation

__all__ = ["PIXELS_AT_ONCE", "Labeling"]

PIXELS_AT_ONCE = 24_000_000
"""Images of a group go through the network together only up to this many pixels."""

_TOO_MANY_INTERNAL = 3
"""If so many images fail by internal errors before any has a result, the program is at fault and the job ends."""


@dataclass(frozen=True)
class _Batch:
    """Images that go through the network together, and those before them that could not be read."""

    failed: Sequence[ReadImage]
    images: Sequence[tuple[ReadImage, ResizedImage]]


@dataclass(frozen=True)
class _Unfinished:
    """An image whose result is not written yet."""

    read: ReadImage
    traced: Future[TracedImage]
    pixels: int = 0
    unlabeled: Overlay | None = None
    groups: Overlay | None = None


@dataclass
class Labeling:
    """One run over the images of a job.

    Attributes:
        images: all images.
        segmenter: the model and its settings.
        vocabulary: the labels.
        min_area: see `tcl_core.jobs.job.PrelabelSettings`.
        journal: takes the results.
        pages: takes the preview; ``None`` for none.
        start_workers: given the number of images without a result, starts who reads images and traces regions.
        quiet: show no progress.
        ahead: encode a group while the one before is decided and written, see `tcl_core.jobs.encoding`.
        changed: after `run`, images that had changed since they were labeled.
        warnings: after `run`, what is odd about images, by file name.
        times: after `run`, what the stages took.
    """

    images: ImageList | RemoteImages
    segmenter: Segmenter
    vocabulary: Vocabulary
    min_area: MinArea
    journal: Journal
    pages: PreviewWriter | None
    start_workers: Callable[[int], Workers]
    quiet: bool = True
    ahead: bool = False
    changed: list[str] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    times: StageTimes = field(default_factory=StageTimes)

    def __post_init__(self) -> None:
        self._annotated = self.journal.done
        self._shown = self.pages.names() if self.pages is not None else set()
        self._workers: Workers
        self._encoder: Encoder
        self._network = OverlappingTime(self.times, "network")
        self._internal_failures = 0
        self._unfinished: deque[_Unfinished] = deque()

    def run(self, guard: InterruptGuard) -> bool:
        """Work off what is not done yet; returns whether a signal stopped it.

        Raises:
            TclError: results cannot be written, or something is wrong with the job as a whole.
            Exception: an internal error that the first images to be labeled all met.
        """
        try:
            self.changed = self.journal.forget_changed(self.images.root)
        except KeyboardInterrupt:
            return True
        self._shown -= set(self.changed)
        total = len(self.images)
        already = sum(not self._is_wanted(name) for name in self.images.file_names)
        progress = Progress(total, already, quiet=self.quiet)
        if already:
            progress.say(f"{already:,} of {total:,} images are already done")
        if self.changed:
            progress.say(f"{len(self.changed):,} of them have changed and are labeled again")
        self._guard, self._progress = guard, progress
        with ExitStack() as stack:
            stack.callback(progress.close)
            try:
                with guard.writing():
                    self._workers = self.start_workers(total - already)
                    stack.callback(self._workers.close)
                    self._encoder = Encoder(self.segmenter, self.ahead, self._network.working, progress.say)
                    stack.callback(self._encoder.close)
                self.times.workers = self._workers.count
                stack.enter_context(self.times.of("elapsed"))
                self._run()
                guard.hold()
                return False
            except WorkerLostError:
                # What comes before the lost image is done.
                while self._unfinished and self._is_done(self._unfinished[0]):
                    self._finish(self._unfinished.popleft())
                raise
            except KeyboardInterrupt:
                return True

    def _run(self) -> None:
        size = self.segmenter.batch_size
        names = self.images.file_names
        begins = [
            begin
            for begin in range(0, len(names), size)
            if any(self._is_wanted(name) for name in names[begin : begin + size])
        ]
        # Images done earlier are read too, because the numbers of the others may depend on their company.
        tasks = (
            ImageToRead(self.images.root, name, self._is_wanted(name), self._thumbnail(name))
            for begin in begins
            for name in names[begin : begin + size]
        )
        reading = in_order(tasks, self._workers.read, self._workers.ahead)
        batches = (batch for begin in begins for batch in self._batches(reading, len(names[begin : begin + size])))
        for batch, encoded in in_order(batches, self._start, self._encoder.ahead):
            for read in batch.failed:
                assert read.failure is not None
                self._failed(read, read.failure)
            if encoded is not None:
                self._label(batch, encoded)
        while self._unfinished:
            self._finish(self._unfinished.popleft())

    def _is_wanted(self, name: str) -> bool:
        return name not in self._annotated or (self.pages is not None and name not in self._shown)

    def _thumbnail(self, name: str) -> int | None:
        return None if self.pages is None or name in self._shown else self.pages.max_side

    def _batches(self, reading: Iterator[tuple[ImageToRead, Future[ReadImage]]], count: int) -> Iterator[_Batch]:
        """A group of so many images, in parts if they are large."""
        failed: list[ReadImage] = []
        images: list[tuple[ReadImage, ResizedImage]] = []
        pixels = 0
        for _ in range(count):
            _, future = next(reading)
            read = future.result()
            self.times.read += read.seconds
            for message in read.warnings:
                self.warnings[read.name] = message.removeprefix(f"{printable_name(read.name)}: ")
                self._progress.say(f"warning: {message}")
            if read.image is None:
                failed.append(read)
                continue
            images.append((read, read.image))
            pixels += read.image.size[0] * read.image.size[1]
            if pixels >= PIXELS_AT_ONCE:
                yield _Batch(failed, images)
                failed, images, pixels = [], [], 0
        if failed or images:
            yield _Batch(failed, images)

    def _start(self, batch: _Batch) -> EncodedBatch | None:
        if not any(self._is_wanted(read.name) for read, _ in batch.images):
            return None
        return self._encoder.start([image for _, image in batch.images])

    def _label(self, batch: _Batch, encoded: EncodedBatch) -> None:
        # If they cannot be encoded together, one of them is to blame; alone, each gives its own features or error.
        together = self._encoder.features(encoded)
        for read, image in batch.images:
            features = None if together is None else together.popleft()
            if not self._is_wanted(read.name):
                continue
            pixels = image.size[0] * image.size[1]
            self._make_room(pixels)
            try:
                decide = partial(self._decide, read, image, features)
                with self._network.working():
                    segmentation, overlay, groups = self._encoder.with_memory(decide)
            except Exception as error:
                self._failed(read, Failure.of(read.name, error))
                continue
            small = read.thumbnail
            decided = DecidedImage(
                read.name,
                segmentation.label_map,
                segmentation.score_map,
                self.segmenter.speck_area(segmentation.size) if self.min_area == "auto" else self.min_area,
                read.source,
                None if small is None else small.scale,
            )
            # At the working size it is not needed any more.
            read = replace(read, image=None)
            self._unfinished.append(_Unfinished(read, self._workers.trace(decided), pixels, overlay, groups))
            self._finish_done()

    def _decide(
        self, read: ReadImage, image: ResizedImage, features: ImageFeatures | None
    ) -> tuple[Segmentation, Overlay | None, Overlay | None]:
        """The label map, and for a preview which background names won and the groups without labels."""
        if features is None:
            features = self.segmenter.encode(image)
        small, overlay = read.thumbnail, None
        if small is None:
            segmentation = self.segmenter.segment(features, self.vocabulary)
        else:
            segmentation, unlabeled = self.segmenter.explain(features, self.vocabulary)
            overlay = Overlay.of(unlabeled, small.size)
        return segmentation, overlay, self._groups(read, image)

    def _groups(self, read: ReadImage, image: ResizedImage) -> Overlay | None:
        """Groups without labels for the preview, where the method makes any."""
        from tcl_core.segmentation.groups import has_groups, image_groups, named_groups

        if read.thumbnail is None or not has_groups(self.segmenter):
            return None
        return Overlay.of(named_groups(image_groups(self.segmenter, image)), read.thumbnail.size)

    # -- results, in the order of the images -----------------------------------------------------------------------

    def _failed(self, read: ReadImage, failure: Failure) -> None:
        self._unfinished.append(_Unfinished(read, done(TracedImage(read.name, failure=failure))))
        self._finish_done()

    def _make_room(self, pixels: int) -> None:
        """Wait until one more label map may be held."""
        while self._unfinished and (
            len(self._unfinished) >= self._workers.behind
            or sum(one.pixels for one in self._unfinished) + pixels > self._workers.pixels_behind
        ):
            self._finish(self._unfinished.popleft())

    def _finish_done(self) -> None:
        while self._unfinished and self._unfinished[0].traced.done():
            self._finish(self._unfinished.popleft())

    @staticmethod
    def _is_done(one: _Unfinished) -> bool:
        return one.traced.done() and one.traced.exception() is None

    def _finish(self, one: _Unfinished) -> None:
        traced, name = one.traced.result(), one.read.name
        self.times.trace += traced.seconds
        if traced.failure is not None:
            self._write_failure(name, traced.failure)
            return
        with self._guard.writing():
            with self.times.of("write"):
                # The journal comes last: what stands in it needs no second look.
                if self.pages is not None and one.read.thumbnail is not None and traced.outlines is not None:
                    self.pages.add_card(name, one.read.thumbnail, traced.outlines, one.unlabeled, groups=one.groups)
                if name not in self._annotated:
                    self.journal.add_line(name, traced.line, one.read.source)
            self._progress.bottleneck = self.times.bottleneck
            self._progress.advance()

    def _write_failure(self, name: str, failure: Failure) -> None:
        # What is wrong with the job rather than with one image would be wrong with every image.
        if failure.fatal:
            raise failure.error
        if not self._is_wanted(name):
            return
        if failure.internal:
            self._internal_failures += 1
            if self._internal_failures >= _TOO_MANY_INTERNAL and not self._annotated:
                raise failure.error
        with self._guard.writing():
            if self.pages is not None:
                self.pages.add_failure(name, failure.reason)
            if name not in self._annotated:
                self.journal.add_failure(name, failure.reason)
            self._progress.skip(f"{printable_name(name)}: {failure.reason}")
