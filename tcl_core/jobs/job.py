"""The main job: a list of images and a vocabulary become the files of an annotation format, image by image.

Images are worked off in groups of fixed places in the list, so that every image goes through the network together
with the same others in every run: an interrupted and resumed run then computes the very same numbers. What an image
gave is on disk once it is traced; nothing but its name stays in memory.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tcl_core.errors import SettingsError, TclError
from tcl_core.export.base import Exporter
from tcl_core.images import DEFAULT_MAX_PIXELS
from tcl_core.jobs.encoding import can_encode_ahead
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.interrupt import InterruptGuard
from tcl_core.jobs.journal import Journal, journal_path
from tcl_core.jobs.labeling import Labeling
from tcl_core.jobs.processes import start_workers
from tcl_core.jobs.ray_cluster import Crew, RayCluster
from tcl_core.jobs.ray_labeling import RayLabeling, group_job
from tcl_core.jobs.remote_inputs import RemoteImages
from tcl_core.jobs.stages import ReadSettings, Stages, TraceSettings, printable_name
from tcl_core.jobs.times import StageTimes
from tcl_core.polygons import tolerance_in_pixels
from tcl_core.preview.page import PreviewWriter, check_preview_folder
from tcl_core.segmentation.specks import MinArea, check_min_area
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["PrelabelSettings", "PrelabelSummary", "run_prelabel"]

_INTERNAL = "internal error, "


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
        stages: what reading, network, tracing and writing took in this run.
    """

    total: int
    done: int
    failed: Mapping[str, str]
    interrupted: bool
    preview: Path | None = None
    changed: tuple[str, ...] = ()
    warnings: Mapping[str, str] = field(default_factory=dict)
    stages: StageTimes = field(default_factory=StageTimes, compare=False)

    @property
    def internal(self) -> int:
        """How many images failed by a fault of the program, not of the image."""
        return sum(reason.startswith(_INTERNAL) for reason in self.failed.values())


def run_prelabel(
    images: ImageList | RemoteImages,
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
    workers: int | Literal["auto"] = 0,
    cluster: RayCluster | None = None,
) -> PrelabelSummary:
    """Label images and export what was found; stopped at any moment, it can be resumed with the same result.

    An image that cannot be read or labeled costs only itself: it stands with its reason in the summary, in the output's
    failures and on the preview. SIGINT and SIGTERM end the run between two images with a valid file of what is
    done.

    Args:
        images: from `tcl_core.jobs.remote_inputs.find_job_images`.
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
        workers: processes that read images and trace regions while the network runs, see
            `tcl_core.jobs.processes.start_workers`. The results do not depend on it. The processes import the main
            module, so that a script that asks for them has to guard what it does by ``if __name__ == "__main__"``.
        cluster: whose machines label the images, each with a model of its own; ``segmenter`` then only says which.

    Returns:
        What was done, also when the run was stopped.

    Raises:
        TclError: before the first image if the settings, the vocabulary's words or the places to write to are not
            usable; later only if results cannot be written.
        Exception: an internal error that the first three images to be labeled all met.
    """
    settings = settings or PrelabelSettings()
    segmenter.embed_vocabulary(vocabulary)
    if preview is not None and check_preview_folder(preview) and not (resume or overwrite):
        raise SettingsError(
            f"--preview {preview}: already contains a preview; use another folder, --resume or --overwrite"
        )
    exporter.check_names(images.file_names)
    info = {**segmenter.settings(), **exporter.settings(), **asdict(settings)}
    preprocess = segmenter.model.preprocess
    reading = ReadSettings(preprocess.short_side, preprocess.max_long_side, settings.max_pixels, settings.bit_depth)
    needs_polygons = exporter.needs_polygons or preview is not None
    stages = Stages(
        reading, TraceSettings(vocabulary, exporter, settings.small, settings.tolerance if needs_polygons else None)
    )
    crew: Crew | None = None
    if cluster is not None:
        parts = group_job(cluster, images, stages, settings.min_area, preview is not None)
        tell: Callable[[str], None] = (lambda _: None) if quiet else partial(print, file=sys.stderr, flush=True)
        wanted = min(cluster.count, -(-len(images) // segmenter.batch_size))
        crew = Crew(cluster, parts, segmenter.settings(), tell, wanted)
        # What follows from a device is the machines' own.
        info |= crew.settings()
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
            job: Labeling | RayLabeling
            if cluster is not None and crew is not None:
                job = RayLabeling(images, segmenter.batch_size, journal, pages, crew, cluster, quiet)
            else:
                job = Labeling(
                    images,
                    segmenter,
                    vocabulary,
                    settings.min_area,
                    journal,
                    pages,
                    lambda count: start_workers(workers, stages, count, segmenter.batch_size),
                    quiet,
                    can_encode_ahead(segmenter),
                )
            with InterruptGuard() as guard:
                interrupted = job.run(guard)
                # The results come first, so that no fault of the preview can cost them.
                journal.export(images.file_names, final=not interrupted)
                index = None
                if pages is not None:
                    index = pages.finish(preview_title, _shown_settings(info, vocabulary), images.file_names)
            names = set(images.file_names)
            failed = {name: reason for name, reason in journal.failed.items() if name in names}
            done = sum(name in names for name in journal.done)
            changed, warnings = tuple(job.changed), dict(job.warnings)
            return PrelabelSummary(len(images), done, failed, interrupted, index, changed, warnings, job.times)
        finally:
            if pages is not None:
                pages.close()


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


def _check_same_inputs(images: ImageList | RemoteImages, done: Set[str], out: Path) -> None:
    gone = done - set(images.file_names)
    if gone:
        raise SettingsError(
            f"{out}: {len(gone):,} of the {len(done):,} images labeled so far (such as {printable_name(min(gone))}) "
            "are not among the inputs; give the same inputs and the same --root to resume (more inputs may be added)"
        )
