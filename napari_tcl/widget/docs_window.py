"""The documentation in a window of its own, which needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QUrl
from qtpy.QtGui import QDesktopServices, QImage, QTextDocument
from qtpy.QtWidgets import QDialog, QHBoxLayout, QLabel, QTextBrowser, QVBoxLayout, QWidget

from napari_tcl.widget.buttons import tool_button

__all__ = ["DocsWindow"]

_SIZE = (820, 900)
_MARGIN = 40  # pixels beside an image


class DocsWindow(QDialog):
    """Shows a Markdown page with its images; links to other pages open here, those to the web in the browser.

    Args:
        page: path of the page.
        parent: the window that it belongs to.
    """

    def __init__(self, page: Path, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle("TCL Annotate: documentation")
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.resize(*_SIZE)
        self.page = _Page()
        self.page.setToolTip("")
        self.page.setOpenLinks(False)
        self.page.anchorClicked.connect(self._follow)
        back = tool_button("Back", "Go back to the page before.")
        back.clicked.connect(lambda: self.page.backward())
        start = tool_button("napari", "Go to the page about this plugin.")
        start.clicked.connect(lambda: self.show_page(page))
        self.word = QLabel("")
        bar = QHBoxLayout()
        for part in (back, start):
            bar.addWidget(part)
        bar.addWidget(self.word, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(bar)
        layout.addWidget(self.page)
        self.show_page(page)

    def show_page(self, page: Path) -> None:
        """Show another page."""
        self.word.setText("")
        self.page.setSource(QUrl.fromLocalFile(str(page)), QTextDocument.ResourceType.MarkdownResource)

    def _follow(self, link: QUrl) -> None:
        if link.scheme() in ("http", "https"):
            QDesktopServices.openUrl(link)
            return
        target = self.page.source().resolved(link)
        path = Path(target.toLocalFile())
        if target.isLocalFile() and path.is_file():
            self.show_page(path)
        else:
            self.word.setText(f"{link.toString()} is not part of this installation.")


class _Page(QTextBrowser):
    def loadResource(self, kind: int, name: QUrl) -> Any:  # noqa: N802 - Qt's name
        """Images as wide as the page at most, which Markdown cannot say."""
        found = super().loadResource(kind, name)
        if kind != QTextDocument.ResourceType.ImageResource.value:
            return found
        image = QImage(self.source().resolved(name).toLocalFile())
        width = max(_MARGIN, self.width() - _MARGIN)
        if image.width() > width:
            image = image.scaledToWidth(width, Qt.TransformationMode.SmoothTransformation)
        return image
