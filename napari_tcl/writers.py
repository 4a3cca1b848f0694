"""napari writers: labels and shapes layers, ours and other plugins', become COCO files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

import napari_tcl.triton_workaround  # noqa: F401 - before PyTorch
from napari_tcl.export import AnnotatedImage, check_folder, export_coco, to_positions, vocabulary_of_names
from napari_tcl.metadata import METADATA_KEY
from tcl_core.errors import CocoError
from tcl_core.export.coco import ImageResult, regions_to_annotations, write_coco_file
from tcl_core.polygons.rasterize import polygon_to_mask
from tcl_core.types import Region

__all__ = ["write_label_layers", "write_labels", "write_shapes"]

FullLayerData = tuple[Any, dict[str, Any], str]

_PIXEL_CENTER = 0.5
_ELLIPSE_SEGMENTS = 32
_WITH_AREA = ("polygon", "rectangle", "ellipse")
_SETTINGS = {"made_by": "napari"}


def write_labels(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write a labels layer; see `write_label_layers`.

    Args:
        path: ends with ``.json``.
        data: integers ``[..., H, W]``.
        attributes: of the layer.

    Returns:
        The path that was written.

    Raises:
        CocoError: the data are no label map, no pixel is labeled, or the file cannot be written.
    """
    return write_label_layers(path, [(data, attributes, "labels")])


def write_label_layers(path: str, layers: Sequence[FullLayerData]) -> list[str]:
    """Write labels layers to one file; every pixel is kept, as run lengths (RLE).

    Names come from this plugin's metadata, else from the layer's features (columns ``index`` and ``label`` or
    ``name``), else they are ``label 1`` and so on. The slices of a stack become images of their own. Layers of the
    same image (a draft and what is accepted of it) become one image, in which later layers lie on earlier ones, as in
    the viewer.

    Args:
        path: ends with ``.json``.
        layers: integers ``[..., H, W]``, attributes and type of each layer.

    Returns:
        The path that was written.

    Raises:
        CocoError: the data are no label map, no pixel is labeled, layers of one image differ in size, or the file
            cannot be written.
    """
    read = [_LabelLayer.of(path, data, attributes) for data, attributes, _ in layers]
    if not any(layer.label_map.any() for layer in read):
        named = " and ".join(repr(layer.name) for layer in read)
        what = f"the layer {named} has" if len(read) == 1 else f"the layers {named} have"
        raise CocoError(f"{path}: {what} no labels; segment or paint something first")
    names = list(dict.fromkeys(name for layer in read for name in layer.names.values()))
    places: dict[str, list[tuple[_LabelLayer, tuple[int, ...]]]] = {}
    for layer in read:
        for index in np.ndindex(layer.label_map.shape[:-2]):
            places.setdefault(layer.file_name(index), []).append((layer, index))

    for file_name, found in places.items():
        if len({layer.image for layer, _ in found}) > 1:
            raise CocoError(f"{path}: two images are called {file_name}; save their layers to separate files")

    def images() -> Iterator[AnnotatedImage]:
        for file_name, found in places.items():
            combined = np.zeros(found[0][0].label_map.shape[-2:], np.int32)
            for layer, index in found:
                positions = layer.positions(index, names)
                if positions.shape != combined.shape:
                    sizes = " and ".join(f"{width} x {height}" for height, width in (combined.shape, positions.shape))
                    raise CocoError(f"{path}: layers of the image {file_name} have the sizes {sizes}; save them apart")
                np.copyto(combined, positions, where=positions > 0)
            yield AnnotatedImage(file_name, combined)

    export_coco(path, images(), vocabulary_of_names(names), _SETTINGS, geometry="rle")
    return [path]


@dataclass(frozen=True)
class _LabelLayer:
    """A labels layer as it is written: its map, and what its numbers and slices are called."""

    name: str
    label_map: NDArray[Any]
    names: Mapping[int, str]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, path: str, data: Any, attributes: Mapping[str, Any]) -> _LabelLayer:
        label_map = np.asarray(data[0] if isinstance(data, (list, tuple)) else data)
        name = str(attributes.get("name") or "labels")
        if label_map.ndim < 2 or label_map.dtype.kind not in "biu" or label_map.size == 0:
            found = f"{label_map.dtype} {label_map.shape}"
            raise CocoError(f"{path}: the data of the layer {name!r} are {found}, not integers [..., H, W]")
        if int(label_map.min()) < 0:
            raise CocoError(f"{path}: the layer {name!r} contains the label {int(label_map.min())}; labels start at 1")
        axis = _own(attributes).get("channel_axis")
        if axis is not None and label_map.shape[axis] == 1:
            # The channels share one label map.
            label_map = np.squeeze(label_map, axis=axis)
        return cls(name, label_map, _label_names(_own(attributes), attributes, label_map), attributes)

    @property
    def image(self) -> object:
        """What tells images of one file name apart, where that is known."""
        return _own(self.attributes).get("image")

    def file_name(self, index: tuple[int, ...]) -> str:
        files: Mapping[tuple[int, ...], str] = _own(self.attributes).get("file_names", {})
        return files.get(index) or _slice_name(self.attributes, index)

    def positions(self, index: tuple[int, ...], names: Sequence[str]) -> NDArray[np.int32]:
        """A slice with the numbers that labels have in the file, from 1."""
        own = to_positions(self.label_map[index], list(self.names), list(self.names.values()))
        table = np.array([0, *(names.index(name) + 1 for name in self.names.values())], np.int32)
        return np.asarray(table[own])


