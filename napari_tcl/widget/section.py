"""A part of the widget that can be folded away."""

from __future__ import annotations

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import QFrame, QSizePolicy, QToolButton, QVBoxLayout, QWidget

__all__ = ["Section", "stacked"]


class Section(QWidget):
    """A title that shows or hides what is below it.

    Signals: ``folded_changed`` with whether it is folded.

    Args:
        title: what the part is about.
        content: the part.
        folded: whether it starts hidden.
    """

    folded_changed = Signal(bool)

    def __init__(self, title: str, content: QWidget, folded: bool = False) -> None:
        super().__init__()
        self._title = title
        self._summary = ""
        self._content = content
        self._button = QToolButton()
        self._button.setCheckable(True)
        self._button.setAutoRaise(True)
        self._button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        # napari draws a border around checked tool buttons.
        self._button.setStyleSheet(
            "QToolButton, QToolButton:checked { border: none; background: transparent; text-align: left; "
            "font-weight: bold; padding: 1px; }"
        )
        self._line = QFrame()
        self._line.setFrameShape(QFrame.Shape.HLine)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._line)
        layout.addWidget(self._button)
        layout.addWidget(content)
        self._button.toggled.connect(lambda shown: self._follow(not shown))
        self._button.setChecked(not folded)
        self._follow(folded)

    @property
    def folded(self) -> bool:
        """Whether the content is hidden."""
        return not self._button.isChecked()

    @folded.setter
    def folded(self, folded: bool) -> None:
        self._button.setChecked(not folded)

    def set_summary(self, text: str) -> None:
        """Say in the title what the content is set to, which is shown while it is folded."""
        self._summary = text
        self._write_title()

    def _follow(self, folded: bool) -> None:
        self._content.setVisible(not folded)
        self._button.setArrowType(Qt.ArrowType.RightArrow if folded else Qt.ArrowType.DownArrow)
        self._write_title()
        self.folded_changed.emit(folded)

    def _write_title(self) -> None:
        summary = f": {self._summary}" if self._summary and self.folded else ""
        self._button.setText(f"{self._title}{summary}")
        action = "Show" if self.folded else "Hide"
        self._button.setToolTip(f"{action} these settings: {self._title}{summary}.")


def stacked(*parts: QWidget) -> QWidget:
    """Parts one below the other, as the content of a section."""
    whole = QWidget()
    layout = QVBoxLayout(whole)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.setSpacing(2)
    for part in parts:
        layout.addWidget(part)
    return whole
