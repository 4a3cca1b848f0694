"""The pre-labeling job as one call."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tcl_core.api.arguments import Labels
    from tcl_core.export.base import Exporter
    from tcl_core.jobs.inputs import ImageList
    from tcl_core.jobs.job import PrelabelSummary
    from tcl_core.jobs.remote_inputs import RemoteImages
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.segmentation.specks import MinArea

__all__ = ["prelabel"]


def prelabel(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels: Labels,
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | Segmenter = "playground",
    *,
    exporter: Exporter | str = "coco",
    preview: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    tolerance: str | float = "default",
    min_area: MinArea = "auto",
    small: Literal["drop", "merge"] = "merge",
    refine: bool = True,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    batch_size: int = 8,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    workers: int | Literal["auto"] = 0,
) -> PrelabelSummary:
    """Label the images of a folder and write a COCO file, as ``tcl-annotate prelabel`` does.

    Unreadable images are skipped and listed in the summary. Memory use does not grow with the number of images. Ctrl-C
    stops the run after the current image and leaves a valid file; ``resume=True`` continues to an identical result.

    Args:
        inputs: an image, a folder (searched recursively), a pattern such as ``"photos/*.jpg"``, an address in object
            storage (``"s3://bucket/prefix"``, ``"gs://..."``), or a list of these.
        labels: see `tcl_core.segment`.
        out: the output file, or the output folder for formats that write one. A journal is kept next to it until the
            job is complete.
        model: see `tcl_core.segment`.
        exporter: name of a format (``"coco"``, ``"yolo-seg"``, ``"semantic-png"``), or an exporter with its settings,
            such as ``CocoExporter(geometry="rle")``.
        preview: folder for preview pages that work offline.
        root: folder that file names are relative to; by default, the deepest folder that contains every input.
        tolerance: of the polygons; see `tcl_core.polygons.tolerance_in_pixels`.
        min_area: minimum area of a region in pixels; ``"auto"`` derives it from the model's patch size.
        small: what happens to smaller regions: ``"merge"`` into their surroundings, or ``"drop"``.
        refine: see `tcl_core.segment`, also for the next five arguments.
        options: options of the method.
        device: where the model runs.
        precision: of the matrix products.
        backend: what runs the network.
        batch_size: maximum number of images and windows per forward pass.
        resume: continue a run that was stopped, or a finished run with additional images.
        overwrite: replace existing output.
        progress: show a progress bar on standard error.
        workers: number of processes that decode images and trace polygons while the network runs, or ``"auto"``; the
            result is the same. With more than 0, a script must call this below ``if __name__ == "__main__":``, because
            the processes import it.

    Returns:
        How many images were labeled, and why others were skipped.

    Raises:
        ImageError: no image was found.
        VocabularyError: a label is invalid, or the model does not know a word.
        WeightsError: there is no such model, or it has not been fetched.
        ExportError: the output exists and neither ``resume`` nor ``overwrite`` is set, or it cannot be written.
        SettingsError: a setting is out of range, or the output would replace one of the images.

    Example::

        summary = tcl_core.prelabel("photos", ["chair", "lamp"], "labels.json", model="tcl-vit-b16")
        print(summary.done, summary.failed)
    """
    from tcl_core.api.segmenting import as_vocabulary, segmenter_of
    from tcl_core.export.base import create_exporter, journal_path
    from tcl_core.jobs.job import PrelabelSettings, run_prelabel
    from tcl_core.jobs.remote_inputs import find_job_images

    vocabulary, target = as_vocabulary(labels), Path(out)
    settings = PrelabelSettings(tolerance, min_area, small)
    writer = create_exporter(exporter) if isinstance(exporter, str) else exporter
    writer.check_target(target)
    page = None if preview is None else Path(preview)
    named = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    own = [path for path in (page, target, journal_path(target)) if path is not None]
    images = find_job_images(
        [os.fspath(name) for name in named], None if root is None else os.fspath(root), exclude=own
    )
    _check_apart(images, target)
    segmenter = segmenter_of(
        model,
        vocabulary,
        keep_features=False,
        refine=refine,
        options=options,
        device=device,
        precision=precision,
        backend=backend,
        batch_size=batch_size,
    )
    return run_prelabel(
        images,
        segmenter,
        vocabulary,
        target,
        writer,
        settings,
        preview=page,
        preview_title=f"Pre-labels: {target.stem}",
        resume=resume,
        overwrite=overwrite,
        quiet=not progress,
        workers=workers,
    )


def _check_apart(images: ImageList | RemoteImages, out: Path) -> None:
    """Reject an output that would replace an image of the job."""
    from tcl_core.errors import SettingsError

    place = os.path.realpath(out)
    for path in images.local_paths():
        real = os.path.realpath(path)
        if real == place or real.startswith(place + os.sep):
            raise SettingsError(f"{out}: is or contains {real}, an image of this job; choose another output")
