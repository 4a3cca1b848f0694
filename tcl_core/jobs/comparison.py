"""The same images through several models, on one page."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import ImageError, SettingsError
from tcl_core.export.names import printable
from tcl_core.images import load_image
from tcl_core.jobs.inputs import ImageList
from tcl_core.jobs.progress import Progress
from tcl_core.preview.page import PreviewWriter, check_preview_folder
from tcl_core.regions import label_map_to_regions
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.specks import without_specks
from tcl_core.vocabulary import Vocabulary

__all__ = ["Comparison", "compare_models"]


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        page: the first page.
        agreement: for each model but the first, the share of all pixels that have the same label as the first gives
            them, background included; in ``[0, 1]``.
        failed: reason for each image that could not be read, by file name.
    """

    page: Path
    agreement: Mapping[str, float]
    failed: Mapping[str, str]


def compare_models(
    images: ImageList,
    models: Mapping[str, Callable[[], Segmenter]],
    vocabulary: Vocabulary,
    folder: Path,
    *,
    title: str = "Models side by side",
    overwrite: bool = False,
    quiet: bool = True,
) -> Comparison:
    """Segment images with several models, one after the other, and write a page that shows each image once per model.

    Regions are those that ``tcl-annotate prelabel`` annotates by default. An image that cannot be read is left out.

    Args:
        images: from :func:`tcl_core.jobs.inputs.find_images`; a handful, for each is decoded once for every model.
        models: at least two; each call loads one, and it is let go of before the next.
        vocabulary: the labels.
        folder: for the page, see `tcl_core.preview.page.PreviewWriter`.
        title: heading of the page.
        overwrite: replace a page that is there.
        quiet: show no progress.

    Raises:
        ImageError: no image could be read.
        SettingsError: there are fewer than two models, or the folder holds something else or cannot be written to.
        VocabularyError: a model does not know a word.
        WeightsError: a model is not there.
    """
    if len(models) < 2:
        raise SettingsError("a comparison needs two models or more; name another one")
    if check_preview_folder(folder) and not overwrite:
        raise SettingsError(f"--preview {folder}: already contains a preview; choose another folder or add --overwrite")
    names = images.file_names
    failed: dict[str, str] = {}
    first: dict[str, bytes] = {}
    same, pixels = dict.fromkeys(models, 0), 0
    settings: dict[str, str] = {}
    progress = Progress(len(names) * len(models), quiet=quiet)
    with PreviewWriter(folder, vocabulary) as writer:
        for column, load in models.items():
            segmenter = load()
            segmenter.embed_vocabulary(vocabulary)
            settings[column] = _described(segmenter)
            for place, name in enumerate(names):
                if name in failed:
                    continue
                try:
                    image = load_image(images.path(place), name=printable(name), on_warning=progress.say)
                except ImageError as error:
                    failed[name] = str(error).removeprefix(f"{printable(name)}: ")
                    progress.skip(f"{printable(name)}: {failed[name]}")
                    continue
                found = segmenter.segment(segmenter.encode(image), vocabulary)
                least = segmenter.speck_area(found.size)
                regions = label_map_to_regions(found, min_area=least, small="merge")
                label_map, note = without_specks(found, segmenter.model, least).label_map, ""
                if name in first:
                    equal = int((label_map == _unpacked(first[name], label_map.shape)).sum())
                    same[column] += equal
                    note = f"agrees with {next(iter(models))} on {equal / label_map.size:.0%} of the pixels"
                else:
                    first[name] = zlib.compress(label_map.tobytes(), 1)
                    pixels += label_map.size
                writer.add_image(name, image, regions, column=column, note=note)
                progress.advance()
        progress.close()
        shown = [name for name in names if name not in failed]
        if not shown:
            raise ImageError(f"none of the images could be read; {names[0]}: {failed[names[0]]}")
        settings["labels and prompts"] = "; ".join(f"{x.name}: {', '.join(x.prompts)}" for x in vocabulary.labels)
        page = writer.finish(title, settings, shown, list(models))
    agreement = {column: same[column] / pixels for column in list(models)[1:]}
    return Comparison(page, agreement, failed)


def _unpacked(packed: bytes, shape: Sequence[int]) -> NDArray[np.int32]:
    return np.frombuffer(zlib.decompress(packed), np.int32).reshape(shape)


def _described(segmenter: Segmenter) -> str:
    settings = segmenter.settings()
    options = ", ".join(f"{name} {value}" for name, value in settings["options"].items())
    refiner = settings["refiner"]["name"] if settings["refiner"] else "no refinement"
    weights = settings["weights_sha256"][:12]
    return f"method {settings['method']} ({options}), {refiner}, weights {weights}"
