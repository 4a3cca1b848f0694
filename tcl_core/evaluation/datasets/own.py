"""Your own data: a COCO file, or masks with numbers, beside a folder of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import CocoError, DataSetError, ExportError
from tcl_core.evaluation.datasets.base import IGNORED, ClassList, DataSet
from tcl_core.export.convert import segmentation_mask
from tcl_core.export.semantic_png import IGNORED as IGNORED_VALUE
from tcl_core.export.sources import CocoSource, MaskSource
from tcl_core.images import SUPPORTED_EXTENSIONS, image_size, load_image
from tcl_core.vocabulary import Vocabulary

__all__ = ["CocoDataSet", "FolderDataSet", "MaskDataSet"]


class FolderDataSet(DataSet):
    """Images in a folder, and where each is.

    Args:
        name: of the data, fit for a folder's name.
        folder: of the images.
        classes: what competes.
        names: of the images, relative to the folder; without their ending where that is unknown.
    """

    split = "own"

    def __init__(self, name: str, folder: Path, classes: ClassList, names: list[str]) -> None:
        self.name, self.classes = name, classes
        self.images = tuple(names)
        if not names:
            raise DataSetError(f"{name}: holds no image; give annotations of at least one")
        if len(set(names)) < len(names):
            twice = next(each for each in names if names.count(each) > 1)
            raise DataSetError(f"{name}: the image {twice} is there twice; remove one of the two")
        self._paths = [self._find(folder, each) for each in names]
        self.about: dict[str, Any] = {}

    def _find(self, folder: Path, name: str) -> Path:
        path = folder / name
        if path.suffix.lower() in SUPPORTED_EXTENSIONS and path.is_file():
            return path
        for ending in SUPPORTED_EXTENSIONS:
            for other in (path.with_suffix(ending), path.with_suffix(ending.upper())):
                if other.is_file():
                    return other
        raise DataSetError(f"{path}: this image of {self.name} is missing; is --images {folder} its folder?")

    def check_size(self, index: int, found: tuple[int, ...], where: object) -> None:
        """Compare the size that annotations were made for with the image's.

        Args:
            index: of the image.
            found: height and width.
            where: begins the message.

        Raises:
            DataSetError: they differ.
            ImageError: the image's header cannot be read.
        """
        size = image_size(self._paths[index])
        if tuple(found) != tuple(size):
            raise DataSetError(
                f"{where}: has {found[1]}x{found[0]} pixels for {self.images[index]}, but that image has "
                f"{size[1]}x{size[0]}; annotate the image as it is"
            )

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, from its header."""
        return image_size(self._paths[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `DataSet.image`."""
        return load_image(self._paths[index])


class CocoDataSet(FolderDataSet):
    """A COCO file of instances, as label maps.

    Where annotations overlap, the smaller one lies on top. What a crowd covers (``iscrowd``), and nothing else, does
    not count. Pixels without an annotation are background, or do not count where there is none.

    Args:
        path: the file.
        images: folder of its images.
        vocabulary: labels to evaluate, found by the categories' names; ``None`` takes all categories.

    Raises:
        DataSetError: it cannot be read, or lacks an image or a label.
    """

    def __init__(self, path: Path, images: Path, vocabulary: Vocabulary | None) -> None:
        try:
            self._source = CocoSource(path, vocabulary)
        except CocoError as error:
            raise DataSetError(str(error)) from error
        self._path = path
        missing = self._source.missing_labels
        if missing:
            raise DataSetError(
                f"{path}: has no category {missing[0]!r}, which the labels have; rename or remove that label"
            )
        super().__init__(path.stem, images, ClassList.of(self._source.vocabulary), self._source.names)

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
                f"{self._path}: {faults[0]}{more} of {self.images[index]}; tcl-annotate validate-coco says more"
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
        # Crowds below everything, then large before small.
        for one, mask in sorted(drawn, key=lambda pair: (not pair[0].get("iscrowd"), -int(pair[1].sum()))):
            truth[mask] = IGNORED if one.get("iscrowd") else one["category_id"] - 1 + first
        return truth


class MaskDataSet(FolderDataSet):
    """A folder of PNG masks whose pixels are numbers of labels; see `tcl_core.export.sources.MaskSource`.

    0 is background, or does not count where there is none; 255 of 8-bit masks does not count. Other numbers that no
    label has are refused.

    Args:
        folder: of the masks.
        images: folder of images with the same names, of any ending.
        vocabulary: the labels with their numbers.

    Raises:
        DataSetError: there is no mask, or an image is missing.
    """

    def __init__(self, folder: Path, images: Path, vocabulary: Vocabulary) -> None:
        try:
            self._source = MaskSource(folder, vocabulary)
        except ExportError as error:
            raise DataSetError(str(error)) from error
        super().__init__(folder.resolve().name, images, ClassList.of(vocabulary), self._source.names)

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
                f"{self._source.path(index)}: holds the value {stray[0]}, which no label has; give the label that is "
                f"meant 'value: {stray[0]}' in the label file, or paint what shall not count with {IGNORED_VALUE}"
            )
        truth = self.classes.from_label_map(label_map)
        if values.dtype == np.uint8:
            truth[values == IGNORED_VALUE] = IGNORED
        return truth
