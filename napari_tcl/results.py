"""The layers that hold an image layer's results, and what is known about their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Shapes
from numpy.typing import NDArray

from napari_tcl.annotation import Annotation, TakenOut
from napari_tcl.export import AnnotatedImage, to_positions
from napari_tcl.layers import ShownLabel, add_labels_layer, image_name, style_labels
from napari_tcl.metadata import METADATA_KEY
from napari_tcl.slices import Index, SliceReader
from tcl_core.segmentation.session import ImageSession

if TYPE_CHECKING:
    from napari.components import ViewerModel

__all__ = ["Results"]

_SCORE_STEPS = 255


class Results:
    """Draft and accepted labels of one image layer, and the scores of the draft.

    Making it adds the two layers to the viewer.

    Args:
        viewer: to add the layers to.
        image: the image or stack.
        reader: of its slices.
        labels: how the labels look.
    """

    def __init__(self, viewer: ViewerModel, image: Image, reader: SliceReader, labels: Sequence[ShownLabel]) -> None:
        self.viewer = viewer
        self.image = image
        self.reader = reader
        self.draft = add_labels_layer(viewer, image, f"{image.name} labels", reader)
        self.accepted = add_labels_layer(viewer, image, f"{image.name} accepted", reader)
        self.accepted.opacity = 0.9
        self.polygons: Shapes | None = None
        self.score_layers: dict[str, Image] = {}
        self.sessions: dict[Index, ImageSession] = {}
        self._annotation = Annotation(self.draft.data, self.accepted.data)
        self._scores: dict[Index, NDArray[np.uint8]] = {}
        self._segmented: set[Index] = set()
        self._style: list[ShownLabel] = []
        self.style(labels)

    @property
    def present(self) -> bool:
        """Whether all three layers are still in the viewer."""
        return all(layer in self.viewer.layers for layer in (self.image, self.draft, self.accepted))

    @property
    def annotation(self) -> Annotation:
        """The maps in the layers, also after somebody gave a layer another array of the same shape."""
        note = self._annotation
        for name, layer in (("draft", self.draft), ("accepted", self.accepted)):
            if layer.data is getattr(note, name):
                continue
            if layer.data.shape == getattr(note, name).shape:
                # The viewer's array may be of another type or lazy, and results must appear in it.
                setattr(note, name, np.array(layer.data).astype(np.uint16))
            layer.data = getattr(note, name)
        return note

    def fits(self, reader: SliceReader) -> bool:
        """Whether slices of a reader lie on the layers."""
        return (*reader.stack_shape, *reader.size) == self.draft.data.shape

    def style(self, labels: Sequence[ShownLabel]) -> None:
        """Show the labels' colors and names."""
        if list(labels) == self._style:
            # napari makes colors and textures anew for this.
            return
        self._style = list(labels)
        for layer in (self.draft, self.accepted):
            style_labels(layer, labels)
            layer.metadata[METADATA_KEY]["image"] = self.image.name
            layer.metadata[METADATA_KEY]["file_names"] = {
                index: image_name(self.image, index) for index in self.reader.indices()
            }

    def show(
        self, index: Index, label_map: NDArray[np.int32], score_map: NDArray[np.float32], ids: Sequence[int]
    ) -> None:
        """Put the model's result for a slice into the draft.

        Args:
            index: the slice.
            label_map: int32 ``[H, W]``, places in the vocabulary counted from 1.
            score_map: float32 ``[H, W]`` in ``[0, 1]``.
            ids: of the vocabulary's labels, in its order.
        """
        table = np.array([0, *ids], dtype=np.uint16)
        self.annotation.propose(index, table[label_map])
        self._scores[index] = (score_map * _SCORE_STEPS + 0.5).astype(np.uint8)
        self._segmented.add(index)
        self.draft.refresh()

    def attribute(self, index: Index, label_map: NDArray[np.int32], ids: Sequence[int]) -> None:
        """Say what the model proposes for a slice that holds corrections already; see `Annotation.attribute`."""
        self.annotation.attribute(index, np.array([0, *ids], dtype=np.uint16)[label_map])

    def accept(self, index: Index, ids: Sequence[int]) -> int:
        """Move regions of labels to the accepted layer; returns the number of pixels."""
        moved = self.annotation.accept(index, ids)
        self.refresh()
        return moved

    def undo(self) -> Index | None:
        """Take back the last run or acceptance; returns the slice that changed."""
        index = self.annotation.undo()
        self.refresh()
        return index

    def count(self, ids: Sequence[int]) -> int:
        """Number of pixels of labels in both layers."""
        note = self.annotation
        return sum(int(np.count_nonzero(np.isin(label_map, ids))) for label_map in (note.draft, note.accepted))

    def take_out(self, ids: Sequence[int]) -> TakenOut:
        """Remove labels from both layers; see `Annotation.take_out`."""
        taken = self.annotation.take_out(ids)
        self.refresh()
        return taken

    def put_back(self, taken: TakenOut) -> None:
        """Bring back what `take_out` removed."""
        self.annotation.put_back(taken)
        self.refresh()

    def refresh(self) -> None:
        """Draw both layers anew."""
        self.draft.refresh()
        self.accepted.refresh()

    def labeled_slices(self) -> list[Index]:
        """Slices that were segmented or hold labels, in reading order."""
        note = self.annotation
        return [
            index
            for index in self.reader.indices()
            if index in self._segmented or note.draft[index].any() or note.accepted[index].any()
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
        note = self.annotation
        label_map = to_positions(note.combined(index), ids, names)
        scores = self._scores.get(index)
        score_map: NDArray[np.float32] = np.zeros(label_map.shape, np.float32)
        if scores is not None:
            score_map += scores / np.float32(_SCORE_STEPS)
        score_map[note.confirmed(index)] = 1
        score_map[label_map == 0] = 0
        return AnnotatedImage(image_name(self.image, index), label_map, score_map)
