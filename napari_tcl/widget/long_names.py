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
    tip = combo.toolTip()
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(_LETTERS)
    view = cast(QAbstractItemView, combo.view())
    view.setTextElideMode(Qt.TextElideMode.ElideMiddle)
    view.installEventFilter(_ListWidener(combo, view))

    def follow(text: str) -> None:
        combo.setToolTip(f"{text}\n{tip}" if text else tip)

    combo.currentTextChanged.connect(follow)
    follow(combo.currentText())


class _ListWidener(QObject):
    def __init__(self, combo: QComboBox, view: QAbstractItemView) -> None:
        super().__init__(combo)
        self._view = view

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 - Qt's name
        if event is not None and event.type() == QEvent.Type.Show:
            self._view.setMinimumWidth(min(self._view.sizeHintForColumn(0) + _MARGIN, _WIDEST))
        return False