def write_shapes(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write polygons, rectangles and ellipses of a shapes layer.

    Labels come from the layer's feature ``label``, else all shapes are called ``shape``. The image's size comes from
    this plugin's metadata, else the file takes the least size that holds all shapes.

    Args:
        path: ends with ``.json``.
        data: vertices ``[n, axes]`` of each shape.
        attributes: of the layer.

    Returns:
        The path that was written.

    Raises:
        CocoError: a shape has no area or leaves the image, or the file cannot be written.
    """
    check_folder(Path(path))
    own = _own(attributes)
    kinds = attributes.get("shape_type", "polygon")
    kinds = [kinds] * len(data) if isinstance(kinds, str) else list(kinds)
    labels = _shape_labels(attributes, len(data))
    if not len(data):
        raise CocoError(f"{path}: the layer has no shapes; draw one first")
    outlines: dict[tuple[int, ...], list[tuple[str, shapely.Polygon]]] = {}
    for number, (vertices, kind, label) in enumerate(zip(data, kinds, labels, strict=True), start=1):
        points = np.asarray(vertices, dtype=np.float64)
        if plane := own.get("plane_axes"):
            # Rows and columns last, as in the layers of others.
            points = np.hstack([np.delete(points, plane, axis=1), points[:, list(plane)]])
        place, polygon = _outline(points, str(kind), f"{path}: shape {number}")
        outlines.setdefault(place, []).append((label, polygon))
    names = list(dict.fromkeys([*own.get("names", []), *labels]))
    vocabulary = vocabulary_of_names(names)
    size = own.get("size") or _size_of([polygon for found in outlines.values() for _, polygon in found])
    height, width = int(size[0]), int(size[1])
    results = []
    for place in sorted(outlines):
        regions = [_region(names.index(name) + 1, name, polygon, (height, width)) for name, polygon in outlines[place]]
        file_name = own.get("file_name") or _slice_name(attributes, place)
        annotations = regions_to_annotations(regions, (height, width))
        results.append(ImageResult(file_name, height, width, annotations))
    write_coco_file(path, results, vocabulary, _SETTINGS, overwrite=True)
    return [path]


def _own(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    return (attributes.get("metadata") or {}).get(METADATA_KEY) or {}


def _slice_name(attributes: Mapping[str, Any], index: Sequence[int]) -> str:
    name = str(attributes.get("name") or "image").replace("/", "-").replace("\\", "-")
    return "-".join([name, *(f"{number:04d}" for number in index)]) + ".png"


def _label_names(own: Mapping[str, Any], attributes: Mapping[str, Any], data: NDArray[Any]) -> dict[int, str]:
    if own.get("names"):
        return {int(number): str(name) for number, name in own["names"].items()}
    found = [int(number) for number in np.unique(data) if number]
    features = attributes.get("features")
    named: dict[int, str] = {}
    if features is not None and "index" in features:
        column = next((column for column in ("label", "name") if column in features), None)
        if column is not None:
            named = {int(number): str(name) for number, name in zip(features["index"], features[column], strict=True)}
    return {number: named.get(number) or f"label {number}" for number in found}


def _shape_labels(attributes: Mapping[str, Any], count: int) -> list[str]:
    features = attributes.get("features")
    if features is None or "label" not in features:
        return ["shape"] * count
    return [str(label) for label in features["label"]]


def _outline(vertices: NDArray[np.float64], kind: str, what: str) -> tuple[tuple[int, ...], shapely.Polygon]:
    """A shape's slice, and its outline in pixel-edge coordinates."""
    if kind not in _WITH_AREA:
        raise CocoError(f"{what} is a {kind}, which has no area; remove it, or draw a polygon")
    leading = np.round(vertices[:, :-2])
    if (leading != leading[0]).any():
        raise CocoError(f"{what} spans several slices of the stack; draw it in one slice")
    corners = vertices[:, :-3:-1] + _PIXEL_CENTER
    if kind == "ellipse":
        corners = _ellipse(corners)
    polygon = shapely.Polygon(corners) if len(corners) >= 3 else shapely.Polygon()
    if not polygon.is_valid:
        # Bridges to holes lie on each other, and hand-drawn lines may cross.
        polygon = shapely.make_valid(polygon)
    if not polygon.area > 0:
        raise CocoError(f"{what} has no area; remove it")
    return tuple(int(number) for number in leading[0]), polygon


def _ellipse(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline of an ellipse that fills a (perhaps turned) rectangle of four corners."""
    center = corners.mean(axis=0)
    one, other = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    angle = np.linspace(0, 2 * np.pi, 4 * _ELLIPSE_SEGMENTS, endpoint=False)[:, None]
    return np.asarray(center + np.cos(angle) * one + np.sin(angle) * other)


def _size_of(polygons: Sequence[shapely.Polygon]) -> tuple[int, int]:
    bounds = np.array([polygon.bounds for polygon in polygons])
    return max(1, int(np.ceil(bounds[:, 3].max()))), max(1, int(np.ceil(bounds[:, 2].max())))


def _region(label_id: int, name: str, polygon: shapely.Polygon, size: tuple[int, int]) -> Region:
    inside = shapely.intersection(polygon, shapely.box(0, 0, size[1], size[0]))
    parts = [part for part in shapely.get_parts(inside) if isinstance(part, shapely.Polygon)]
    mask = np.zeros(size, dtype=bool)
    for part in parts:
        mask |= polygon_to_mask(part, size)
    if not mask.any():
        raise CocoError(f"a shape of the label {name!r} covers no pixels of the image; remove it")
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    y, x, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    return Region(
        label_id=label_id,
        label=name,
        score=1.0,
        area=int(mask.sum()),
        bbox=(x, y, right - x, bottom - y),
        mask=mask[y:bottom, x:right],
        polygon=parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts),
    )
