"""The layers that hold an image layer's results, and what is known about their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from napari.layers import Image, Labels, Shapes
from numpy.typing import NDArray

from napari_tcl.annotation import Annotation, MapName
from napari_tcl.export import AnnotatedImage, to_positions
from napari_tcl.history import Step
from napari_tcl.layers import ShownLabel, image_name, style_labels
from napari_tcl.metadata import ANNOTATION, FILE_NAMES, METADATA_KEY, Link
from napari_tcl.placement import PLACEMENT, Frame, current_index, frame_of, place, placement
from napari_tcl.rendering import Box
from napari_tcl.sessions import SessionStore
from napari_tcl.slices import Index, SliceReader

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["SUFFIXES", "Results", "layer_name"]

_SCORE_STEPS = 255
_ACCEPTED_OPACITY = 0.9
SUFFIXES: dict[MapName, str] = {"draft": "labels", "accepted": "accepted"}
"""How the layers are called after the image."""


def layer_name(image: Image, name: MapName) -> str:
    """What a layer of an image's results is called."""
    return f"{image.name} {SUFFIXES[name]}"


class Results:
    """Draft and accepted labels of one image layer, and the scores of the draft.

    Making it adds those of the two layers to the viewer that are not there.

    Args:
        viewer: to add the layers to.
        image: the image or stack.
        reader: of its slices.
        labels: how the labels look.
        found: labels layers to go on with, of the frame's shape.
        annotation: what is known about the found layers' pixels.
        on_layer: called with each layer before it is added.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        image: Image,
        reader: SliceReader,
        labels: Sequence[ShownLabel],
        found: dict[MapName, Labels] | None = None,
        annotation: Annotation | None = None,
        on_layer: Callable[[Labels], None] | None = None,
    ) -> None:
        self.viewer = viewer
        self.image = image
        self.frame: Frame = frame_of(image, reader)
        data = image.data[0] if image.multiscale else image.data
        self.image_shape = tuple(int(length) for length in data.shape[: image.ndim])
        self.polygons: Shapes | None = None
        self.score_layers: dict[str, Image] = {}
        self.sessions = SessionStore()
        self._on_layer = on_layer
        self._in_part = False
        self._names: dict[MapName, str] = {name: layer_name(image, name) for name in SUFFIXES}
        self._layers: dict[MapName, Labels] = {}
        for name, layer in (found or {}).items():
            layer.data = np.asarray(layer.data).astype(np.uint16, copy=False)
            self._layers[name] = layer
        self._arrays: dict[MapName, NDArray[np.uint16]] = {
            name: cast("NDArray[np.uint16]", self._layers[name].data)
            if name in self._layers
            else np.zeros(self.frame.shape, np.uint16)
            for name in SUFFIXES
        }
        views = {name: self.frame.view(array) for name, array in self._arrays.items()}
        if annotation is None:
            annotation = Annotation(views["draft"], views["accepted"])
        else:
            annotation.draft, annotation.accepted = views["draft"], views["accepted"]
        self._annotation = annotation
        self._style = list(labels)
        for name, layer in self._layers.items():
            self._prepare(name, layer)
        self.show_layers()

    # -- the layers ------------------------------------------------------------------------------------------------

    @property
    def draft(self) -> Labels:
        """The layer of the draft; it may have been removed from the viewer."""
        return self._layers["draft"]

    @property
    def accepted(self) -> Labels:
        """The layer of accepted labels; it may have been removed from the viewer."""
        return self._layers["accepted"]

    @property
    def alive(self) -> bool:
        """Whether the image is still in the viewer."""
        return self.image in self.viewer.layers

    @property
    def present(self) -> bool:
        """Whether the image and at least one layer of its labels are still in the viewer."""
        return self.alive and any(layer in self.viewer.layers for layer in self._layers.values())

    def owns(self, layer: object) -> bool:
        """Whether a layer shows results of this image."""
        return any(layer is each for each in (*self._layers.values(), self.polygons, *self.score_layers.values()))

    def show_layers(self) -> None:
        """Add those of the two layers that are not in the viewer."""
        for name in SUFFIXES:
            layer = self._layers.get(name)
            if layer is None or layer not in self.viewer.layers:
                layer = Labels(self._arrays[name], name=self._names[name], **placement(self.image, self.frame))
                self._layers[name] = layer
                self._prepare(name, layer)
                self.viewer.add_layer(layer)

    def _prepare(self, name: MapName, layer: Labels) -> None:
        if name == "accepted":
            layer.opacity = _ACCEPTED_OPACITY
        place(layer, placement(self.image, self.frame))
        self._style_layer(name, layer)
        self._take_over_undo(name, layer)
        if self._on_layer is not None:
            self._on_layer(layer)

    def _take_over_undo(self, name: MapName, layer: Labels) -> None:
        """Let strokes be taken back by `Annotation`.

        The viewer's own undo writes back what was there before the stroke, although the model may have proposed
        something else since, and would leave holes. All its ways to undo call these methods of the layer.
        """

        def after(replay: Callable[[MapName], bool]) -> Callable[[], None]:
            def run() -> None:
                replay(name)
                self.refresh()

            return run

        def painted(_: object) -> None:
            if self._layers.get(name) is layer and self.annotation.stroke(self._indices_of_stroke(layer)):
                self.refresh()

        note = self._annotation
        layer.undo = after(note.undo_stroke)
        layer.redo = after(note.redo_stroke)
        layer.events.paint.connect(painted)

    def _indices_of_stroke(self, layer: Labels) -> list[Index]:
        if layer.n_edit_dimensions > len(self.frame.plane_axes):
            return list(self._annotation.indices())
        point = np.asarray(self.viewer.dims.point)[-layer.ndim :]
        place = np.round(np.asarray(layer.world_to_data(point)[-layer.ndim :])).astype(int)
        return [tuple(int(np.clip(place[axis], 0, self.frame.shape[axis] - 1)) for axis in self.frame.stack_axes)]

    def layer_removed(self) -> None:
        """After layers were removed from the viewer: what they showed can be brought back by `undo`."""
        if not self.alive:
            return
        for name, layer in self._layers.items():
            if layer in self.viewer.layers or layer.data is not self._arrays[name]:
                continue
            # The removed layer keeps its pixels, whoever still holds it.
            self._arrays[name] = self._arrays[name].copy()
            setattr(self._annotation, name, self.frame.view(self._arrays[name]))
            self._annotation.clear([name], f"the removal of the layer {layer.name!r}")

    def follow_image(self) -> None:
        """Move the layers to where the image is by now, and call them after it, unless somebody renamed them."""
        for name, layer in self._layers.items():
            place(layer, placement(self.image, self.frame))
            wanted = layer_name(self.image, name)
            if layer.name == self._names[name] and layer.name != wanted:
                layer.name = wanted
                self._names[name] = layer.name
        if self.polygons is not None:
            place(self.polygons, placement(self.image, self.frame))
        for name, layer in self._layers.items():
            self._style_layer(name, layer)

    def style(self, labels: Sequence[ShownLabel]) -> None:
        """Show the labels' colors and names."""
        if list(labels) == self._style:
            # napari makes colors and textures anew for this.
            return
        self._style = list(labels)
        for name, layer in self._layers.items():
            self._style_layer(name, layer)

    def _style_layer(self, name: MapName, layer: Labels) -> None:
        style_labels(layer, self._style)
        layer.metadata[METADATA_KEY].update(
            {
                "role": name,
                "image": self.image.name,
                "channel_axis": self.frame.channel_axis,
                FILE_NAMES: {index: image_name(self.image, index) for index in self._annotation.indices()},
                ANNOTATION: Link(self._annotation),
            }
        )

    def refresh(self) -> None:
        """Draw both layers anew."""
        for layer in self._layers.values():
            layer.refresh(extent=False)

    def draw(self, index: Index, box: Box) -> None:
        """Draw a part of a slice of the draft anew, which takes a fraction of the time of `refresh`.

        The layer's thumbnail stays as it was until `finish_drawing`.
        """
        layer = self.draft
        self._in_part = True
        shown = self.viewer.dims
        rows, columns = self.frame.plane_axes
        if not layer.visible or not layer.loaded:
            return
        displayed = [axis - (shown.ndim - layer.ndim) for axis in shown.displayed]
        # Contours reach beyond the part, a volume has no plane of its own, and the viewer may show axes the other way
        # round. Only what the viewer shows now is in its texture.
        if layer.contour or displayed != [rows, columns] or current_index(self.viewer, self.image, self.frame) != index:
            layer.refresh(thumbnail=False, highlight=False, extent=False)
            return
        offset = [each.start for each in box]
        layer.events.labels_update(data=self.annotation.draft[index][box], offset=offset)

    def finish_drawing(self) -> None:
        """Draw all that `draw` left out, if there is something."""
        if self._in_part:
            self._in_part = False
            self.draft.refresh(extent=False)

    # -- the labels ------------------------------------------------------------------------------------------------

    @property
    def annotation(self) -> Annotation:
        """The maps in the layers, also after somebody gave a layer another array of the same shape."""
        for name, layer in self._layers.items():
            array = self._arrays[name]
            if layer.data is array or layer not in self.viewer.layers:
                continue
            if layer.data.shape == array.shape:
                # The viewer's array may be of another type or lazy, and results must appear in it.
                array = np.array(layer.data).astype(np.uint16)
            self._arrays[name] = array
            setattr(self._annotation, name, self.frame.view(array))
            layer.data = array
        return self._annotation

    @property
    def is_stack(self) -> bool:
        """Whether there is more than one slice."""
        return bool(self.frame.stack_axes)

    def fits(self, reader: SliceReader) -> bool:
        """Whether slices of a reader lie on the layers."""
        return frame_of(self.image, reader) == self.frame

    def show(
        self,
        index: Index,
        label_map: NDArray[np.int32],
        score_map: NDArray[np.float32],
        ids: Sequence[int],
        step: Step | None = None,
    ) -> Box | None:
        """Put the model's result for a slice into the draft.

        Args:
            index: the slice.
            label_map: int32 ``[H, W]``, places in the vocabulary counted from 1.
            score_map: float32 ``[H, W]`` in ``[0, 1]``.
            ids: of the vocabulary's labels, in its order.
            step: of a run that can be undone, see `Annotation.propose`.

        Returns:
            The part of the slice to draw anew with `draw`, ``None`` for nothing.
        """
        scores = score_map * _SCORE_STEPS
        scores += 0.5
        self.show_layers()
        return self.annotation.propose(index, _with_ids(label_map, ids), scores.astype(np.uint8), step)

    def attribute(
        self,
        index: Index,
        label_map: NDArray[np.int32],
        ids: Sequence[int],
        corrected: NDArray[np.bool_] | None = None,
    ) -> None:
        """Say what the model proposes for a slice that holds corrections already; see `Annotation.attribute`."""
        self.annotation.attribute(index, _with_ids(label_map, ids), corrected)

    def accept(self, indices: Sequence[Index], ids: Sequence[int]) -> int:
        """Move regions of labels in some slices to the accepted layer, as one step; returns the number of pixels."""
        self.show_layers()
        note = self.annotation
        step = note.begin("the acceptance")
        moved = sum(note.accept(index, ids, step) for index in indices)
        self.refresh()
        return moved

    def undo(self) -> Step | None:
        """Take back the last run, acceptance or removal; returns what was taken back."""
        return self._replayed(self.annotation.undo())

    def redo(self) -> Step | None:
        """Do again what was undone last; returns it."""
        return self._replayed(self.annotation.redo())

    def _replayed(self, step: Step | None) -> Step | None:
        if step is not None:
            self.show_layers()
            self.refresh()
        return step

    def clear(self) -> None:
        """Empty both layers, which can be undone."""
        self.annotation.clear(list(SUFFIXES), "the clearing of the labels")
        self.refresh()

    def count(self, ids: Sequence[int]) -> int:
        """Number of pixels of labels in both layers."""
        note = self.annotation
        return sum(int(np.count_nonzero(np.isin(label_map, ids))) for label_map in (note.draft, note.accepted))

    def forget_labels(self, ids: Sequence[int], what: str, beside: object = None) -> None:
        """Remove labels from both layers, which can be undone as one step; see `Annotation.forget_labels`."""
        self.annotation.forget_labels(ids, what, beside)
        self.refresh()

    def labeled_slices(self) -> list[Index]:
        """Slices that were segmented or hold labels, in reading order."""
        note = self.annotation
        return [
            index
            for index in note.indices()
            if note.segmented(index) or note.draft[index].any() or note.accepted[index].any()
        ]

    def annotated(self, index: Index, ids: Sequence[int], names: Sequence[str]) -> AnnotatedImage:
        """A slice as it is exported: what both layers show together.

        Args:
            index: the slice.
            ids: of the labels in the order of the vocabulary.
            names: of the same labels.

        Raises:
            CocoError: a layer holds an id that no label has.
        """
        note = self._annotation
        label_map = to_positions(note.combined(index), ids, names)
        scores = note.scores(index)
        score_map: NDArray[np.float32] = np.zeros(label_map.shape, np.float32)
        if scores is not None:
            score_map += scores / np.float32(_SCORE_STEPS)
        score_map[note.confirmed(index)] = 1
        score_map[label_map == 0] = 0
        return AnnotatedImage(image_name(self.image, index), label_map, score_map)


def _with_ids(label_map: NDArray[np.int32], ids: Sequence[int]) -> NDArray[np.uint16]:
    """Ids of labels in the place of their positions, which are counted from 1."""
    table = np.array([0, *ids], dtype=np.uint16)
    if np.array_equal(table, np.arange(len(table))):
        # As long as no label was removed, and quicker than looking up each pixel.
        return label_map.astype(np.uint16)
    return table[label_map]


def placement_events(image: Image) -> list[Any]:
    """The events of an image's layer after which `Results.follow_image` is due."""
    return [getattr(image.events, name) for name in (*PLACEMENT, "name")]
