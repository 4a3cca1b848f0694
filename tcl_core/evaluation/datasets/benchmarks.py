"""The eight benchmarks of open-vocabulary segmentation, read from their released files.

Class lists, folder layouts and id tables are data files in ``tables``, each with its sources. Labels that were
converted by mmsegmentation's scripts (train ids of COCO and Cityscapes, masks of PASCAL Context) are used if they
exist; otherwise the released labels are converted while they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.errors import DataSetError
from tcl_core.evaluation.datasets.base import IGNORED, ClassList, DataSet, VerbatimLabel, label_header, read_label
from tcl_core.images import image_size, load_image
from tcl_core.vocabulary import Vocabulary

__all__ = ["BENCHMARKS", "Benchmark", "class_list", "open_benchmark"]

BENCHMARKS = ("voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k")
"""Names of the benchmarks, in the order of the papers' tables."""

_IGNORED_VALUE = 255
_INVALID = -2


@cache
def _table(name: str) -> Mapping[str, Any]:
    file = files("tcl_core.evaluation.datasets") / "tables" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _LabelKind:
    """One form in which a benchmark's labels are stored."""

    folder: str
    suffix: str
    values: str


def class_list(name: str, names: str | Path = "raw") -> ClassList:
    """The classes of a benchmark.

    Args:
        name: of the benchmark.
        names: ``"raw"`` uses the class names verbatim as prompts, as TCL does; ``"synonyms"`` uses the names of NACLIP
            and SCLIP; a file gives one row of comma-separated names for each class. If the benchmark has a background,
            the first row lists the names that compete as background; the single word ``background`` means none.

    Raises:
        DataSetError: the file cannot be read, or its number of rows is not the number of classes.

    Example:
        >>> classes = class_list("voc")
        >>> len(classes.names), classes.names[0], classes.vocabulary.labels[0].prompts
        (21, 'background', ('aeroplane',))
    """
    table = _table(name)
    classes = tuple(table["classes"])
    if names == "raw":
        rows = [[each] for each in classes]
    elif names == "synonyms":
        rows = _table("synonyms")["lists"][name]
    else:
        rows = _rows_of_file(Path(names), name, classes)
    competing: tuple[str, ...] | None = None
    if table["background"]:
        first, *rows = rows
        competing = () if first == ["background"] else tuple(first)
    labels = tuple(
        VerbatimLabel(each, tuple(row)) for each, row in zip(classes[len(classes) - len(rows) :], rows, strict=True)
    )
    vocabulary = Vocabulary(labels, background=bool(table["background"]), background_names=competing)
    return ClassList(classes, vocabulary)


def _rows_of_file(path: Path, name: str, classes: Sequence[str]) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataSetError(f"--names {path}: cannot be read ({reason}); use raw, synonyms or a text file") from error
    while lines and not lines[-1].strip():
        lines.pop()
    rows = [list(dict.fromkeys(each.strip() for each in line.split(",") if each.strip())) for line in lines]
    if len(rows) != len(classes):
        raise DataSetError(
            f"--names {path}: has {len(rows)} rows, but {name} has {len(classes)} classes, from {classes[0]!r} to "
            f"{classes[-1]!r}; write one row per class, in this order"
        )
    for number, row in enumerate(rows, start=1):
        if not row:
            raise DataSetError(
                f"--names {path}: row {number}, of {classes[number - 1]!r}, is empty; write at least one name"
            )
    return rows


def open_benchmark(name: str, data: Path, split: str = "val", names: str | Path = "raw") -> Benchmark:
    """A benchmark on disk.

    Args:
        name: one of `BENCHMARKS`.
        data: the folder with all data sets, or the data set's own.
        split: ``"val"``, or ``"train"``, on which the papers chose their settings.
        names: see `class_list`.

    Raises:
        DataSetError: a file is missing; the message says which, and where to get it.
    """
    if name not in BENCHMARKS:
        raise DataSetError(f"{name}: there is no such benchmark; use one of {', '.join(BENCHMARKS)}")
    return Benchmark(name, data, split, class_list(name, names))


