"""Names that are longer than the widget is wide stay readable, and do not widen it."""

from __future__ import annotations

from typing import cast

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QAbstractItemView, QComboBox

__all__ = ["show_long_names"]

_LETTERS = 8
_WIDEST = 640  # pixels; a longer name is elided in the middle
_MARGIN = 32  # for the scroll bar and the frame


def show_long_names(combo: QComboBox) -> None:
    """Let a drop-down list be narrower than its entries: the open list and the tooltip show them whole."""
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(_LETTERS)
    view = cast(QAbstractItemView, combo.view())
    view.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    shower = _Shower(combo, view)
    combo.installEventFilter(shower)
    view.installEventFilter(shower)


class _Shower(QObject):
    def __init__(self, combo: QComboBox, view: QAbstractItemView) -> None:
        super().__init__(combo)
        self._combo, self._view = combo, view
        self._tip = combo.toolTip()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 - Qt's name
        if event is None:
            return False
        if event.type() == QEvent.Type.ToolTip and watched is self._combo:
            # Now, because entries change without a signal.
            self._combo.setToolTip(f"{self._combo.currentText()}\n{self._tip}")
        elif event.type() == QEvent.Type.Show and watched is self._view:
            self._view.setMinimumWidth(min(self._view.sizeHintForColumn(0) + _MARGIN, _WIDEST))
        return False
