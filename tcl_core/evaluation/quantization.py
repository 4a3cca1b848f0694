"""Whether a model in int8 gives the labels of float32 on the user's images, and what it saves."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.backends.calibration import Calibration
from tcl_core.backends.openvino import OpenVinoBackend
from tcl_core.errors import ImageError, SettingsError
from tcl_core.evaluation.confusion import Scores
from tcl_core.evaluation.precision_pair import PrecisionPair
from tcl_core.export.names import printable
from tcl_core.images import content_hash, load_image
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.progress import Progress
from tcl_core.models import Model
from tcl_core.preview.page import check_preview_folder
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.sliding_window import split_windows
from tcl_core.vocabulary import Vocabulary

__all__ = ["FEWEST_IMAGES", "MOST_WINDOWS", "Quantization", "quantize"]

FEWEST_IMAGES = 8
"""Images that are needed; half of them calibrate, the others are measured."""

MOST_WINDOWS = 64
"""Windows that a network is calibrated with; with fewer than about 50 the embedded model agrees less."""


@dataclass(frozen=True)
class Quantization:
    """What was measured of a model in int8, on images that calibration had not seen.

    Attributes:
        scores: of int8 with float32 in the place of the truth; the first class is the background.
        seconds: processor time of float32 and of int8 for encoding all measured images, in turns.
        measured: number of images that were measured.
        calibrated: number of images that windows were taken from.
        calibration: the windows.
        failed: reason for each image that could not be read, by file name.
        kept: whether they agree well enough, and ``precision="int8"`` works from now on.
        page: the first page of the preview, where one was wanted.
    """

    scores: Scores
    seconds: tuple[float, float]
    measured: int
    calibrated: int
    calibration: Calibration
    failed: Mapping[str, str]
    kept: bool
    page: Path | None

    @property
    def agreement(self) -> float:
        """Share of pixels with the same label in both precisions, background included; in ``[0, 1]``."""
        return self.scores.pixel_accuracy


def quantize(
    model: Model,
    images: ImageList,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    agreement: float = 0.98,
    most_windows: int = MOST_WINDOWS,
    preview: Path | None = None,
    overwrite: bool = False,
    quiet: bool = True,
) -> Quantization:
    """Calibrate a model in int8 on a part of the images, measure it on the others, and keep it if it agrees.

    Args:
        model: on the CPU, in float32 with OpenVINO.
        images: from :func:`tcl_core.jobs.inputs.find_images`, at least `FEWEST_IMAGES`.
        vocabulary: the labels.
        folder: of networks; see :func:`tcl_core.models.paths.networks_folder`.
        options: values of the method's options; int8 is kept for those that affect features.
        agreement: least share of pixels that have float32's label, in ``[0, 1]``.
        most_windows: windows that are kept for calibration.
        preview: folder for a page that shows both side by side; ``None`` for no page.
        overwrite: replace a page that is there.
        quiet: show no progress.

    Raises:
        SettingsError: there are too few images that can be read, the model has no network, or a folder cannot be
            written to.
        VocabularyError: the model does not know a word.
    """
    if model.backend.name != "openvino" or model.precision != torch.float32:
        raise SettingsError(
            f"int8 is measured against float32 with OpenVINO, and the model {model.name} runs in {model.backend.name}; "
            "only methods with a network that OpenVINO can run have int8"
        )
    if len(images) < FEWEST_IMAGES:
        raise _too_few(len(images))
    if preview is not None and check_preview_folder(preview) and not overwrite:
        raise SettingsError(
            f"--preview {preview}: already contains a preview; choose another folder or add --overwrite"
        )
    plain = Segmenter(model, options=options)
    plain.embed_prompts([prompt for _, prompt in vocabulary.prompts], vocabulary.templates)
    reader = _Reader(images, Progress(len(images), quiet=quiet))
    count = min(len(images) // 2, most_windows)
    chosen = [number * len(images) // count for number in range(count)]
    calibration, seen = _calibrate(plain, reader, chosen, max(count, most_windows))
    calibrated = len(seen)
    with _trial_folder(folder) as inner:
        trial = replace(model, precision=torch.int8, backend=OpenVinoBackend(inner, calibration))
        pair = PrecisionPair(plain, Segmenter(trial, options=options), vocabulary)
        rest = [place for place in range(len(images)) if place not in set(chosen)]
        page = pair.compare_all(_new_images(reader, rest, seen, inner.parent), preview)
        reader.progress.close()
        if pair.images < FEWEST_IMAGES // 2:
            raise _too_few(calibrated + pair.images)
        kept = pair.scores.pixel_accuracy >= agreement
        if kept:
            calibration = replace(calibration, measured=pair.summary())
            OpenVinoBackend(folder).keep(plain.network_identity, calibration, inner)
    return Quantization(pair.scores, pair.seconds, pair.images, calibrated, calibration, reader.failed, kept, page)


@contextmanager
def _trial_folder(folder: Path) -> Iterator[Path]:
    """For networks that are thrown away unless they are adopted by the folder of networks.

    It is inside, because networks are too large for some systems' temporary files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = tempfile.TemporaryDirectory(dir=folder, prefix="part-", ignore_cleanup_errors=True)
        inner = Path(part.name) / "networks"
        inner.mkdir()
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written to ({error.strerror or error})") from error
    with part:
        yield inner


