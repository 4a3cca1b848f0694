"""The widget: forms on top, results in the viewer's layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from napari.layers import Image
from napari.utils.notifications import show_error
from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import QApplication, QFileDialog, QScrollArea, QTabWidget, QVBoxLayout, QWidget

from napari_tcl.docs_folder import docs_page
from napari_tcl.export import export_coco
from napari_tcl.model_cache import Engine
from napari_tcl.results import Results
from napari_tcl.slices import Index, SliceReader
from napari_tcl.widget.buttons import RunButtons, tool_button
from napari_tcl.widget.docs_window import DocsWindow
from napari_tcl.widget.folder_tab import FolderTab
from napari_tcl.widget.following import follow_selection
from napari_tcl.widget.gl_guard import CanvasGuard
from napari_tcl.widget.label_table import LabelTable
from napari_tcl.widget.model_download import ModelDownload
from napari_tcl.widget.options import BackgroundForm, ImageForm, ModelForm, PolygonForm
from napari_tcl.widget.overlays import Overlays
from napari_tcl.widget.remembering import Memory
from napari_tcl.widget.removing import LabelRemover
from napari_tcl.widget.section import Section, stacked
from napari_tcl.widget.tasks import OnEnd, OnNews, Outcome, Task, TaskList, Work
from napari_tcl.widget.wheel import guard_wheel
from napari_tcl.widget.workers import SegmentRun, SliceDone, Step
from tcl_core.errors import TclError
from tcl_core.segmentation.specks import without_specks
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["SegmentWidget"]

_SESSIONS_AT_HAND = 3
_ACCEPT_KEY = "c"
_WIDTH = 400


class SegmentWidget(QWidget):
    """Type labels, see masks, correct and accept them, export COCO.

    Args:
        napari_viewer: the viewer that it is docked to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        # Opened through the menu, the widget is given a proxy that hands out a new wrapper of a layer each time, so that
        # no layer would be the one that was remembered.
        self.viewer: Viewer = inspect.unwrap(napari_viewer)
        self.engine = Engine()
        self.results: list[Results] = []
        self.tasks = TaskList()
        self._task: Task | None = None
        self._task_layer: Image | None = None
        self._waiting: Callable[[], None] | None = None
        self._summary_stale = False
        self.image_form = ImageForm(self.viewer)
        self.labels = LabelTable()
        self.background = BackgroundForm()
        self.model = ModelForm()
        self.polygons = PolygonForm()
        self.buttons = RunButtons()
        self.folder = FolderTab(self)
        self.overlays = Overlays(self)
        self.remover = LabelRemover(self)
        self._guard = CanvasGuard(self.viewer, self)
        self.download = ModelDownload(self)
        self._lay_out()
        self._connect()
        self.memory = Memory(self)

    def _lay_out(self) -> None:
        page = QWidget()
        column = QVBoxLayout(page)
        column.setContentsMargins(4, 4, 4, 4)
        column.setSpacing(4)
        column.addWidget(self.image_form.native)
        # What is set once is folded away, so that a small screen shows what is used all day.
        self.sections = {
            "channels": Section("Channels", self.image_form.channel_form.native, folded=True),
            "labels": Section("Labels", self.labels),
            "background": Section("Background", self.background.native),
            "model": Section("Model", stacked(self.model.native, self.download), folded=True),
            "result": Section("Polygons and export", self.polygons.native, folded=True),
        }
        for section in self.sections.values():
            column.addWidget(section)
        column.addStretch()
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setWidget(page)
        self.tabs = QTabWidget()
        self.tabs.addTab(scroll, "Image")
        self.tabs.addTab(self.folder, "Folder")
        docs = tool_button("Docs", "Open the documentation of this plugin.")
        docs.clicked.connect(lambda: self.show_docs())
        self.tabs.setCornerWidget(docs)
        self.tabs.setTabToolTip(0, "Segment the image or stack in the viewer.")
        self.tabs.setTabToolTip(1, "Segment a folder of images and review them one by one.")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(4)
        layout.addWidget(self.tabs)
        layout.addWidget(self.buttons)
        guard_wheel(self.tabs)
        self._summarize_forms()

    def _connect(self) -> None:
        self.labels.failed.connect(self.fail)
        self.labels.thresholds_changed.connect(self.relabel)
        self.labels.look_changed.connect(self._restyle)
        self.labels.words_changed.connect(self._restyle)
        self.labels.label_chosen.connect(self._choose)
        self.labels.loaded.connect(self._take_vocabulary)
        self.background.changed.connect(self.relabel)
        self.buttons.segment.clicked.connect(lambda: self.segment())
        self.buttons.segment_all.clicked.connect(lambda: self.segment(every_slice=True))
        self.buttons.cancel.clicked.connect(lambda: self.cancel())
        self.buttons.accept.clicked.connect(lambda: self.accept())
        self.buttons.undo.clicked.connect(lambda: self.undo())
        self.buttons.export.clicked.connect(lambda: self._ask_export())
        for event in (self.viewer.layers.events.inserted, self.viewer.layers.events.removed):
            event.connect(self.tasks.while_open(self.image_form.refill))
        self.viewer.layers.events.removed.connect(self.tasks.while_open(self._on_removed))
        follow_selection(self)
        for form in (self.image_form.channel_form, self.model):
            form.changed.connect(lambda _: self._summarize_forms())
        # Whichever comes first. The lambdas hold the list, which has to outlive this widget.
        tasks = self.tasks
        self.destroyed.connect(lambda: tasks.close())
        cast(QApplication, QApplication.instance()).aboutToQuit.connect(lambda: tasks.close())

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        """Somewhat wider than it must be, so that prompts can be read; a dock can be made narrower."""
        return super().sizeHint().expandedTo(QSize(_WIDTH, 0))

    # -- what the buttons do -------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether work is going on in a thread."""
        return self._task is not None or self.overlays.busy

    @property
    def idle(self) -> bool:
        """Whether the labels are as they will stay; polygons may still follow."""
        return self._task is None

    def segment(self, every_slice: bool = False) -> None:
        """Segment the slice that is shown, or all slices; results appear in the layers as they come."""
        if self._task is not None:
            # Called anew later, so that it sees what is changed until then.
            self._waiting = partial(self.segment, every_slice)
            return
        try:
            layer, reader, index = self.image_form.reader()
            vocabulary = self.vocabulary()
            choice = self.model.choice()
            least = self.polygons.least()
        except TclError as error:
            self.fail(str(error))
            return
        indices = list(reader.indices()) if every_slice else [index]
        run = SegmentRun(self.engine, choice, reader, indices, vocabulary, least)
        ids = self.labels.ids

        def on_news(news: object) -> None:
            if isinstance(news, SliceDone):
                self._show_slice(layer, reader, news, ids)
            elif isinstance(news, Step):
                self.buttons.show_progress(news.text, news.share)

        def on_end(outcome: Outcome) -> None:
            self._task_layer = None
            if outcome.error is None and layer not in self.viewer.layers:
                self.fail(f"the layer {layer.name!r} was removed in the meantime, so its result is discarded")
            elif outcome.result is not None:
                self._summary_stale = True
                self.summarize(layer, index)

        self.start(run, on_end, on_news)
        self._task_layer = layer

    def cancel(self) -> None:
        """End the work that is going on; what is shown stays."""
        if self._task is not None:
            self._waiting = None
            self.buttons.show_progress("cancelling", None)
            self._task.cancel()

    def accept(self) -> None:
        """Move the chosen label's regions to the accepted layer."""
        current = self.current()
        if current is None:
            self.fail("there is nothing to accept; segment the image first")
            return
        results, index = current
        chosen = int(results.draft.selected_label)
        names = {label.id: label.name for label in self.labels.shown_labels()}
        if chosen not in names:
            self.fail("select the label to accept: click its row in the table")
            return
        moved = results.accept(index, [chosen])
        self.buttons.say(f"{names[chosen]}: {moved:,} pixels accepted; later runs keep them")
        self.overlays.follow()

    def undo(self) -> None:
        """Take back the last run, acceptance or removed label; Ctrl+Z takes back strokes in their layer."""
        current = self.current()
        if current is not None and current[0].undo() is not None:
            self.buttons.say("undone")
        elif (names := self.remover.undo()) is not None:
            self.buttons.say(f"{names}: restored")
        else:
            self.buttons.say("there is nothing to undo: no run, no acceptance, no removed label")
            return
        self.overlays.follow()

    def relabel(self) -> None:
        """Decide anew with other thresholds; the network does not run."""
        current = self.current()
        if current is None:
            return
        results, index = current
        session = results.sessions.get(index)
        try:
            vocabulary, least = self.vocabulary(), self.polygons.least()
        except TclError:
            # Half-typed labels are checked when Segment is pressed.
            return
        if session is None or not session.has_scores(vocabulary):
            self.buttons.say("press Segment to apply your changes")
            return
        if self._task is not None:
            self._waiting = self._waiting or self.relabel
            return
        ids = self.labels.ids

        def on_end(outcome: Outcome) -> None:
            if outcome.result is not None and results.present:
                found = outcome.result
                results.show(index, found.label_map, found.score_map, self._still_there(ids))
                self._summary_stale = True
                self.overlays.follow()

        self.start(
            lambda reporter: without_specks(session.segment(vocabulary), session.segmenter.model, least),
            on_end,
            quiet=True,
        )

    def export(self, path: str | Path) -> None:
        """Write the image's labels, or all labeled slices of a stack, to a COCO file."""
        current = self.current()
        if current is None:
            self.fail("there is nothing to export; segment the image first")
            return
        results, _ = current
        try:
            vocabulary = self.vocabulary()
        except TclError as error:
            self.fail(str(error))
            return
        # The model that made the draft, whatever is chosen in the form by now.
        loaded = self.engine.loaded
        settings = {} if loaded is None else loaded.settings()
        ids, geometry, tolerance = self.labels.ids, self.polygons.geometry.value, float(self.polygons.tolerance.value)
        images = list(results.labeled_slices())

        def work(reporter: object) -> int:
            annotated = (results.annotated(index, ids, vocabulary.names) for index in images)
            export_coco(path, annotated, vocabulary, settings, geometry=geometry, tolerance=tolerance)
            return len(images)

        def on_end(outcome: Outcome) -> None:
            if outcome.result is not None:
                noun = "image" if outcome.result == 1 else "images"
                self.buttons.say(f"{Path(path).name}: {outcome.result} {noun} written")

        self.start(work, on_end)
        self.buttons.show_progress(f"writing {Path(path).name}", None)

    def show_docs(self) -> None:
        """Open the documentation in a window of its own."""
        page = docs_page()
        if page is None:
            self.fail("the documentation is not part of this installation; reinstall tcl-annotate from a built wheel")
            return
        self.docs = DocsWindow(page, self)
        self.docs.show()

    # -- parts that the folder tab uses too ------------------------------------------------------------------------

    def vocabulary(self) -> Vocabulary:
        """The labels of the table with the background as chosen.

        Raises:
            VocabularyError: see `LabelTable.vocabulary`.
        """
        self.labels.background = self.background.value
        self.labels.background_names = self.background.competing_names
        return self.labels.vocabulary()

    def fail(self, text: str) -> None:
        """Say what went wrong, in the viewer and in the widget."""
        self.buttons.say(text, error=True)
        show_error(text)

    def start(
        self,
        work: Work,
        on_end: OnEnd,
        on_news: OnNews | None = None,
        quiet: bool = False,
    ) -> None:
        """Run work in a thread; what is asked for meanwhile waits, of which the last counts.

        Args:
            work: see `Task`.
            on_end: told how it ended, after errors were shown.
            on_news: told in the window's thread what the work tells.
            quiet: the work takes a moment, so buttons and progress stay as they are.
        """
        if self._task is not None:
            self._waiting = lambda: self.start(work, on_end, on_news, quiet)
            return

        def ended(outcome: Outcome) -> None:
            self._task = None
            if not quiet:
                self.buttons.set_running(False)
            if outcome.error is not None:
                self.fail(outcome.error)
            elif outcome.cancelled:
                self.buttons.say("cancelled; the layers are unchanged")
            on_end(outcome)
            waiting, self._waiting = self._waiting, None
            if waiting is not None and self._task is None:
                waiting()

        if not quiet:
            self.buttons.set_running(True)
        self._task = self.tasks.start(work, ended, on_news)

    def results_for(self, layer: Image, reader: SliceReader) -> Results:
        """The layers of an image's results; made if they are not there, or were removed."""
        for results in self.results:
            if results.image is layer and results.present and results.fits(reader):
                return results
        results = Results(self.viewer, layer, reader, self.labels.shown_labels())
        results.draft.bind_key(_ACCEPT_KEY, self.tasks.while_open(self.accept), overwrite=True)
        results.draft.events.paint.connect(self.tasks.while_open(self.overlays.follow))
        self.results.append(results)
        if self.labels.ids:
            row = max(self.labels.table.currentRow(), 0)
            results.draft.selected_label = self.labels.ids[row]
        self.viewer.layers.selection.active = results.draft
        return results

    def current(self) -> tuple[Results, Index] | None:
        """Results of the chosen image and the slice that is shown, if there are any."""
        try:
            layer, reader, index = self.image_form.reader()
        except TclError:
            return None
        for results in reversed(self.results):
            if results.image is layer and results.present and results.fits(reader):
                return results, index
        return None

    # -- reactions -----------------------------------------------------------------------------------------------

    def _show_slice(self, layer: Image, reader: SliceReader, news: SliceDone, ids: tuple[int, ...]) -> None:
        if layer not in self.viewer.layers:
            return
        results = self.results_for(layer, reader)
        results.annotation.remember(news.index)
        results.show(news.index, news.found.label_map, news.found.score_map, self._still_there(ids))
        results.style(self.labels.shown_labels())
        results.sessions.pop(news.index, None)
        results.sessions[news.index] = news.session
        while len(results.sessions) > _SESSIONS_AT_HAND:
            results.sessions.pop(next(iter(results.sessions)))
        self.overlays.show_scores()
        self.overlays.follow()

    def _still_there(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Ids of labels, with 0 for those that were removed since the work began."""
        return tuple(number if number in self.labels.ids else 0 for number in ids)

    def summarize(self, layer: Image, index: Index) -> None:
        """Say how much of a slice each label covers, if the model changed that since it was said last."""
        if not self._summary_stale:
            return
        self._summary_stale = False
        found = next((results for results in self.results if results.image is layer and results.present), None)
        if found is None:
            return
        labels = self.labels.shown_labels()
        counts = np.bincount(found.annotation.combined(index).ravel(), minlength=max(self.labels.ids, default=0) + 1)
        if not counts[1:].any():
            self.buttons.say("nothing found; try lower thresholds, other words, or no background")
            return
        shares = (f"{label.name} {counts[label.id] / counts.sum():.0%}" for label in labels)
        self.buttons.say(", ".join(shares))

    def _summarize_forms(self) -> None:
        self.sections["channels"].set_summary(self.image_form.summary)
        self.sections["model"].set_summary(self.model.summary)

    def _restyle(self) -> None:
        for results in self.results:
            if results.present:
                results.style(self.labels.shown_labels())

    def _choose(self, label_id: int) -> None:
        current = self.current()
        if current is not None:
            current[0].draft.selected_label = label_id

    def _take_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.labels.templates = vocabulary.templates
        self.background.set_value(vocabulary.background, vocabulary.background_threshold, vocabulary.background_names)

    def _on_removed(self) -> None:
        self.results = [results for results in self.results if results.present]
        if self._task is not None and self._task_layer is not None and self._task_layer not in self.viewer.layers:
            self._task.cancel()

    def _ask_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Export COCO", "labels.json", "COCO (*.json)")
        if path:
            self.export(path)
