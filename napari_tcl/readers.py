"""napari reader: a COCO file becomes labels layers, on which the work on its images goes on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_tcl.metadata import FILE_NAMES, METADATA_KEY
from napari_tcl.slices import Index
from tcl_core.errors import CocoError, ExportError
from tcl_core.export.convert import segmentation_mask
from tcl_core.export.sources import CocoSource
from tcl_core.images import DEFAULT_MAX_PIXELS
from tcl_core.vocabulary import default_colors

__all__ = ["get_reader", "read_coco"]

LayerData = tuple[Any, dict[str, Any], str]

_LOOKED_AT = 1 << 20
_IN_STACK = re.compile(r"(?P<stem>.+?)-(?P<index>\d{4,}(?:-\d{4,})*)$")
_MAX_LAYERS = 20
_FEW_SLICES = 1000
_MOST_EMPTY = 20  # slices for each that is in the file, where a stack has more than a few
_MAX_PIXELS = 1 << 33  # of a stack


def get_reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """Say how a file is read if it is a COCO file, as napari asks of a reader.

    Args:
        path: of a file; several are left to others.
    """
    if not isinstance(path, str) or not Path(path).is_file():
        return None
    try:
        with open(path, encoding="utf-8") as file:
            head = file.read(_LOOKED_AT)
    except (OSError, UnicodeDecodeError):
        return None
    keys = ('"images"', '"annotations"', '"categories"')
    if len(head) == _LOOKED_AT:
        # Large files are not read twice; what stands first is enough.
        return read_coco if any(key in head for key in keys) else None
    try:
        data = json.loads(head)
    except ValueError:
        return None
    return read_coco if isinstance(data, dict) and {"images", "annotations", "categories"} <= data.keys() else None


def read_coco(path: str) -> list[LayerData]:
    """Labels layers of a COCO file.

    Slices of a stack, which the exporter names ``stack-0003.png``, become one layer, unless the numbers are such as no
    stack has (``photo-20231105.jpg``). Where annotations overlap, the smaller one is on top. Ids are the places of the
    categories, counted from 1.

    Args:
        path: of the file.

    Returns:
        Data, attributes and type of each layer, as napari wants them.

    Raises:
        CocoError: the file cannot be read, a segmentation cannot be drawn, or there are too many images.
    """
    source = CocoSource(Path(path), None)
    names = source.vocabulary.names
    colors = [color for color, _ in zip(default_colors(), names, strict=False)]
    stacks = _stacks(source)
    if len(stacks) > _MAX_LAYERS:
        raise CocoError(
            f"{path}: has {len(stacks)} images, but only {_MAX_LAYERS} can be opened at once; split the file"
        )
    layers = []
    for stem, places in stacks.items():
        data, files = _labels(path, source, places)
        own = {
            "role": "draft",
            "image": stem if () in places else PurePosixPath(stem).name,
            "names": dict(enumerate(names, start=1)),
            "colors": dict(enumerate(colors, start=1)),
            FILE_NAMES: files,
        }
        features = {"index": [0, *range(1, len(names) + 1)], "label": ["", *names]}
        name = PurePosixPath(stem).stem if () in places else PurePosixPath(stem).name
        attributes = {"name": f"{name} labels", "metadata": {METADATA_KEY: own}, "features": features}
        layers.append((data, attributes, "labels"))
    if source.left_out:
        from napari.utils.notifications import show_warning

        parts = ", ".join(f"{number} {reason}" for reason, number in source.left_out.items())
        show_warning(f"{path}: some annotations were left out: {parts}")
    return layers


def _stacks(source: CocoSource) -> dict[str, dict[Index, int]]:
    """Images that belong together, by name: the number in the file of each slice."""
    together: dict[tuple[str, str, int, tuple[int, int]], dict[Index, int]] = {}
    alone: list[int] = []
    for number, name in enumerate(source.names):
        path = PurePosixPath(name)
        match = _IN_STACK.match(path.stem)
        index = tuple(map(int, match["index"].split("-"))) if match else ()
        # Images of several folders may be numbered alike.
        key = str(path.with_name(match["stem"])) if match else "", path.suffix, len(index), source.size(number)
        if not match or index in together.setdefault(key, {}):
            alone.append(number)
        else:
            together[key][index] = number
    stacks: dict[str, dict[Index, int]] = {}
    for (stem, *_), places in together.items():
        if stem in stacks or not _are_slices(places):
            alone += places.values()
        else:
            stacks[stem] = places
    for number in alone:
        # A name that is there twice, or is that of a stack, still is an image of its own.
        name = source.names[number]
        while name in stacks:
            name += "'"
        stacks[name] = {(): number}
    order = {name: min(places.values()) for name, places in stacks.items()}
    return {name: stacks[name] for name in sorted(stacks, key=order.__getitem__)}


def _are_slices(places: Collection[Index]) -> bool:
    """Whether numbers in names can be places in a stack: those of years, dates or cameras leave nearly all empty."""
    slices = math.prod(max(axis) + 1 for axis in zip(*places, strict=True))
    return slices <= max(_FEW_SLICES, _MOST_EMPTY * len(places))


def _labels(path: str, source: CocoSource, places: dict[Index, int]) -> tuple[NDArray[np.uint16], dict[Index, str]]:
    size = source.size(next(iter(places.values())))
    shape = tuple(max(axis) + 1 for axis in zip(*places, strict=True))
    pixels = math.prod((*shape, *size))
    if size[0] * size[1] > DEFAULT_MAX_PIXELS or pixels > _MAX_PIXELS:
        raise CocoError(
            f"{path}: the labels of {source.names[next(iter(places.values()))]} have {pixels:,} pixels, too many"
        )
    data = np.zeros((*shape, *size), np.uint16)
    for index, number in places.items():
        data[index] = _label_map(path, source, number)
    return data, {index: source.names[number] for index, number in places.items()}


def _label_map(path: str, source: CocoSource, number: int) -> NDArray[np.uint16]:
    try:
        image = source.image(number)
        annotations: Sequence[Any] = image.annotations or ()
        size = (image.height, image.width)
        drawn = [(one["category_id"], segmentation_mask(one["segmentation"], size)) for one in annotations]
    except ExportError as error:
        raise CocoError(f"{path}: {source.names[number]}: {error}") from error
    label_map = np.zeros(size, np.uint16)
    for category, mask in sorted(drawn, key=lambda pair: -int(pair[1].sum())):
        label_map[mask] = category
    return label_map
