"""napari layers for results: labels with names and colors, score maps, polygons that can be edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Shapes
from napari.utils.colormaps import DirectLabelColormap
from numpy.typing import NDArray

from napari_tcl.metadata import METADATA_KEY
from napari_tcl.slices import Index, SliceReader
from tcl_core.errors import ImageError
from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.types import Region

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = [
    "ShownLabel",
    "add_labels_layer",
    "current_index",
    "image_name",
    "polygon_vertices",
    "reader_of",
    "show_polygons",
    "style_labels",
]

_CLEAR = (0.0, 0.0, 0.0, 0.0)
_PIXEL_CENTER = 0.5


@dataclass(frozen=True)
class ShownLabel:
    """How a label looks in the viewer.

    Attributes:
        id: its number in the label maps, from 1.
        name: what it is called.
        color: RGB, each 0 to 255.
        visible: whether it is drawn.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    visible: bool = True


def reader_of(layer: Image, channel_axis: int | None = None, channels: Sequence[int] = (0,)) -> SliceReader:
    """Read an image layer's slices as they are seen, with the layer's contrast limits.

    Of a layer with several resolutions the finest is taken.

    Raises:
        ImageError: the layer is removed, or cannot be read as images.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    if any(length == 0 for length in data.shape):
        raise ImageError(f"the layer {layer.name!r} has no pixels")
    limits = None if layer.rgb else (float(layer.contrast_limits[0]), float(layer.contrast_limits[1]))
    return SliceReader(data, bool(layer.rgb), channel_axis, tuple(channels), limits)


def current_index(viewer: ViewerModel, layer: Image, reader: SliceReader) -> Index:
    """The slice of a layer that the viewer's sliders show."""
    point = np.asarray(viewer.dims.point)[-layer.ndim :]
    place = np.round(np.asarray(layer.world_to_data(point)[-layer.ndim :])).astype(int)
    return tuple(
        int(np.clip(place[axis], 0, length - 1))
        for axis, length in zip(reader.stack_axes, reader.stack_shape, strict=True)
    )


def image_name(layer: Image, index: Index) -> str:
    """What a slice is called in a COCO file: the image's own file name, with the place in a stack."""
    source = getattr(layer.source, "path", None)
    path = Path(source) if source else Path(f"{layer.name}.png".replace("/", "-").replace("\\", "-"))
    if not index:
        return path.name
    return f"{path.stem}-{'-'.join(f'{number:04d}' for number in index)}{path.suffix or '.png'}"


def add_labels_layer(viewer: ViewerModel, image: Image, name: str, reader: SliceReader) -> Labels:
    """Add an empty labels layer that lies on an image layer, whose scale and place it takes."""
    kept = [axis for axis in range(image.ndim) if axis != reader.channel_axis]
    data = np.zeros((*reader.stack_shape, *reader.size), np.uint16)
    layer = Labels(
        data,
        name=name,
        scale=[float(image.scale[axis]) for axis in kept],
        translate=[float(image.translate[axis]) for axis in kept],
    )
    viewer.add_layer(layer)
    return layer


def style_labels(layer: Labels, labels: Sequence[ShownLabel]) -> None:
    """Give a labels layer the labels' colors and, for hovering, their names."""
    colors: dict[int | None, Any] = {None: _CLEAR, 0: _CLEAR}
    for label in labels:
        red, green, blue = (value / 255 for value in label.color)
        colors[label.id] = (red, green, blue, 1.0) if label.visible else _CLEAR
    layer.colormap = DirectLabelColormap(color_dict=colors)
    layer.features = {"index": [0, *(label.id for label in labels)], "label": ["", *(label.name for label in labels)]}
    layer.metadata[METADATA_KEY] = {"names": {label.id: label.name for label in labels}}


def polygon_vertices(region: Region, index: Index = ()) -> NDArray[np.float64]:
    """A region's outline as napari's vertices ``[n, axes]``; holes are joined to the outline by bridges.

    Raises:
        ValueError: the region has no polygon.
    """
    if region.polygon is None:
        raise ValueError("this region has no polygon")
    x, y = np.asarray(keyhole_ring(region.polygon), dtype=np.float64).reshape(-1, 2).T
    # napari's whole numbers are centers of pixels, ours are corners.
    plane = np.stack([y - _PIXEL_CENTER, x - _PIXEL_CENTER], axis=1)
    return np.hstack([np.tile(np.asarray(index, dtype=np.float64), (len(plane), 1)), plane])


def show_polygons(
    viewer: ViewerModel,
    layer: Shapes | None,
    image: Image,
    draft: Labels,
    regions: Sequence[Region],
    index: Index,
    colors: Mapping[str, tuple[int, int, int]],
) -> Shapes:
    """Put polygons into a shapes layer, in place of what it holds; without a layer one is added.

    Args:
        viewer: to add the layer to.
        layer: of an earlier call, or ``None``.
        image: the image's layer.
        draft: the labels layer that the polygons lie on.
        regions: with polygons.
        index: their slice.
        colors: RGB of each label by name.
    """
    if layer is None or layer not in viewer.layers:
        layer = Shapes(
            ndim=draft.ndim, name=f"{image.name} polygons", scale=draft.scale, translate=draft.translate, opacity=0.7
        )
        viewer.add_layer(layer)
    layer.data = []
    shape = draft.data.shape
    layer.metadata[METADATA_KEY] = {"size": shape[-2:], "file_name": image_name(image, index), "names": list(colors)}
    if regions:
        edge = [(*(value / 255 for value in colors[region.label]), 1.0) for region in regions]
        layer.add(
            [polygon_vertices(region, index) for region in regions],
            shape_type="polygon",
            edge_width=1,
            edge_color=edge,
            face_color=[(*color[:3], 0.2) for color in edge],
        )
    layer.features = {"label": [region.label for region in regions]}
    return layer
