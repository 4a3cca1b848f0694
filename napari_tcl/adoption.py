"""Finds labels layers that an earlier day, or an earlier dock, left in the viewer, so that work can go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels

from napari_tcl.annotation import Annotation, MapName
from napari_tcl.layers import image_name
from napari_tcl.metadata import ANNOTATION, FILE_NAMES, METADATA_KEY, Link
from napari_tcl.placement import Frame
from napari_tcl.results import SUFFIXES, layer_name

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["Found", "KnownLabel", "find_layers", "fit", "known_labels"]

_COPY = re.compile(r" \[\d+\]$")


@dataclass(frozen=True)
class KnownLabel:
    """What a layer says about one of its labels."""

    name: str
    prompts: str = ""
    color: tuple[int, int, int] | None = None


@dataclass
class Found:
    """Layers that can hold an image's results.

    Attributes:
        layers: by what they hold.
        annotation: what is known of their pixels, if the window has been open all the time.
        ours: whether they say themselves that they belong to the image; otherwise they are only called so.
    """

    layers: dict[MapName, Labels] = field(default_factory=dict)
    annotation: Annotation | None = None
    ours: bool = False


def find_layers(viewer: ViewerModel, image: Image, frame: Frame, taken: Iterable[object] = ()) -> Found:
    """Labels layers of an image.

    Args:
        viewer: with the layers.
        image: the image's layer.
        frame: of its labels.
        taken: layers that belong to results already.
    """
    found = Found()
    claimed = list(taken)
    for layer in viewer.layers:
        if not isinstance(layer, Labels) or layer.multiscale or any(layer is each for each in claimed):
            continue
        own = layer.metadata.get(METADATA_KEY) or {}
        role = _role(layer, own, image, frame)
        if role is None or role in found.layers or fit(np.asarray(layer.data), frame) is None:
            continue
        found.layers[role] = layer
        found.ours = found.ours or bool(own)
        link = own.get(ANNOTATION)
        note = link.target if isinstance(link, Link) else None
        if isinstance(note, Annotation) and np.shares_memory(getattr(note, role), np.asarray(layer.data)):
            found.annotation = note
    if found.annotation is not None and not _is_whole(found):
        found.annotation = None
    return found


def _is_whole(found: Found) -> bool:
    """Whether the layers are just those that the annotation knows."""
    note = found.annotation
    return all(np.shares_memory(getattr(note, role), np.asarray(layer.data)) for role, layer in found.layers.items())


def _role(layer: Labels, own: Mapping[str, Any], image: Image, frame: Frame) -> MapName | None:
    if own:
        files = set((own.get(FILE_NAMES) or {}).values())
        belongs = own.get("image") == image.name or bool(files & set(_file_names(image, frame)))
        role = own.get("role")
        return role if belongs and role in SUFFIXES else None
    plain = _COPY.sub("", layer.name)
    return next((role for role in SUFFIXES if plain == layer_name(image, role)), None)


def _file_names(image: Image, frame: Frame) -> list[str]:
    stack = [frame.shape[axis] for axis in frame.stack_axes]
    return [image_name(image, tuple(index)) for index in np.ndindex(*stack)]


def fit(data: np.ndarray[Any, Any], frame: Frame) -> np.ndarray[Any, Any] | None:
    """Labels in the shape of a frame: an axis of channels is added, and slices after the last labeled one.

    Returns:
        ``None`` where they do not fit.
    """
    shape = frame.view(np.empty(frame.shape, np.bool_)).shape
    if data.shape == frame.shape:
        return data
    if data.ndim == len(shape) and data.shape[-2:] == shape[-2:] and all(np.less_equal(data.shape, shape)):
        whole = np.zeros(shape, data.dtype)
        whole[tuple(slice(length) for length in data.shape)] = data
        return frame.unview(whole)
    return None


def known_labels(layer: Labels) -> dict[int, KnownLabel]:
    """What a layer says about its labels, by id."""
    own = layer.metadata.get(METADATA_KEY) or {}
    prompts, colors = own.get("prompts") or {}, own.get("colors") or {}
    names = own.get("names") or {}
    if not isinstance(names, Mapping):
        return {}
    return {
        int(number): KnownLabel(str(name), str(prompts.get(number, "")), colors.get(number))
        for number, name in names.items()
    }
