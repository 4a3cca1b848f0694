"""A window of its own: groups that a model makes of the active image, which the annotator names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import (
    QFormLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_tcl.layers import reader_of
from napari_tcl.placement import frame_of, placement
from napari_tcl.widget.tasks import Outcome, TaskList
from tcl_core.errors import ImageError, TclError

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["GroupsWidget", "groups_of"]

_HEADS = ("Group", "Share", "Name")
_NAME = 2


def groups_of(model: str, image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Groups of an image, int32 ``[H, W]`` from 1.

    Args:
        model: name of a model, or path of a model file, whose method makes groups.
        image: uint8 ``[H, W, 3]``, RGB.

    Raises:
        TclError: of a kind that says it, if the model cannot be used or makes no groups.
    """
    from tcl_core.models import load_model
    from tcl_core.segmentation.groups import image_groups
    from tcl_core.segmentation.segmenter import Segmenter

    return image_groups(Segmenter(load_model(model)), image)


class GroupsWidget(QWidget):
    """Finds groups in the active image and lets the annotator name them.

    The names stand in the features of a labels layer, so that napari's own tables show them and saving the layer as
    COCO writes them.

    Args:
        napari_viewer: the window's; by this name napari knows that it is wanted.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        # The menu hands over a proxy, which wraps a layer anew each time it is asked for it.
        self._viewer: Viewer = inspect.unwrap(napari_viewer)
        self._layer: Labels | None = None
        self._filling = False
        self._tasks = TaskList()
        self.model = QLineEdit("groupvit-gcc-yfcc")
        self.model.setToolTip("Name of a model or path of a model file, such as a GroupViT.")
        self.find_button = QPushButton("Find groups")
        self.find_button.clicked.connect(self.start)
        self.state = QLabel("Select an image layer.")
        self.state.setWordWrap(True)
        self.table = QTableWidget(0, len(_HEADS))
        self.table.setHorizontalHeaderLabels(list(_HEADS))
        self.table.itemChanged.connect(self._rename)
        self.table.currentCellChanged.connect(self._select)
        form = QFormLayout()
        form.addRow("Model", self.model)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        for part in (self.find_button, self.state, self.table):
            layout.addWidget(part)

    def start(self) -> None:
        """Look at the active image in a thread."""
        layer = self._viewer.layers.selection.active
        if not isinstance(layer, Image):
            self.state.setText("Select an image layer.")
            return
        try:
            reader = reader_of(layer)
            if reader.stack_shape:
                raise ImageError(f"{layer.name!r} is a stack; select a layer with one image")
            pixels = reader.read()
        except TclError as error:
            self.state.setText(str(error))
            return
        place = placement(layer, frame_of(layer, reader))
        self.find_button.setEnabled(False)
        self.state.setText("Finding groups ...")
        model = self.model.text().strip()
        self._tasks.start(lambda _: groups_of(model, pixels), partial(self._end, layer.name, place))

    def closeEvent(self, event: QCloseEvent | None) -> None:  # noqa: N802 - Qt's name
        """Let work that still runs end unheard."""
        self._tasks.close()
        super().closeEvent(event)

    def _end(self, name: str, place: Mapping[str, Any], outcome: Outcome) -> None:
        self.find_button.setEnabled(True)
        if outcome.error is not None:
            self.state.setText(outcome.error)
        elif outcome.result is not None:
            self._show(name, place, outcome.result)

    def _show(self, name: str, place: Mapping[str, Any], groups: NDArray[np.int32]) -> None:
        count = int(groups.max())
        names = [f"group {number}" for number in range(1, count + 1)]
        features = {"index": list(range(1, count + 1)), "label": names}
        # Each window of groups stays, with the names that it was given.
        self._layer = self._viewer.add_labels(groups, name=f"Groups of {name}", features=features, **place)
        shares = np.bincount(groups.ravel(), minlength=count + 1)[1:] / groups.size
        self._filling = True
        self.table.setRowCount(count)
        for row, (group, share) in enumerate(zip(names, shares.tolist(), strict=True)):
            for column, text in enumerate((str(row + 1), f"{share:.1%}", group)):
                item = QTableWidgetItem(text)
                if column != _NAME:
                    item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsEditable)
                self.table.setItem(row, column, item)
        self._filling = False
        self.state.setText(f"{count} groups. Type names into the table, then save the layer as COCO.")

    def _rename(self, item: QTableWidgetItem) -> None:
        if self._filling or item.column() != _NAME or self._layer is None or self._layer not in self._viewer.layers:
            return
        name = item.text().strip()
        if not name:
            self._filling = True
            name = f"group {item.row() + 1}"
            item.setText(name)
            self._filling = False
        features = self._layer.features.copy()
        features.loc[features["index"] == item.row() + 1, "label"] = name
        self._layer.features = features

    def _select(self, row: int, *_: int) -> None:
        if self._layer is not None and self._layer in self._viewer.layers and row >= 0:
            self._layer.selected_label = row + 1
