"""Buttons, progress and messages at the foot of the widget."""

from __future__ import annotations

from collections.abc import Sequence

import shapely
from qtpy.QtWidgets import QCheckBox, QGridLayout, QProgressBar, QPushButton, QVBoxLayout, QWidget

from napari_tcl.widget.message import Message
from tcl_core.types import Region

__all__ = ["RunButtons", "tool_button"]

_STEPS = 100


class RunButtons(QWidget):
    """Segment, Cancel, Accept, Undo, Export, and what is going on."""

    def __init__(self) -> None:
        super().__init__()
        self.segment = tool_button("Segment", "Segment the current image or slice.")
        self.segment_all = tool_button("Segment all slices", "Segment every slice of the stack.")
        self.cancel = tool_button(
            "Cancel", "Stop the current run. In a stack, slices that are done keep their new labels."
        )
        self.accept = tool_button(
            "Accept label (C)",
            "Move the selected label's regions to the accepted layer, which later runs never overwrite. "
            "Shortcut: C, while the labels layer is active.",
        )
        self.undo = tool_button(
            "Undo",
            "Undo the last run, acceptance or removal; your strokes stay. To undo brush strokes, press Ctrl+Z in their "
            "layer.",
        )
        self.redo = tool_button("Redo", "Redo what Undo took back.")
        self.every = QCheckBox("All slices")
        self.every.setToolTip("On: thresholds and Accept act on all slices of the stack. Off: on the current slice.")
        self.every.setEnabled(False)
        self.export = tool_button("Export COCO...", "Write the labels and accepted layers to a COCO file.")
        self.cancel.setEnabled(False)
        grid = QGridLayout()
        for place, button in enumerate(
            (self.segment, self.segment_all, self.cancel, self.accept, self.undo, self.redo, self.every, self.export)
        ):
            grid.addWidget(button, place // 3, place % 3)
        self.progress = QProgressBar()
        self.progress.setToolTip("Progress of the current run.")
        self.progress.setRange(0, _STEPS)
        self.message = Message("Type labels and press Segment.")
        self.message.setToolTip("The last result or error.")
        self.vertices = Message()
        self.vertices.setToolTip("Number of polygon vertices at this tolerance; updated as you change it.")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addLayout(grid)
        for part in (self.progress, self.message, self.vertices):
            layout.addWidget(part)

    def set_running(self, running: bool) -> None:
        """Only Cancel while work goes on, all but Cancel otherwise."""
        for button in (self.segment, self.segment_all, self.accept, self.undo, self.redo, self.export):
            button.setEnabled(not running)
        self.cancel.setEnabled(running)
        self.progress.setRange(0, 0 if running else _STEPS)
        if not running:
            self.progress.reset()

    def show_progress(self, text: str, share: float | None) -> None:
        """Show a step of the work; without a share the bar only moves to and fro."""
        self.say(text)
        self.progress.setRange(0, 0 if share is None else _STEPS)
        if share is not None:
            self.progress.setValue(round(_STEPS * share))

    def say(self, text: str, error: bool = False) -> None:
        """Show a sentence; errors are red."""
        self.message.say(text, error)

    def show_vertices(self, regions: Sequence[Region]) -> None:
        """Show how many points polygons have."""
        # A ring's last point repeats its first.
        count = sum(
            shapely.count_coordinates(region.polygon) - 1 - len(region.polygon.interiors)
            for region in regions
            if region.polygon is not None
        )
        self.vertices.setText(f"{count:,} vertices in {len(regions):,} polygons")


def tool_button(text: str, tip: str) -> QPushButton:
    """A button with a tooltip."""
    button = QPushButton(text)
    button.setToolTip(tip)
    return button