class Benchmark(DataSet):
    """One of the eight; see `open_benchmark`."""

    def __init__(self, name: str, data: Path, split: str, classes: ClassList) -> None:
        table = _table(name)
        layout = table["layout"]
        if split not in ("val", "train"):
            raise DataSetError(f"--split {split}: {name} has the splits val and train")
        self.name, self.split, self.classes = name, split, classes
        self._get = table["get"]
        folder = layout.get("folders", {}).get(split, "")
        self._suffix = layout["image_suffix"]
        images = layout["images"].format(folder=folder)
        self._root = self._find_root(data, layout["roots"], images)
        self._images = self._root / images
        kinds = [_LabelKind(kind["folder"].format(folder=folder), kind["suffix"], kind["values"])
                 for kind in layout["labels"]]  # fmt: skip
        lists = layout.get("splits", {}).get(split)
        stems = self._from_folder() if lists is None else self._from_list([self._root / each for each in lists])
        self._kind = self._choose_kind(kinds, stems)
        self._table = _values(name, self._kind.values)
        self._label_paths = [self._root / self._kind.folder / f"{stem}{self._kind.suffix}" for stem in stems]
        self.images = tuple(f"{stem}{self._suffix}" for stem in stems)
        self._check_files()
        published = table["published_images"].get(split)
        self.about = {
            "title": table["title"],
            "labels": f"{self._kind.folder}/*{self._kind.suffix}",
            "published_images": published,
            "sources": table["sources"],
        }

    def _find_root(self, data: Path, roots: Sequence[str], images: str) -> Path:
        places = [data / root for root in roots] + [data]
        for place in places:
            if (place / images).is_dir():
                return place
        raise DataSetError(f"--data {data}: {self.name} is missing: there is no {roots[0]}/{images}; get {self._get}")

    def _from_folder(self) -> list[str]:
        found = sorted(path.relative_to(self._images).as_posix() for path in self._images.rglob(f"*{self._suffix}"))
        if not found:
            raise DataSetError(f"{self._images}: contains no *{self._suffix}; get {self._get}")
        return [path.removesuffix(self._suffix) for path in found]

    def _from_list(self, lists: Sequence[Path]) -> list[str]:
        path = next((path for path in lists if path.is_file()), None)
        if path is None:
            raise DataSetError(
                f"{lists[0]}: the image list of the {self.split} split of {self.name} is missing; get {self._get}"
            )
        try:
            stems = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise DataSetError(f"{path}: cannot be read ({reason}); restore the original file") from error
        if not stems:
            raise DataSetError(f"{path}: the image list is empty; get {self._get}")
        if wrong := [stem for stem in stems if len(stem.split()) > 1]:
            raise DataSetError(f"{path}: {wrong[0]!r} is not the name of an image; use a list with one name per line")
        if len(set(stems)) < len(stems):
            raise DataSetError(f"{path}: lists an image twice; restore the original file")
        return stems

    def _choose_kind(self, kinds: Sequence[_LabelKind], stems: Sequence[str]) -> _LabelKind:
        """Converted labels if the first image has them, otherwise the released ones."""
        for kind in kinds:
            if (self._root / kind.folder / f"{stems[0]}{kind.suffix}").is_file():
                return kind
        raw = kinds[-1]
        raise DataSetError(
            f"{self._root / raw.folder / (stems[0] + raw.suffix)}: the labels of {self.name} are missing; get "
            f"{self._get}"
        )

    def _check_files(self) -> None:
        paths = [self._images / name for name in self.images]
        for what, wanted in (("image", paths), ("label file", self._label_paths)):
            missing = [path for path in wanted if not path.is_file()]
            if missing:
                more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
                raise DataSetError(f"{missing[0]}: this {what}{more} of {self.name} is missing; get {self._get}")

    def check(self, index: int) -> None:
        """See `DataSet.check`."""
        path = self._images / self.images[index]
        size = image_size(path)
        if self._kind.suffix != ".mat":
            self._check_size(index, label_header(self._label_paths[index]), size)
        self._check_size(index, self.truth(index).shape, size)

    def _check_size(self, index: int, found: tuple[int, ...], size: tuple[int, int]) -> None:
        if tuple(found) != tuple(size):
            raise DataSetError(
                f"{self._label_paths[index]}: is {found[1]}x{found[0]} pixels, but its image {self.images[index]} is "
                f"{size[1]}x{size[0]}; restore the original files"
            )

    def image(self, index: int) -> NDArray[np.uint8]:
        """See `DataSet.image`."""
        return load_image(self._images / self.images[index])

    def truth(self, index: int) -> NDArray[np.int16]:
        """See `DataSet.truth`."""
        path = self._label_paths[index]
        values = _read_mat(path) if path.suffix == ".mat" else read_label(path)
        highest = int(values.max(initial=0))
        if values.min(initial=0) >= 0 and highest < len(self._table):
            classes = self._table[values]
            if (classes != _INVALID).all():
                return classes
            highest = int(values[classes == _INVALID].flat[0])
        raise DataSetError(
            f"{path}: contains the value {highest}, which is not a class of {self.name}; use the label files of this "
            "data set, converted for it or as released"
        )


@cache
def _values(name: str, kind: str) -> NDArray[np.int16]:
    """The class of each value of a label file, int16 ``[N]``; `IGNORED` or `_INVALID` for values without a class."""
    table = _table(name)
    count = len(table["classes"])
    # From the values of mmsegmentation's files to classes.
    own = np.full(256, _INVALID, np.int16)
    own[_IGNORED_VALUE] = IGNORED
    if table["zero_is_ignored"]:
        own[0] = IGNORED
        own[1 : count + 1] = np.arange(count)
    else:
        own[:count] = np.arange(count)
    if kind == "own":
        return own
    ids = _table(f"ids_{kind}")
    numbers = {int(number): value for number, value in ids["table"].items()}
    if "otherwise" in ids:
        numbers = {number: numbers.get(number, ids["otherwise"]) for number in range(ids["highest"] + 1)}
    found = np.full(max(numbers) + 1, _INVALID, np.int16)
    for number, value in numbers.items():
        found[number] = own[value]
    return found


def _read_mat(path: Path) -> NDArray[np.integer[Any]]:
    """``LabelMap`` of a file of PASCAL-Context's release."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(path)["LabelMap"])
    except FileNotFoundError:
        raise DataSetError(f"{path}: this label file is missing; restore it") from None
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataSetError(f"{path}: contains no LabelMap ({error}); restore the original file") from error
