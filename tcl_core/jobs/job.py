"""The main job: a list of images and a vocabulary become the files of an annotation format, image by image.

Images are worked off in groups of fixed places in the list, so that every image goes through the network together
with the same others in every run: an interrupted and resumed run then computes the very same numbers. What an image
gave is on disc before the next is begun; nothing but its name stays in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ImageError, SettingsError, TclError, VocabularyError, WeightsError, is_out_of_memory
from tcl_core.export.base import Exporter, ImageRegions
from tcl_core.export.names import is_text
from tcl_core.images import DEFAULT_MAX_PIXELS, load_image
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.journal import Journal, journal_path
from tcl_core.jobs.progress import Progress
from tcl_core.jobs.sources import Source
from tcl_core.polygons import tolerance_in_pixels
from tcl_core.preview.page import PreviewWriter, check_preview_folder
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.specks import MinArea, check_min_area
from tcl_core.types import Region, Segmentation, Unlabeled
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tcl_core.segmentation.features import ImageFeatures
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["PIXELS_AT_ONCE", "PrelabelSettings", "PrelabelSummary", "run_prelabel"]

PIXELS_AT_ONCE = 24_000_000
"""Images of a group are decoded together only up to this many pixels (72 MB), then they go through the network."""


_INTERNAL = "internal error, "
_TOO_MANY_INTERNAL = 3
"""If so many images fail by internal errors before any has a result, the program is at fault and the job ends."""


@dataclass(frozen=True)
class PrelabelSettings:
    """What a result depends on besides images, vocabulary and segmenter.

    Attributes:
        tolerance: of the polygons, see :func:`tcl_core.polygons.tolerance_in_pixels`.
        min_area: regions of fewer pixels are not annotated; ``"auto"`` takes what follows from the model's patch
            (:func:`tcl_core.segmentation.specks.speck_area`), 0 keeps all.
        small: what becomes of them: ``"merge"`` into their surroundings, or ``"drop"``.
        max_pixels: larger images are skipped.
        bit_depth: bits that 16-bit images use, 1 to 16; ``None`` takes those that the values of each suggest.

    Raises:
        SettingsError: if a value is out of range.
    """

    tolerance: str | float = "default"
    min_area: MinArea = "auto"
    small: Literal["drop", "merge"] = "merge"
    max_pixels: int = DEFAULT_MAX_PIXELS
    bit_depth: int | None = None

    def __post_init__(self) -> None:
        if self.small not in ("drop", "merge"):
            raise SettingsError(f"--small {self.small}: choose drop or merge")
        check_min_area(self.min_area, "--min-area")
        if self.max_pixels < 1:
            raise SettingsError(f"--max-pixels {self.max_pixels}: give a number of pixels, 1 or more")
        if self.bit_depth is not None and not 1 <= self.bit_depth <= 16:
            raise SettingsError(f"--bit-depth {self.bit_depth}: give auto, or a number of bits from 1 to 16")
        tolerance_in_pixels(self.tolerance)


@dataclass(frozen=True)
class PrelabelSummary:
    """How a run ended.

    Attributes:
        total: images of the job.
        done: images that stand in the file, of this run and earlier ones.
        failed: reason for each image that does not, by file name.
        interrupted: whether the run was stopped before its end.
        preview: first page of the preview, if there is one.
        changed: images that were done before, but had changed since, and were therefore labeled again.
        warnings: what is odd about an image that was labeled all the same, by file name.
    """

    total: int
    done: int
    failed: Mapping[str, str]
    interrupted: bool
    preview: Path | None = None
    changed: tuple[str, ...] = ()
    warnings: Mapping[str, str] = field(default_factory=dict)

    @property
    def internal(self) -> int:
        """How many images failed by a fault of the program, not of the image."""
        return sum(reason.startswith(_INTERNAL) for reason in self.failed.values())


def run_prelabel(
    images: ImageList,
    segmenter: Segmenter,
    vocabulary: Vocabulary,
    out: Path,
    exporter: Exporter,
    settings: PrelabelSettings | None = None,
    *,
    preview: Path | None = None,
    preview_title: str = "Pre-labels",
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
) -> PrelabelSummary:
    """Label images and export what was found; stopped at any moment, it can be resumed with the same result.

    An image that cannot be read or labeled costs only itself: it stands with its reason in the summary, in the output's
    failures and on the preview. SIGINT and SIGTERM end the run between two images with a valid file of what is
    done.

    Args:
        images: from :func:`tcl_core.jobs.inputs.find_images`.
        segmenter: the model and its settings.
        vocabulary: the labels.
        out: output to write; a journal lies next to it until the job is complete.
        exporter: writes the output.
        settings: which regions there are.
        preview: folder for a preview page; ``None`` makes none.
        preview_title: its heading.
        resume: go on with an interrupted run; images that failed or have changed since are tried again. There may be
            more images than before, never fewer.
        overwrite: replace what is there.
        quiet: show no progress.

    Returns:
        What was done, also when the run was stopped.

    Raises:
        TclError: before the first image if the settings, the vocabulary's words or the places to write to are not
            usable; later only if results cannot be written.
        Exception: an internal error that the first three images to be labeled all met.
    """
    settings = settings or PrelabelSettings()
    prompts = [prompt for _, prompt in vocabulary.prompts]
    segmenter.embed_prompts(prompts, vocabulary.templates)
    segmenter.embed_prompts(segmenter.background_names(vocabulary).names, vocabulary.templates)
    if preview is not None and check_preview_folder(preview) and not (resume or overwrite):
        raise SettingsError(
            f"--preview {preview}: already contains a preview; use another folder, --resume or --overwrite"
        )
    exporter.check_names(images.file_names)
    info = {**segmenter.settings(), **exporter.settings(), **asdict(settings)}
    begun = journal_path(out).exists()
    with Journal.open(out, exporter, vocabulary, info, resume=resume, overwrite=overwrite) as journal:
        try:
            _check_same_inputs(images, journal.done, out)
            job_key = _job_key(info, vocabulary)
            pages = PreviewWriter(preview, vocabulary, keep=resume, job=job_key) if preview is not None else None
        except TclError:
            journal.close()
            if not begun:
                # Else what was complete would look like a run that was stopped.
                journal_path(out).unlink(missing_ok=True)
            raise
        try:
            job = _Job(images, segmenter, vocabulary, settings, journal, pages, quiet)
            with InterruptGuard() as guard:
                interrupted = job.run(guard)
                index = job.finish(interrupted, preview_title, _shown_settings(info, vocabulary))
            names = set(images.file_names)
            failed = {name: reason for name, reason in journal.failed.items() if name in names}
            done = sum(name in names for name in journal.done)
            changed, warnings = tuple(job.changed), dict(job.warnings)
            return PrelabelSummary(len(images), done, failed, interrupted, index, changed, warnings)
        finally:
            if pages is not None:
                pages.close()


class _Job:
    """One run over the images."""

    def __init__(
        self,
        images: ImageList,
        segmenter: Segmenter,
        vocabulary: Vocabulary,
        settings: PrelabelSettings,
        journal: Journal,
        pages: PreviewWriter | None,
        quiet: bool,
    ) -> None:
        self._images = images
        self._segmenter = segmenter
        self._vocabulary = vocabulary
        self._settings = settings
        self._journal = journal
        self._pages = pages
        self._annotated = journal.done
        self._shown = pages.names() if pages is not None else set()
        self._internal_failures = 0
        self._sources: dict[str, Source] = {}
        self.changed: list[str] = []
        self.warnings: dict[str, str] = {}
        self._quiet = quiet

    def run(self, guard: InterruptGuard) -> bool:
        """Work off what is not done yet; returns whether a signal stopped it."""
        try:
            self.changed = self._journal.forget_changed(self._images.root)
        except KeyboardInterrupt:
            return True
        self._shown -= set(self.changed)
        total = len(self._images)
        already = sum(not self._is_wanted(name) for name in self._images.file_names)
        progress = Progress(total, already, quiet=self._quiet)
        if already:
            progress.say(f"{already:,} of {total:,} images are already done")
        if self.changed:
            progress.say(f"{len(self.changed):,} of them have changed and are labeled again")
        try:
            size = self._segmenter.batch_size
            for begin in range(0, total, size):
                names = self._images.file_names[begin : begin + size]
                if any(self._is_wanted(name) for name in names):
                    self._do_group(names, guard, progress)
            guard.hold()
            return False
        except KeyboardInterrupt:
            return True
        finally:
            progress.close()

    def finish(self, interrupted: bool, title: str, shown: Mapping[str, str]) -> Path | None:
        """Put together the file and the preview from what there is."""
        names = self._images.file_names
        # The results come first, so that no fault of the preview can cost them.
        self._journal.export(names, final=not interrupted)
        return self._pages.finish(title, shown, names) if self._pages is not None else None

    def _is_wanted(self, name: str) -> bool:
        return name not in self._annotated or (self._pages is not None and name not in self._shown)

    def _do_group(self, names: Sequence[str], guard: InterruptGuard, progress: Progress) -> None:
        # Images done earlier are loaded too, because the numbers of the others may depend on their company.
        pending: list[tuple[str, NDArray[np.uint8]]] = []
        pixels = 0
        for name in names:
            try:
                if not is_text(name):
                    raise ImageError(
                        f"{_printable(name)}: the file name is not valid UTF-8, so it cannot be written to COCO; "
                        "rename the file"
                    )
                image = self._load(name, progress)
            except Exception as error:
                self._fail(name, error, guard, progress)
                continue
            pending.append((name, image))
            pixels += image.shape[0] * image.shape[1]
            if pixels >= PIXELS_AT_ONCE:
                self._label(pending, guard, progress)
                pending, pixels = [], 0
        self._label(pending, guard, progress)

    def _load(self, name: str, progress: Progress) -> NDArray[np.uint8]:
        path = self._images.root / name
        wanted = self._is_wanted(name)
        before = os.stat(path) if wanted and path.is_file() else None

        def warn(message: str) -> None:
            if wanted:
                self.warnings[name] = message.removeprefix(f"{_printable(name)}: ")
                progress.say(f"warning: {message}")

        image = load_image(
            path,
            max_pixels=self._settings.max_pixels,
            name=_printable(name),
            bit_depth=self._settings.bit_depth,
            on_warning=warn,
        )
        if before is not None:
            self._sources[name] = Source.of(path, before)
        return image

    def _label(
        self, pending: Sequence[tuple[str, NDArray[np.uint8]]], guard: InterruptGuard, progress: Progress
    ) -> None:
        if not any(self._is_wanted(name) for name, _ in pending):
            return
        for name, image, encode in self._encoded(pending):
            if not self._is_wanted(name):
                continue
            try:
                segmentation, unlabeled = self._segmenter.explain(encode(), self._vocabulary)
                groups = self._groups(name, image)
                regions = self._regions(segmentation)
                found = ImageRegions(name, image.shape[0], image.shape[1], regions)
                # What cannot be exported is found now, when it costs only this image.
                prepared = self._journal.exporter.prepare(found)
            except Exception as error:
                self._fail(name, error, guard, progress)
                continue
            with guard.writing():
                # The journal comes last: what stands in it needs no second look.
                if self._pages is not None and name not in self._shown:
                    self._pages.add_image(name, image, regions, unlabeled, groups=groups)
                if name not in self._annotated:
                    self._journal.add(found, prepared, self._sources.pop(name, None))
                progress.advance()

    def _groups(self, name: str, image: NDArray[np.uint8]) -> Unlabeled | None:
        """Groups without labels for the preview, where the method makes any."""
        from tcl_core.segmentation.groups import has_groups, image_groups, named_groups

        if self._pages is None or name in self._shown or not has_groups(self._segmenter):
            return None
        return named_groups(image_groups(self._segmenter, image))

    def _encoded(
        self, pending: Sequence[tuple[str, NDArray[np.uint8]]]
    ) -> Iterator[tuple[str, NDArray[np.uint8], Callable[[], ImageFeatures]]]:
        """Each image with a call that gives its features, or raises what went wrong with this one image."""
        features: list[ImageFeatures] | None = None
        with suppress(Exception):
            features = self._segmenter.encode_batch([image for _, image in pending])
        # Not while the error is handled: it holds on to the tensors of the batch, for which there may be no room.
        for position, (name, image) in enumerate(pending):
            if features is None:
                # One of them is to blame; alone, each gives its own features or its own error.
                yield name, image, partial(self._segmenter.encode, image)
            else:
                yield name, image, partial(features.__getitem__, position)

    def _regions(self, segmentation: Segmentation) -> list[Region]:
        settings = self._settings
        needs_polygons = self._journal.exporter.needs_polygons or self._pages is not None
        return label_map_to_regions(
            segmentation,
            min_area=self._segmenter.speck_area(segmentation.size)
            if settings.min_area == "auto"
            else settings.min_area,
            small=settings.small,
            tolerance=settings.tolerance if needs_polygons else None,
        )

    def _fail(self, name: str, error: Exception, guard: InterruptGuard, progress: Progress) -> None:
        # What is wrong with the job rather than with one image would be wrong with every image.
        if isinstance(error, (SettingsError, VocabularyError, WeightsError)):
            raise error
        if not self._is_wanted(name):
            return
        reason = _reason(name, error)
        if reason.startswith(_INTERNAL):
            self._internal_failures += 1
            if self._internal_failures >= _TOO_MANY_INTERNAL and not self._annotated:
                raise error
        with guard.writing():
            if self._pages is not None:
                self._pages.add_failure(name, reason)
            if name not in self._annotated:
                self._journal.add_failure(name, reason)
            progress.skip(f"{_printable(name)}: {reason}")


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, TclError):
        return str(error).removeprefix(f"{_printable(name)}: ")
    if is_out_of_memory(error):
        return "there is not enough memory for it; use a smaller --batch-size, or --max-pixels to leave it out"
    text = " ".join(str(error).split())
    return f"{_INTERNAL}{type(error).__name__}: {text}; please report it"


def _job_key(info: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    text = json.dumps([info, vocabulary.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _shown_settings(info: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, str]:
    background = "yes" if vocabulary.background else "no"
    if vocabulary.background:
        threshold = vocabulary.background_threshold
        threshold = info["background_threshold"] if threshold is None else threshold
        background += "" if threshold is None else f", threshold {threshold:g}"
    shown = {**info, "background_threshold": None, "templates": vocabulary.templates or info["templates"]}
    shown = {key: value for key, value in shown.items() if value is not None}
    texts = {
        key.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
        for key, value in shown.items()
    }
    prompts = "; ".join(f"{label.name}: {', '.join(label.prompts)}" for label in vocabulary.labels)
    return {**texts, "background": background, "labels and prompts": prompts}


def _check_same_inputs(images: ImageList, done: Set[str], out: Path) -> None:
    gone = done - set(images.file_names)
    if gone:
        raise SettingsError(
            f"{out}: {len(gone):,} of the {len(done):,} images labeled so far (such as {_printable(min(gone))}) are "
            "not among the inputs; give the same inputs and the same --root to resume (more inputs may be added)"
        )


def _printable(name: str) -> str:
    """The name with bytes that are no valid text written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
