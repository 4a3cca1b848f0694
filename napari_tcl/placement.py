"""Where the layers of results lie: exactly on the image's layer, whatever its axes and transforms are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from napari.layers.base import Layer
from napari.utils.transforms import Affine
from numpy.typing import NDArray

from napari_tcl.slices import Index, SliceReader
from tcl_core.errors import ImageError

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["PLACEMENT", "Frame", "check_shown_plane", "current_index", "frame_of", "lies_on", "place", "placement"]

PLACEMENT = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
"""Attributes of a layer that say where its pixels lie; each has an event of the same name."""


@dataclass(frozen=True)
class Frame:
    """The axes of an image's labels.

    Labels have all axes of the image's layer, so that each slider of the viewer means the same for both. The channels
    share one label map, so their axis has length 1 and is stretched over all of them.

    Attributes:
        shape: of the labels.
        stack_axes: what slices count along.
        plane_axes: rows and columns.
        channel_axis: or ``None``.
        channels: length of the image's channel axis.
    """

    shape: tuple[int, ...]
    stack_axes: tuple[int, ...]
    plane_axes: tuple[int, int]
    channel_axis: int | None = None
    channels: int = 1

    def view(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Labels as ``[..., H, W]``: a view of the same memory without the channels' axis."""
        return labels if self.channel_axis is None else np.squeeze(labels, axis=self.channel_axis)

    def unview(self, labels: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `view`."""
        return labels if self.channel_axis is None else np.expand_dims(labels, axis=self.channel_axis)

    def place_of(self, index: Index) -> NDArray[np.float64]:
        """Where a slice begins, in coordinates of the image's data."""
        place = np.zeros(len(self.shape))
        place[list(self.stack_axes)] = index
        return place


def frame_of(layer: Image, reader: SliceReader) -> Frame:
    """The axes of the labels of an image layer.

    Args:
        layer: the image.
        reader: of its slices; its array may have a first axis more, for channels of several layers.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    shape = [int(length) for length in data.shape[: layer.ndim]]
    joined = len(reader.data.shape) - reader.rgb > layer.ndim
    axis = None if joined else reader.channel_axis
    channels = 1 if axis is None else shape[axis]
    if axis is not None:
        shape[axis] = 1
    spatial = [number for number in range(layer.ndim) if number != axis]
    return Frame(tuple(shape), tuple(spatial[:-2]), (spatial[-2], spatial[-1]), axis, channels)


def placement(image: Layer, frame: Frame, index: Index | None = None) -> dict[str, Any]:
    """Arguments with which a layer of a frame's axes lies on an image layer.

    Args:
        image: the image's layer.
        frame: of its labels.
        index: for a layer that shows one slice alone and whose other axes have length 1.
    """
    factors = np.ones(image.ndim)
    offset = np.zeros(image.ndim) if index is None else frame.place_of(index)
    if frame.channel_axis is not None:
        factors[frame.channel_axis] = frame.channels
        # The middle of all channels.
        offset[frame.channel_axis] = (frame.channels - 1) / 2
    to_physical = Affine(scale=image.scale, translate=image.translate, rotate=image.rotate, shear=image.shear)
    return {
        "scale": np.asarray(image.scale) * factors,
        "translate": np.asarray(to_physical(offset)),
        "rotate": image.rotate,
        "shear": image.shear,
        "affine": image.affine,
        "units": image.units,
        "axis_labels": image.axis_labels,
    }


def place(layer: Layer, arguments: dict[str, Any]) -> None:
    """Move a layer to where `placement` says."""
    for name in PLACEMENT:
        if not _same(getattr(layer, name), arguments[name]):
            setattr(layer, name, arguments[name])


def lies_on(layer: Image, other: Image) -> bool:
    """Whether two gray layers have the same pixels, place by place."""
    if layer.rgb or other.rgb or layer.multiscale != other.multiscale or layer.ndim != other.ndim:
        return False
    one, two = ((each.data[0] if each.multiscale else each.data) for each in (layer, other))
    return tuple(one.shape) == tuple(two.shape) and all(
        _same(getattr(layer, name), getattr(other, name)) for name in PLACEMENT[:-1]
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Affine):
        one, other = one.affine_matrix, other.affine_matrix
    return np.shape(one) == np.shape(other) and bool(np.all(np.asarray(one) == np.asarray(other)))


def current_index(viewer: ViewerModel, layer: Image, frame: Frame) -> Index:
    """The slice of a layer that the viewer's sliders show."""
    data = layer.data[0] if layer.multiscale else layer.data
    point = np.asarray(viewer.dims.point)[-layer.ndim :]
    place = np.round(np.asarray(layer.world_to_data(point)[-layer.ndim :])).astype(int)
    return tuple(int(np.clip(place[axis], 0, data.shape[axis] - 1)) for axis in frame.stack_axes)


def check_shown_plane(viewer: ViewerModel, layer: Image, frame: Frame) -> None:
    """Refuse to work on "the slice that is shown" where the viewer shows something else.

    Raises:
        ImageError: the viewer shows other axes than the rows and columns that are segmented, or a volume.
    """
    shown = [axis - (viewer.dims.ndim - layer.ndim) for axis in viewer.dims.displayed]
    if set(shown) == set(frame.plane_axes):
        return
    if len(shown) > 2:
        raise ImageError(
            f"the viewer shows {layer.name!r} in 3D, so no single slice is shown; switch to 2D (Ctrl+Y), or segment "
            "all slices"
        )
    before = viewer.dims.ndim - layer.ndim
    wanted = f"axes {frame.plane_axes[0] + before} and {frame.plane_axes[1] + before}"
    now = " and ".join(str(axis) for axis in viewer.dims.displayed)
    raise ImageError(
        f"the viewer shows axes {now} of {layer.name!r}, but its slices lie in {wanted}; roll the axes (Ctrl+E) until "
        "these are shown"
    )
