"""The line that says what happened."""

from __future__ import annotations

import math

from qtpy.QtCore import Qt
from qtpy.QtGui import QFontMetrics, QResizeEvent, QTextOption
from qtpy.QtWidgets import QFrame, QSizePolicy, QTextEdit

__all__ = ["Message"]

_MOST_LINES = 6
_ERROR = "#e03131"


class Message(QTextEdit):
    """Text that can be selected, as high as it needs, and never wider than the widget around it.

    Paths are broken anywhere, which a label cannot do; more than a few lines scroll.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.setReadOnly(True)
        self.setAcceptRichText(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setWordWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setTabChangesFocus(True)
        document = self.document()
        assert document is not None
        document.setDocumentMargin(2)
        layout = document.documentLayout()
        assert layout is not None
        # A style sheet may bring another font after the text was laid out.
        layout.documentSizeChanged.connect(lambda _: self._fit())
        self.say(text)

    def say(self, text: str, error: bool = False) -> None:
        """Show a sentence; errors are red."""
        self._is_error = error
        color = f"color: {_ERROR};" if error else ""
        self.setStyleSheet(f"QTextEdit {{ background: transparent; border: none; padding: 0px; {color} }}")
        self.setPlainText(text)
        self._fit()

    def take_back(self) -> None:
        """Clear the line if it shows an error."""
        if self._is_error:
            self.say("")

    def text(self) -> str:
        """What is shown."""
        return str(self.toPlainText())

    def setText(self, text: str | None) -> None:  # noqa: N802 - Qt's name
        """Show a sentence that is no error."""
        self.say(text or "")

    def resizeEvent(self, event: QResizeEvent | None) -> None:  # noqa: N802 - Qt's name
        """Another width breaks lines elsewhere."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        document = self.document()
        assert document is not None
        most = _MOST_LINES * QFontMetrics(self.font()).lineSpacing()
        height = min(math.ceil(document.size().height()), most) + 2
        if height != self.height():
            self.setFixedHeight(height)
