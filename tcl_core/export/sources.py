"""Annotations that people or other programs made, image by image: from a COCO file, or from a folder of masks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tcl_core.errors import CocoError, ExportError
from tcl_core.export.coco.rle import MOST_PIXELS, read_rle
from tcl_core.export.folder import INFO_FILE
from tcl_core.export.semantic_png import IGNORED, values_of
from tcl_core.images import DEFAULT_MAX_PIXELS
from tcl_core.polygons.rasterize import is_far_outside
from tcl_core.validation import is_finite_number
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.labels import name_key

__all__ = ["CocoSource", "MaskSource", "Source", "SourceImage", "open_source"]

_ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class SourceImage:
    """What is known about one image.

    Attributes:
        file_name: relative, with forward slashes.
        height: in pixels.
        width: in pixels.
        annotations: COCO annotations without ids, whose categories are places in the vocabulary from 1; ``None`` where
            there is a label map.
        label_map: int32 ``[H, W]``, 0 is nothing; ``None`` where there are annotations.
    """

    file_name: str
    height: int
    width: int
    annotations: Sequence[Mapping[str, Any]] | None = None
    label_map: NDArray[np.int32] | None = None


@dataclass
class Source:
    """Images with annotations.

    Attributes:
        vocabulary: the labels.
        names: file names of the images, in order.
        left_out: how often something was not taken over, by its reason; filled as images are read.
    """

    vocabulary: Vocabulary
    names: list[str]
    left_out: Counter[str] = field(default_factory=Counter)

    def image(self, index: int) -> SourceImage:
        """One image, counted from 0.

        Raises:
            ExportError: it cannot be read.
        """
        raise NotImplementedError

    def images(self) -> Iterator[SourceImage]:
        """The images, read one by one, in the order of `names`.

        Raises:
            ExportError: one cannot be read; nothing after it is.
        """
        return map(self.image, range(len(self.names)))


class CocoSource(Source):
    """A COCO file.

    Args:
        path: the file.
        vocabulary: labels to take over, found by the categories' names; ``None`` takes all categories.

    Raises:
        CocoError: it cannot be read, or is no COCO file of instances.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary | None) -> None:
        self._path = path
        data = _read_json(path)
        try:
            categories = {int(category["id"]): str(category["name"]) for category in data["categories"]}
            self._entries = [
                (int(image["id"]), str(image["file_name"]), int(image["height"]), int(image["width"]))
                for image in data["images"]
            ]
            self._annotations: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
            for annotation in data["annotations"]:
                self._annotations[int(annotation["image_id"])].append(annotation)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else "a field has the wrong type"
            raise CocoError(
                f"{path} is not a COCO file with instances ({what}); for details, run tcl-annotate validate-coco"
            ) from None
        if vocabulary is None:
            vocabulary = Vocabulary(tuple(Label(categories[number]) for number in sorted(categories)))
        places = {name_key(name): place for place, name in enumerate(vocabulary.names, start=1)}
        self._place_of = {number: places.get(name_key(name)) for number, name in categories.items()}
        self._categories = categories
        known = {name_key(name) for name in categories.values()}
        self.missing_labels = [name for name in vocabulary.names if name_key(name) not in known]
        super().__init__(vocabulary, [entry[1] for entry in self._entries])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, as the file says.

        Raises:
            CocoError: no image has that size.
        """
        _, name, height, width = self._entries[index]
        if min(height, width) < 1 or height * width > MOST_PIXELS:
            why = " (too many pixels)" if min(height, width) > 0 else ""
            raise CocoError(
                f"{self._path}: the image {name} has a size of {width}x{height}{why}; correct its width and height"
            )
        return height, width

    def faults(self, index: int) -> list[str]:
        """What is wrong with the annotations of an image, with their ids; those of other labels may be anything."""
        size = self.size(index)
        found = []
        for one in self._annotations.get(self._entries[index][0], []):
            category = one.get("category_id")
            if not isinstance(category, int) or category not in self._categories:
                found.append(f"annotation {one.get('id')} has the unknown category {category!r}")
            elif self._place(one) is not None and (fault := _fault(one.get("segmentation"), size)):
                found.append(f"annotation {one.get('id')} is {fault}")
        return found

    @property
    def is_empty(self) -> bool:
        """Whether no annotation has one of the labels."""
        return all(self._place(one) is None for some in self._annotations.values() for one in some)

    def image(self, index: int) -> SourceImage:
        """An image of the file, in its order."""
        number, name, _, _ = self._entries[index]
        size = self.size(index)
        kept = [self._taken_over(one, size) for one in self._annotations.get(number, [])]
        return SourceImage(name, *size, [one for one in kept if one is not None])

    def _place(self, annotation: Mapping[str, Any]) -> int | None:
        category = annotation.get("category_id")
        return self._place_of.get(category) if isinstance(category, int) else None

    def _taken_over(self, annotation: Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any] | None:
        category, place = annotation.get("category_id"), self._place(annotation)
        if place is None:
            name = self._categories.get(category, category) if isinstance(category, int) else category
            self.left_out[f"with category {name!r}, which is not among the labels"] += 1
            return None
        fault = _fault(annotation.get("segmentation"), size)
        if fault is not None:
            self.left_out[fault] += 1
            return None
        plain = {key: value for key, value in annotation.items() if key not in ("id", "image_id")}
        return {**plain, "category_id": place}


def _fault(segmentation: object, size: tuple[int, int]) -> str | None:
    """Why a segmentation cannot be drawn."""
    if isinstance(segmentation, Mapping):
        try:
            return None if read_rle(segmentation, size).area else "without a pixel"
        except ValueError as error:
            return f"with RLE that cannot be read ({error})"
    if not isinstance(segmentation, list) or not segmentation:
        return "without a segmentation"
    for ring in segmentation:
        if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
            return "with a ring of fewer than three points"
        if not all(map(is_finite_number, ring)):
            return "with a coordinate that is not a number"
        if is_far_outside(ring, size):
            return "with a ring far outside its image"
    return None


class MaskSource(Source):
    """A folder, with its sub-folders, of PNG masks whose pixels are numbers of labels.

    A number is the label's ``value`` in the label file, or else its place there counted from 1. 0, numbers that no
    label has and, with 8 bits, 255 are nothing; 255 is a label only if the label file gives a label ``value: 255``.

    Args:
        folder: of the masks, or one that the exporter ``semantic-png`` wrote.
        vocabulary: the labels.

    Raises:
        ExportError: there is no mask.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        self._root, known = folder, {}
        if (folder / INFO_FILE).is_file() and (folder / "masks").is_dir():
            known = _read_json(folder / INFO_FILE).get("images", {})
            self._root = folder / "masks"
        paths = [path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if _is_mask(path)]
        # In the order of the folder's making where that is known.
        order = {name: place for place, name in enumerate(known)}
        self._paths = sorted(paths, key=lambda path: (order.get(f"masks/{path}", len(order)), path))
        if not self._paths:
            raise ExportError(f"{folder}: contains no PNG file; give a COCO file or a folder of masks")
        self._table = np.zeros(1 << 16, dtype=np.int32)
        self._table[values_of(vocabulary)] = np.arange(1, len(vocabulary.labels) + 1)
        self._ignores = all(label.value != IGNORED for label in vocabulary.labels)
        super().__init__(vocabulary, [known.get(f"masks/{path}", path) for path in self._paths])

    def path(self, index: int) -> Path:
        """The file of a mask."""
        return self._root / self._paths[index]

    def values(self, index: int) -> NDArray[Any]:
        """The numbers in a mask, uint8 or uint16 ``[H, W]``.

        Raises:
            ExportError: it cannot be read.
        """
        return _read_mask(self.path(index))

    def ignored(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Ignored pixels of a mask, bool ``[H, W]``: 255 in 8-bit masks, unless a label has that value."""
        return (values == IGNORED) & (self._ignores and values.dtype == np.uint8)

    def label_map(self, values: NDArray[Any]) -> tuple[NDArray[np.int32], list[int]]:
        """Labels of the numbers of a mask, int32 ``[H, W]``, 0 for nothing; and the numbers that no label has."""
        ignored = self.ignored(values)
        label_map = np.where(ignored, 0, self._table[values])
        stray = np.unique(values[(label_map == 0) & (values > 0) & ~ignored]).tolist()
        return label_map, stray

    def image(self, index: int) -> SourceImage:
        """A mask, in the order of their names."""
        values = self.values(index)
        label_map, stray = self.label_map(values)
        for value in stray:
            self.left_out[f"with pixels of value {value}, which no label has"] += 1
        height, width = values.shape
        return SourceImage(self.names[index], height, width, label_map=label_map)


def open_source(path: Path, vocabulary: Vocabulary | None) -> Source:
    """A COCO file or a folder of masks.

    Args:
        path: of either.
        vocabulary: the labels; ``None`` takes those of a COCO file.

    Raises:
        ExportError: it is neither, or masks come without a vocabulary.
    """
    if not path.exists():
        raise ExportError(f"{path}: no such file or folder; give a COCO file or a folder of masks")
    if path.is_file():
        return CocoSource(path, vocabulary)
    if vocabulary is None:
        raise ExportError(f"{path}: masks contain only numbers; use --labels FILE to define their labels")
    return MaskSource(path, vocabulary)


def _is_mask(path: Path) -> bool:
    return path.suffix.lower() == ".png" and not path.name.startswith(".") and path.is_file()


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CocoError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        raise CocoError(f"{path} is not a JSON file; give a COCO file or a folder of masks") from None
    if not isinstance(data, dict):
        raise CocoError(f"{path} does not contain a JSON object; give a COCO file or a folder of masks")
    return data


def _read_mask(path: Path) -> NDArray[Any]:
    """Pixels of a mask, uint8 or uint16 ``[H, W]``."""
    try:
        with Image.open(path) as mask:
            if mask.mode not in _ONE_CHANNEL:
                raise ExportError(f"{path} is a color image ({mask.mode}); a mask has one channel with label values")
            if mask.width * mask.height > DEFAULT_MAX_PIXELS:
                raise ExportError(f"{path} has {mask.width}x{mask.height} pixels, more than {DEFAULT_MAX_PIXELS:,}")
            values = np.asarray(mask)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ExportError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return values.astype(np.uint8 if values.dtype in (np.bool_, np.uint8) else np.uint16)
