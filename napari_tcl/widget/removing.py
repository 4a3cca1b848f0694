"""Removing labels: asked about where pixels would be lost, and undone with their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QMessageBox

from napari_tcl.annotation import TakenOut
from napari_tcl.results import Results
from napari_tcl.widget.label_table import LabelRow

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["LabelRemover"]


@dataclass(frozen=True)
class _Removal:
    rows: tuple[LabelRow, ...]
    taken: tuple[tuple[Results, TakenOut], ...]


class LabelRemover:
    """Takes labels that leave the table out of the layers, and brings both back.

    Args:
        owner: the widget with the table and the results.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        self._owner = owner
        self._removals: list[_Removal] = []
        owner.labels.may_remove = self._ask
        owner.labels.labels_removed.connect(self._take_out)

    def undo(self) -> str | None:
        """Bring back the labels that were removed last.

        Returns:
            Their names, or ``None`` where no label was removed.
        """
        if not self._removals:
            return None
        removal = self._removals.pop()
        self._owner.labels.restore_rows(removal.rows)
        for results, taken in removal.taken:
            if results.present:
                results.put_back(taken)
        return ", ".join(repr(row.name) for row in removal.rows)

    def _ask(self, rows: Sequence[LabelRow]) -> bool:
        ids = [row.number for row in rows]
        counts = [(results.image.name, count) for results in self._present if (count := results.count(ids))]
        if not counts:
            return True
        pixels = sum(count for _, count in counts)
        where = f"the image {counts[0][0]!r}" if len(counts) == 1 else f"{len(counts)} images"
        names = ", ".join(repr(row.name) for row in rows)
        noun = "label" if len(rows) == 1 else "labels"
        box = QMessageBox(self._owner)
        box.setIcon(QMessageBox.Icon.Question)
        box.setWindowTitle("Remove labels")
        box.setText(f"Remove the {noun} {names} and {pixels:,} pixels in {where}?")
        box.setInformativeText("Undo brings back the labels and their pixels.")
        remove = box.addButton("Remove", QMessageBox.ButtonRole.DestructiveRole)
        cancel = box.addButton("Cancel", QMessageBox.ButtonRole.RejectRole)
        box.setDefaultButton(cancel)
        box.setEscapeButton(cancel)
        box.exec()
        return box.clickedButton() is remove

    def _take_out(self, rows: Sequence[LabelRow]) -> None:
        ids = [row.number for row in rows]
        self._removals.append(
            _Removal(tuple(rows), tuple((results, results.take_out(ids)) for results in self._present))
        )

    @property
    def _present(self) -> list[Results]:
        return [results for results in self._owner.results if results.present]