def _new_images(
    reader: _Reader, places: Sequence[int], seen: set[str], trial: Path
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Names and pixels of the images that were not used before."""
    for name, image in reader.read(places):
        # Whoever exports a network takes such folders for abandoned after a while.
        os.utime(trial)
        if not _is_known(image, seen):
            yield name, image


def _is_known(image: NDArray[np.uint8], seen: set[str]) -> bool:
    """Whether an image of the same pixels was used before; it is remembered."""
    content = content_hash(image)
    known = content in seen
    seen.add(content)
    return known


def _too_few(count: int) -> SettingsError:
    return SettingsError(
        f"{count} different image{'' if count == 1 else 's'} that can be read are too few to calibrate on one part and "
        f"measure on the other; give at least {FEWEST_IMAGES}, better 100, of the kind that you label"
    )


@dataclass
class _Reader:
    """Images by place; those that cannot be read are told and remembered."""

    images: ImageList
    progress: Progress
    failed: dict[str, str] = field(default_factory=dict)

    def read(self, places: Sequence[int]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for place in places:
            name = self.images.file_names[place]
            try:
                image = load_image(self.images.path(place), name=printable(name), on_warning=self.progress.say)
            except ImageError as error:
                self.failed[name] = str(error).removeprefix(f"{printable(name)}: ")
                self.progress.skip(f"{printable(name)}: {self.failed[name]}")
                continue
            yield name, image
            self.progress.advance()


def _calibrate(segmenter: Segmenter, reader: _Reader, places: Sequence[int], most: int) -> tuple[Calibration, set[str]]:
    """Windows of some images, and hashes of the images that they are from."""
    preprocess = segmenter.model.preprocess
    windows: list[Tensor] = []
    seen: set[str] = set()
    for _, image in reader.read(places):
        if _is_known(image, seen):
            continue
        pixels = torch.from_numpy(segmenter.resized(image).pixels).permute(2, 0, 1)
        found, _ = split_windows(pixels, preprocess.window, preprocess.stride)
        # As many of each image as of the others, or one more.
        number = len(seen)
        count = min(len(found), number * most // len(places) - (number - 1) * most // len(places))
        # Not the same part of every image.
        windows += [found[(part * len(found) // count + number) % len(found)].clone() for part in range(count)]
    if len(seen) < FEWEST_IMAGES // 2:
        raise _too_few(len(seen))
    return Calibration(tuple(windows), preprocess.mean, preprocess.std), seen
