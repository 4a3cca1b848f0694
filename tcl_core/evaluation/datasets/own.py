"""Your own data: a folder of images with a COCO file or with PNG masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import CocoError, DataSetError, ExportError
from tcl_core.evaluation.datasets.base import IGNORED, ClassList, DataSet, files_sha256
from tcl_core.export.convert import segmentation_mask
from tcl_core.export.semantic_png import IGNORED as IGNORED_VALUE
from tcl_core.export.sources import CocoSource, MaskSource
from tcl_core.images import SUPPORTED_EXTENSIONS, image_size, load_image
from tcl_core.vocabulary import Vocabulary

__all__ = ["CocoDataSet", "FolderDataSet", "MaskDataSet"]

_LOOKED_AT = 20
"""Masks that are searched for a label when a data set is opened."""


class FolderDataSet(DataSet):
    """Base class of data sets whose images are in a folder.

    Args:
        name: of the data, usable as the name of a folder.
        folder: of the images.
        classes: the competing classes.
        names: of the images, relative to the folder; their extension may differ from the file's.

    Raises:
        DataSetError: there is no image, one occurs twice, or one is missing.
    """

    split = "own"

    def __init__(self, name: str, folder: Path, classes: ClassList, names: list[str]) -> None:
        self.name, self.classes = name, classes
        self.images = tuple(names)
        if not names:
            raise DataSetError(f"{name}: contains no image; annotate at least one")
        if len(set(names)) < len(names):
            twice = next(each for each in names if names.count(each) > 1)
            raise DataSetError(f"{name}: the image {twice} occurs twice; remove one of the two")
        self._paths = [self._find(folder, each) for each in names]
        self.about: dict[str, Any] = {}

    def _find(self, folder: Path, name: str) -> Path:
        # Not Path.is_file, which raises for a name that no file can have.
        path = folder / name
        if path.suffix.lower() in SUPPORTED_EXTENSIONS and os.path.isfile(path):
            return path
        for ending in SUPPORTED_EXTENSIONS:
            for other in (path.with_suffix(ending), path.with_suffix(ending.upper())):
                if os.path.isfile(other):
                    return other
        raise DataSetError(f"{path}: this image of {self.name} is missing; is --images {folder} its folder?")

    def check_size(self, index: int, found: tuple[int, ...], where: object) -> None:
        """Compare the size of annotations with that of the image.

        Args:
            index: of the image.
            found: height and width of the annotations.
            where: start of the message.

        Raises:
            DataSetError: they differ.
            ImageError: the image's header cannot be read.
        """
        size = image_size(self._paths[index])
        if tuple(found) != tuple(size):
            raise DataSetError(
                f"{where}: the size of {self.images[index]} is {found[1]}x{found[0]} here, but that image is "
                f"{size[1]}x{size[0]}; use the images that were annotated, at their original size"
            )

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from its header."""
        return image_size(self._paths[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `DataSet.image`."""
        return load_image(self._paths[index])


class CocoDataSet(FolderDataSet):
    """A COCO file with instances, as label maps.

    Where annotations overlap, the smaller one is on top. Pixels that only a crowd (``iscrowd``) covers are ignored.
    Pixels without an annotation are background, or ignored if the vocabulary has no background.

    Args:
        path: the file.
        images: folder of its images.
        vocabulary: labels to evaluate, matched with the names of categories; ``None`` for all categories.

    Raises:
        DataSetError: the file cannot be read, or an image or a label is missing.
    """

    def __init__(self, path: Path, images: Path, vocabulary: Vocabulary | None) -> None:
        try:
            self._source = CocoSource(path, vocabulary)
        except CocoError as error:
            raise DataSetError(str(error)) from error
        self._path = path
        missing = self._source.missing_labels
        if missing:
            raise DataSetError(f"{path}: has no category for the label {missing[0]!r}; rename or remove that label")
        super().__init__(path.stem, images, ClassList.of(self._source.vocabulary), self._source.names)
        if self._source.is_empty:
            raise DataSetError(f"{path}: has no annotation with any of the labels; use a file of annotated images")
        self.about["annotations_sha256"] = files_sha256([path])

    def check(self, index: int) -> None:
        """See `DataSet.check`."""
        try:
            self.check_size(index, self._source.size(index), self._path)
            faults = self._source.faults(index)
        except CocoError as error:
            raise DataSetError(str(error)) from error
        if faults:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise DataSetError(
                f"{self._path}: {self.images[index]}: {faults[0]}{more}; for details, run tcl-annotate validate-coco"
            )

    def truth(self, index: int) -> NDArray[np.int16]:
        """See `DataSet.truth`."""
        image = self._source.image(index)
        first = int(self.classes.has_background)
        truth = np.full((image.height, image.width), 0 if first else IGNORED, np.int16)
        try:
            drawn = [(one, segmentation_mask(one["segmentation"], truth.shape)) for one in image.annotations or ()]
        except ExportError as error:
            raise DataSetError(f"{self._path}: {image.file_name}: {error}") from error
        # Crowds at the bottom, then large before small.
        for one, mask in sorted(drawn, key=lambda pair: (not pair[0].get("iscrowd"), -int(pair[1].sum()))):
            truth[mask] = IGNORED if one.get("iscrowd") else one["category_id"] - 1 + first
        return truth


class MaskDataSet(FolderDataSet):
    """A folder of PNG masks whose pixels are values of labels; see `tcl_core.export.sources.MaskSource`.

    0 is background, or ignored if the vocabulary has none. 255 in 8-bit masks is ignored, unless a label has that
    value. Other values without a label are errors.

    Args:
        folder: of the masks.
        images: folder of images with the same names, with any extension.
        vocabulary: the labels with their values.

    Raises:
        DataSetError: there is no mask, an image is missing, or 255 seems to mean a label.
    """

    def __init__(self, folder: Path, images: Path, vocabulary: Vocabulary) -> None:
        try:
            self._source = MaskSource(folder, vocabulary)
        except ExportError as error:
            raise DataSetError(str(error)) from error
        super().__init__(folder.resolve().name, images, ClassList.of(vocabulary), self._source.names)
        self.about["annotations_sha256"] = files_sha256(map(self._source.path, range(len(self._source.names))))
        self._look_for_binary_masks(folder)

    def _look_for_binary_masks(self, folder: Path) -> None:
        """Reject masks in which 255 is the label, as in black-and-white masks; ignoring it would leave nothing."""
        white, count = 0, min(_LOOKED_AT, len(self))
        for index in range(count):
            try:
                values = self._source.values(index)
            except ExportError:
                # Reported with its reason by `check`.
                return
            label_map, stray = self._source.label_map(values)
            if stray or label_map.any():
                return
            white += bool(self._source.ignored(values).any())
        if white:
            raise DataSetError(
                f"{folder}: the first {count} masks contain only 0 and {IGNORED_VALUE}, which means 'ignored'; if "
                f"{IGNORED_VALUE} is a label, give it 'value: {IGNORED_VALUE}' in the label file"
            )

    def check(self, index: int) -> None:
        """See `DataSet.check`."""
        self.check_size(index, self.truth(index).shape, self._source.path(index))

    def truth(self, index: int) -> NDArray[np.int16]:
        """See `DataSet.truth`."""
        try:
            values = self._source.values(index)
        except ExportError as error:
            raise DataSetError(str(error)) from error
        label_map, stray = self._source.label_map(values)
        if stray:
            raise DataSetError(
                f"{self._source.path(index)}: contains the value {stray[0]}, which no label has; give its label "
                f"'value: {stray[0]}' in the label file, or use {IGNORED_VALUE} for pixels to ignore"
            )
        truth = self.classes.from_label_map(label_map)
        truth[self._source.ignored(values)] = IGNORED
        return truth
