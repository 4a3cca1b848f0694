"""Label maps become a COCO file, whoever made them: the model, a person, or another plugin's layer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import CocoError
from tcl_core.export.coco import Geometry, ImageResult, regions_to_annotations, write_coco_file
from tcl_core.jobs.journal import journal_path
from tcl_core.regions import label_map_to_regions
from tcl_core.types import Region, Segmentation
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["AnnotatedImage", "check_folder", "export_coco", "regions_of", "to_positions", "vocabulary_of_names"]

_MAX_NAME = 200


@dataclass(frozen=True)
class AnnotatedImage:
    """The labels of one image.

    Attributes:
        file_name: as it shall stand in the COCO file.
        label_map: integers ``[H, W]``; 0 is nothing, k is label k of the vocabulary counted from 1.
        score_map: float32 ``[H, W]`` in ``[0, 1]``; ``None`` where people made the labels, which then count 1.
    """

    file_name: str
    label_map: NDArray[Any]
    score_map: NDArray[np.float32] | None = None


def regions_of(
    image: AnnotatedImage, vocabulary: Vocabulary, tolerance: str | float | None = "default"
) -> list[Region]:
    """The regions of an image.

    Args:
        image: its labels.
        vocabulary: what they are called.
        tolerance: of the polygons, see `tcl_core.polygons.tolerance_in_pixels`; ``None`` makes none.

    Raises:
        SettingsError: the maps do not fit together or hold a label that the vocabulary does not have.
    """
    label_map = np.ascontiguousarray(image.label_map, dtype=np.int32)
    score_map = image.score_map
    if score_map is None:
        score_map = (label_map > 0).astype(np.float32)
    return label_map_to_regions(Segmentation(label_map, score_map, vocabulary), tolerance=tolerance)


def export_coco(
    path: str | os.PathLike[str],
    images: Iterable[AnnotatedImage],
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    *,
    geometry: Geometry = "polygon",
    tolerance: str | float = "default",
) -> None:
    """Write a COCO file, in place of one that is there.

    Args:
        path: the file; its folder must exist.
        images: one by one, so that memory does not grow with their number.
        vocabulary: gives the categories.
        settings: how the labels were made, for the file's ``info``.
        geometry: ``"rle"`` keeps every pixel; others see `tcl_core.export.coco.geometry`.
        tolerance: of polygons, see `tcl_core.polygons.tolerance_in_pixels`.

    Raises:
        CocoError: the folder is missing or cannot be written to, an unfinished run makes the same file, or two
            images have one name. A file that was there before stays then.
        SettingsError: a map does not fit the vocabulary.
    """
    out = Path(path)
    check_folder(out)

    def result(image: AnnotatedImage) -> ImageResult:
        size = (int(image.label_map.shape[0]), int(image.label_map.shape[1]))
        regions = regions_of(image, vocabulary, None if geometry == "rle" else tolerance)
        return ImageResult(image.file_name, *size, regions_to_annotations(regions, size, geometry))

    write_coco_file(out, map(result, images), vocabulary, {**settings, "geometry": geometry}, overwrite=True)


def check_folder(path: Path) -> None:
    """Refuse a file whose folder is missing or cannot be written to, or that is being made, before any work.

    Raises:
        CocoError: with what to do.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise CocoError(f"{path}: the folder {folder} does not exist; create it, or choose another")
    if path.is_dir():
        raise CocoError(f"{path}: is a folder; give a file name")
    if journal_path(path).exists():
        raise CocoError(f"{path}: an unfinished run of tcl-annotate writes this file; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise CocoError(f"{path}: cannot be written to; change its permissions, or choose another folder")


def to_positions(label_map: NDArray[Any], ids: Sequence[int], names: Sequence[str]) -> NDArray[np.int32]:
    """From label ids to places in a vocabulary.

    Args:
        label_map: ids, 0 for nothing.
        ids: of the vocabulary's labels, in its order.
        names: of the vocabulary's labels, for the message.

    Returns:
        int32 of the same shape: 0 for nothing, k for the k-th label counted from 1.

    Raises:
        CocoError: there are ids that no label has.

    Examples:
        >>> to_positions(np.array([[0, 7, 3]]), [3, 7], ["cat", "dog"]).tolist()
        [[0, 2, 1]]
    """
    if label_map.size == 0:
        return label_map.astype(np.int32)
    table = np.full(max([int(label_map.max()), *ids, 0]) + 1, -1, dtype=np.int32)
    if int(label_map.min()) < 0:
        raise CocoError(f"a label map contains {int(label_map.min())}; labels start at 1")
    table[0] = 0
    table[list(ids)] = np.arange(1, len(ids) + 1)
    positions = table[label_map]
    if (positions < 0).any():
        stray = int(label_map[positions < 0].min())
        known = ", ".join(f"{number} {name}" for number, name in zip(ids, names, strict=True))
        raise CocoError(f"label {stray} has no name; paint over it, or use one of {known}")
    return np.asarray(positions)


def vocabulary_of_names(names: Iterable[str]) -> Vocabulary:
    """Labels that have only names, such as those of another plugin's layer.

    Raises:
        VocabularyError: a name is empty, there twice, or not a text.
    """
    return Vocabulary(tuple(Label(name[:_MAX_NAME]) for name in names))
