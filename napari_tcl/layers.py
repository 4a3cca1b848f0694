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

from napari_tcl.joined import joined_reader
from napari_tcl.metadata import METADATA_KEY
from napari_tcl.placement import Frame, placement
from napari_tcl.slices import Index, SliceReader
from tcl_core.errors import ImageError
from tcl_core.export.coco.keyhole import keyhole_ring
from tcl_core.types import Region

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = [
    "ShownLabel",
    "image_name",
    "lock",
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
        prompts: what it is searched for with, as in the table.
    """

    id: int
    name: str
    color: tuple[int, int, int]
    visible: bool = True
    prompts: str = ""


def reader_of(
    layer: Image, channel_axis: int | None = None, channels: Sequence[int] = (0,), others: Sequence[Image] = ()
) -> SliceReader:
    """Read an image layer's slices as they are seen, with the layer's contrast limits.

    Of a layer with several resolutions the finest is taken.

    Args:
        layer: the image.
        channel_axis: of the layer's data.
        channels: of that axis.
        others: further gray layers of the same shape, which become green and blue.

    Raises:
        ImageError: the layer is removed, or cannot be read as images.
    """
    for each in (layer, *others):
        if any(length == 0 for length in _data_of(each).shape):
            raise ImageError(f"the layer {each.name!r} has no pixels")
    if not others:
        return SliceReader(_data_of(layer), bool(layer.rgb), channel_axis, tuple(channels), _limits_of(layer))
    if channel_axis is not None:
        raise ImageError("the channels are in one layer or in several; set the channel axis to none, or the others")
    layers = (layer, *others)
    if colored := next((each for each in layers if each.rgb), None):
        raise ImageError(f"the layer {colored.name!r} is RGB already; combine gray layers only")
    return joined_reader([_data_of(each) for each in layers], [_limits_of(each) for each in layers])


def _data_of(layer: Image) -> Any:
    return layer.data[0] if layer.multiscale else layer.data


def _limits_of(layer: Image) -> tuple[float, float] | None:
    return None if layer.rgb else (float(layer.contrast_limits[0]), float(layer.contrast_limits[1]))


def image_name(layer: Image, index: Index) -> str:
    """What a slice is called in a COCO file: the image's own file name, with the place in a stack."""
    source = getattr(layer.source, "path", None)
    path = Path(source) if source else Path(f"{layer.name}.png".replace("/", "-").replace("\\", "-"))
    if not index:
        return path.name
    return f"{path.stem}-{'-'.join(f'{number:04d}' for number in index)}{path.suffix or '.png'}"


def style_labels(layer: Labels, labels: Sequence[ShownLabel]) -> None:
    """Give a labels layer the labels' colors and, for hovering, their names."""
    colors: dict[int | None, Any] = {None: _CLEAR, 0: _CLEAR}
    for label in labels:
        red, green, blue = (value / 255 for value in label.color)
        colors[label.id] = (red, green, blue, 1.0) if label.visible else _CLEAR
    layer.colormap = DirectLabelColormap(color_dict=colors)
    layer.features = {"index": [0, *(label.id for label in labels)], "label": ["", *(label.name for label in labels)]}
    layer.metadata[METADATA_KEY] = {
        "names": {label.id: label.name for label in labels},
        "prompts": {label.id: label.prompts for label in labels},
        "colors": {label.id: label.color for label in labels},
    }


def polygon_vertices(region: Region, frame: Frame | None = None, index: Index = ()) -> NDArray[np.float64]:
    """A region's outline as napari's vertices ``[n, axes]``; holes are joined to the outline by bridges.

    Args:
        region: with a polygon.
        frame: the axes of the labels; ``None`` for those of a single image.
        index: the slice.

    Raises:
        ValueError: the region has no polygon.
    """
    if region.polygon is None:
        raise ValueError("this region has no polygon")
    x, y = np.asarray(keyhole_ring(region.polygon), dtype=np.float64).reshape(-1, 2).T
    # napari's whole numbers are centers of pixels, ours are corners.
    plane = np.stack([y - _PIXEL_CENTER, x - _PIXEL_CENTER], axis=1)
    if frame is None:
        return plane
    vertices = np.tile(frame.place_of(index), (len(plane), 1))
    vertices[:, list(frame.plane_axes)] = plane
    return vertices


def show_polygons(
    viewer: ViewerModel,
    layer: Shapes | None,
    image: Image,
    frame: Frame,
    regions: Sequence[Region],
    index: Index,
    colors: Mapping[str, tuple[int, int, int]],
) -> Shapes:
    """Put polygons into a shapes layer, in place of what it holds; without a layer one is added.

    The layer is a view of the labels: it follows them and cannot be edited, because what is exported are the labels.

    Args:
        viewer: to add the layer to.
        layer: of an earlier call, or ``None``.
        image: the image's layer.
        frame: of the image's labels.
        regions: with polygons.
        index: their slice.
        colors: RGB of each label by name.
    """
    if layer is None or layer not in viewer.layers:
        layer = Shapes(ndim=image.ndim, name=f"{image.name} polygons", opacity=0.7, **placement(image, frame))
        viewer.add_layer(layer)
        lock(layer)
    layer.data = []
    rows, columns = frame.plane_axes
    layer.metadata[METADATA_KEY] = {
        "size": (frame.shape[rows], frame.shape[columns]),
        "file_name": image_name(image, index),
        "names": list(colors),
        "plane_axes": frame.plane_axes,
    }
    if regions:
        edge = [(*(value / 255 for value in colors[region.label]), 1.0) for region in regions]
        layer.add(
            [polygon_vertices(region, frame, index) for region in regions],
            shape_type="polygon",
            edge_width=1,
            edge_color=edge,
            face_color=[(*color[:3], 0.2) for color in edge],
        )
    layer.features = {"label": [region.label for region in regions]}
    return layer


def lock(layer: Shapes) -> None:
    """Keep a layer from being edited, also where napari would allow it again, as after a look in 3D."""

    def again(_: object) -> None:
        if layer.editable:
            layer.editable = False

    layer.editable = False
    layer.events.editable.connect(again)
