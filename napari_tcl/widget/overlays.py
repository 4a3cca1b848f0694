"""What lies over the labels on request: score maps and polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from napari_tcl.layers import show_polygons
from napari_tcl.metadata import METADATA_KEY
from napari_tcl.placement import place, placement
from napari_tcl.results import Results
from napari_tcl.slices import Index
from napari_tcl.widget.tasks import Outcome, Task
from napari_tcl.widget.workers import PolygonRun
from tcl_core.errors import TclError
from tcl_core.types import Region
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["Overlays"]

_PAUSE = 250  # milliseconds without a change before polygons are made


class Overlays(QObject):
    """Keeps score maps and polygons in step with the labels; polygons are made in a thread, the latest wish counts.

    Args:
        owner: the widget with labels, forms and results.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        super().__init__(owner)
        self._owner = owner
        self._task: Task | None = None
        self._stale = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_PAUSE)
        self._timer.timeout.connect(self._make_polygons)
        form = owner.polygons
        form.tolerance.changed.connect(lambda _: self.follow())
        form.polygons.changed.connect(lambda _: self.follow())
        form.scores.changed.connect(lambda _: self.show_scores())

    @property
    def busy(self) -> bool:
        """Whether polygons are being made, or will be soon."""
        return self._task is not None or self._timer.isActive()

    def follow(self) -> None:
        """Make polygons anew once nothing has changed for a moment."""
        self._timer.start()

    def follow_deleted(self) -> None:
        """Clear the check box of layers that somebody deleted while their image stays, so that they do not return."""
        layers, form = self._owner.viewer.layers, self._owner.polygons
        for results in self._owner.results:
            if not results.alive:
                continue
            if results.polygons is not None and results.polygons not in layers:
                form.polygons.value = False
            if results.score_layers and not any(layer in layers for layer in results.score_layers.values()):
                form.scores.value = False

    def show_scores(self) -> None:
        """Show the score maps of the slice that is shown if they are wanted, and remove those that are not."""
        current = self._owner.current()
        if current is None:
            return
        results, index = current
        viewer, session = self._owner.viewer, results.sessions.get(index)
        try:
            wanted = {}
            if self._owner.polygons.scores.value and session is not None:
                vocabulary, _ = self._owner.searched()
                wanted = {label.name: session.score_map(label, vocabulary) for label in vocabulary.labels}
        except TclError as error:
            self._owner.buttons.say(str(error))
            return
        for name in [name for name in results.score_layers if name not in wanted]:
            layer = results.score_layers.pop(name)
            if layer in viewer.layers:
                viewer.layers.remove(layer)
        for name, score in wanted.items():
            layer = results.score_layers.get(name)
            where = placement(results.image, results.frame, index)
            if layer is not None and layer in viewer.layers:
                layer.data = _in_frame(score, results)
                place(layer, where)
                continue
            active = viewer.layers.selection.active
            results.score_layers[name] = viewer.add_layer(_score_layer(name, _in_frame(score, results), where))
            viewer.layers.selection.active = active

    def _make_polygons(self) -> None:
        current = self._owner.current()
        if current is None:
            return
        if self._task is not None:
            self._stale = True
            return
        results, index = current
        # Counting and thumbnails are too slow for every step of a slider, and this waits until it rests.
        self._owner.summarize(results.image)
        results.finish_drawing()
        try:
            vocabulary = self._owner.vocabulary()
            image = results.annotated(index, self._owner.labels.ids, vocabulary.names)
        except TclError as error:
            self._owner.buttons.vertices.setText(str(error))
            return

        def ended(outcome: Outcome) -> None:
            self._task = None
            if outcome.error is not None:
                self._owner.buttons.vertices.setText(outcome.error)
            elif results.present:
                self._show_polygons(results, index, outcome.result, vocabulary)
            if self._stale:
                self._stale = False
                self.follow()

        run = PolygonRun(image, vocabulary, float(self._owner.polygons.tolerance.value))
        self._task = self._owner.tasks.start(run, ended)

    def _show_polygons(self, results: Results, index: Index, regions: Sequence[Region], vocabulary: Vocabulary) -> None:
        self._owner.buttons.show_vertices(regions)
        viewer = self._owner.viewer
        if not self._owner.polygons.polygons.value:
            if results.polygons is not None and results.polygons in viewer.layers:
                viewer.layers.remove(results.polygons)
            results.polygons = None
            return
        colors = dict(zip(vocabulary.names, vocabulary.colors, strict=True))
        active = viewer.layers.selection.active
        results.polygons = show_polygons(viewer, results.polygons, results.image, results.frame, regions, index, colors)
        viewer.layers.selection.active = active


def _in_frame(score: NDArray[np.float32], results: Results) -> NDArray[np.float32]:
    """A slice's score map with all axes of the image, of which only rows and columns are longer than 1."""
    shape = np.ones(len(results.frame.shape), int)
    shape[list(results.frame.plane_axes)] = score.shape
    return score.reshape(shape)


def _score_layer(name: str, score: NDArray[np.float32], where: dict[str, Any]) -> Image:
    return Image(
        score,
        name=f"score: {name}",
        colormap="inferno",
        contrast_limits=(0, 1),
        opacity=0.6,
        metadata={METADATA_KEY: {"score_of": name}},
        **where,
    )
