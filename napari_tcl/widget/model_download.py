"""Downloading a model without leaving the window."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from qtpy.QtWidgets import QComboBox, QHBoxLayout, QLabel, QLineEdit, QPushButton, QWidget

from napari_tcl.widget.buttons import tool_button
from napari_tcl.widget.long_names import show_long_names
from napari_tcl.widget.tasks import Outcome, Reporter
from napari_tcl.widget.workers import Step
from tcl_core.models import fetch_model, list_models
from tcl_core.models.manifest import load_manifest
from tcl_core.models.transfer_progress import Transfer

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["ModelDownload"]

_INTERVAL = 0.05  # seconds between two steps of the progress bar; blocks arrive by the thousand
_MEGABYTE = 1e6


class ModelDownload(QWidget):
    """The models that are not on this computer yet, and a button that fetches one.

    Args:
        owner: the widget with threads, progress and the list of models.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        super().__init__()
        self._owner = owner
        self.names = QComboBox()
        self.names.setEditable(True)
        self.names.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        cast(QLineEdit, self.names.lineEdit()).setPlaceholderText("model to download")
        self.names.setToolTip(
            "Models that are not on this computer yet. You can also type METHOD:CONFIGURATION/TAG of any CLIP of "
            "open_clip, such as naclip:ViT-B-32/openai."
        )
        show_long_names(self.names)
        self.button: QPushButton = tool_button(
            "Download", "Download this model and choose it. Cancel stops the download."
        )
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(QLabel("More models"))
        layout.addWidget(self.names, 1)
        layout.addWidget(self.button)
        self.button.clicked.connect(lambda: self.fetch())
        self.refill()

    def refill(self) -> None:
        """Offer the models that are not here now."""
        entries = load_manifest().models
        self.names.clear()
        for row in list_models():
            by_hand = row.name in entries and entries[row.name].by_hand is not None
            if not row.installed and not by_hand:
                self.names.addItem(row.name)
        self.names.setCurrentIndex(-1)

    def fetch(self) -> None:
        """Download the model that is named in the field."""
        name = self.names.currentText().strip()
        if not name:
            self._owner.fail("no model to download is named; choose one from the list, or type its name")
            return

        def work(reporter: Reporter) -> str:
            reporter.tell(Step(f"asking for {name}"))
            fetch_model(name, progress=_Teller(reporter))
            return name

        def on_end(outcome: Outcome) -> None:
            if outcome.cancelled:
                self._owner.buttons.say(f"{name}: the download was canceled")
            if outcome.result is None:
                return
            self.refill()
            self._owner.model.model.reset_choices()
            if name in self._owner.model.model.choices:
                self._owner.model.model.value = name
                self._owner.model.file.value = None
            self._owner.buttons.say(f"{name} is downloaded")

        def on_news(news: object) -> None:
            if isinstance(news, Step):
                self._owner.buttons.show_progress(news.text, news.share)

        self._owner.start(work, on_end, on_news)


class _Teller:
    """Turns blocks that arrive into a few steps of the progress bar."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._next = 0.0

    def __call__(self, transfer: Transfer) -> None:
        now = time.monotonic()
        if now < self._next and transfer.done != transfer.total:
            return
        self._next = now + _INTERVAL
        done = f"{transfer.done / _MEGABYTE:,.1f}"
        if transfer.total is None:
            self._reporter.tell(Step(f"downloading {transfer.file_name}: {done} MB"))
            return
        text = f"downloading {transfer.file_name}: {done} of {transfer.total / _MEGABYTE:,.1f} MB"
        self._reporter.tell(Step(text, transfer.done / transfer.total))
