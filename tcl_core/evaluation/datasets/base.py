"""The interface of a data set: classes, and images with their true label maps."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tcl_core.errors import DataSetError
from tcl_core.images import DEFAULT_MAX_PIXELS
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.colors import Color  # noqa: F401  (the reference looks up types of inherited fields here)

__all__ = ["IGNORED", "ClassList", "DataSet", "VerbatimLabel", "files_sha256", "label_header", "read_label"]

IGNORED = -1
"""Class of ignored pixels."""

_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class VerbatimLabel(Label):
    """A label whose prompts keep leading and trailing blanks.

    Published class lists contain such names (``"bed "`` in ADE20K), and with a template such as ``"{}s"`` the blank
    changes the text.

    >>> VerbatimLabel("bed", ("bed ",)).prompts
    ('bed ',)
    """

    def __post_init__(self) -> None:
        given = tuple(self.prompts)
        super().__post_init__()
        if given:
            object.__setattr__(self, "prompts", given)


@dataclass(frozen=True)
class ClassList:
    """The competing classes and their prompts.

    Attributes:
        names: of all K classes, in the order of their numbers; the first is the background, if there is one.
        vocabulary: labels of the classes without the background, in the same order.

    Raises:
        DataSetError: the number of names does not match the number of labels.
    """

    names: tuple[str, ...]
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        labels = len(self.vocabulary.labels)
        if len(self.names) != labels + self.has_background:
            raise DataSetError(f"{len(self.names)} classes do not match {labels} labels")

    @property
    def has_background(self) -> bool:
        """Whether class 0 is the background, which wins where no label does."""
        return self.vocabulary.background

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> ClassList:
        """The classes of a vocabulary, with the background first if it has one."""
        return cls(("background",) * vocabulary.background + vocabulary.names, vocabulary)

    def from_label_map(self, label_map: NDArray[np.integer]) -> NDArray[np.int16]:
        """Classes of a label map in which 0 is no label and k the k-th label: int16, -1 where there is no class."""
        return (label_map - (0 if self.has_background else 1)).astype(np.int16)


class DataSet(ABC):
    """Images with true label maps, by number.

    Attributes:
        name: short, usable as the name of a folder.
        split: which part of the data, likewise.
        classes: the competing classes.
        images: name of each image, unique, in the order of evaluation.
        about: anything else that a result should say about the data, as JSON values.
    """

    name: str
    split: str
    classes: ClassList
    images: Sequence[str]
    about: dict[str, Any]

    @abstractmethod
    def check(self, index: int) -> None:
        """Check the labels of an image, including their values, and the header of the image.

        Args:
            index: of the image, from 0.

        Raises:
            DataSetError: the labels cannot be read or do not fit the image or the classes.
            ImageError: the image's header cannot be read.
        """

    def check_image(self, index: int) -> None:
        """Decode an image once, so that a damaged file is found before the model runs.

        Args:
            index: of the image, from 0.

        Raises:
            ImageError: the file cannot be read.
        """
        self.image(index)

    @abstractmethod
    def image(self, index: int) -> NDArray[np.uint8]:
        """Pixels, uint8 ``[H, W, 3]`` RGB.

        Raises:
            ImageError: the file cannot be read.
        """

    @abstractmethod
    def truth(self, index: int) -> NDArray[np.int16]:
        """True classes, int16 ``[H, W]``: 0 to K - 1, or `IGNORED`.

        Raises:
            DataSetError: the file cannot be read, or contains something else.
        """

    def __len__(self) -> int:
        return len(self.images)


def label_header(path: Path) -> tuple[int, int]:
    """Height and width of a label image, from its header.

    Raises:
        DataSetError: it is missing, not an image, a color image, or above the pixel limit.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _ONE_CHANNEL:
                raise DataSetError(
                    f"{path}: is a color image ({image.mode}), but label files have one channel with class "
                    "numbers; use the label files of the data set, not a color visualization"
                )
            width, height = image.size
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if width * height > DEFAULT_MAX_PIXELS:
        raise DataSetError(f"{path}: has {width}x{height} pixels, more than the limit of {DEFAULT_MAX_PIXELS:,}")
    return height, width


def read_label(path: Path) -> NDArray[np.integer[Any]]:
    """Values of a label image, integers ``[H, W]``; the indices of a palette image.

    Raises:
        DataSetError: as for `label_header`, or its pixels cannot be decoded.
    """
    label_header(path)
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def files_sha256(paths: Iterable[Path]) -> str:
    """SHA-256 of the contents of several files, to notice changed annotations.

    Raises:
        DataSetError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                # Hashed one by one, because moving bytes from one file to the next is a change.
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataSetError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    return digest.hexdigest()


def _unreadable(path: Path, error: Exception) -> DataSetError:
    if isinstance(error, FileNotFoundError):
        return DataSetError(f"{path}: this label file is missing; restore it")
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"cannot be read ({error})"
    return DataSetError(f"{path}: {reason}; restore the original file")
