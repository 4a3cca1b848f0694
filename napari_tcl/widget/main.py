"""The widget: forms on top, results in the viewer's layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from napari.layers import Image
from napari.utils.notifications import show_error
from numpy.typing import NDArray
from qtpy.QtCore import QEvent, QSize, Qt, QTimer
from qtpy.QtWidgets import QApplication, QScrollArea, QTabWidget, QVBoxLayout, QWidget

from napari_tcl.docs_folder import docs_page
from napari_tcl.export import export_coco
from napari_tcl.history import Step
from napari_tcl.model_cache import Engine
from napari_tcl.results import Results
from napari_tcl.slices import Index, SliceReader
from napari_tcl.widget.buttons import RunButtons, tool_button
from napari_tcl.widget.docs_window import DocsWindow
from napari_tcl.widget.folder_tab import FolderTab
from napari_tcl.widget.gl_guard import CanvasGuard
from napari_tcl.widget.label_row import Surroundings
from napari_tcl.widget.label_table import LabelTable
from napari_tcl.widget.layer_watch import LayerWatch
from napari_tcl.widget.model_download import ModelDownload
from napari_tcl.widget.model_form import ModelForm
from napari_tcl.widget.options import BackgroundForm, ImageForm, PolygonForm
from napari_tcl.widget.overlays import Overlays
from napari_tcl.widget.question import QuestionBar
from napari_tcl.widget.remembering import Memory
from napari_tcl.widget.removing import LabelRemover
from napari_tcl.widget.save_dialog import ask_save_path
from napari_tcl.widget.section import Section, stacked
from napari_tcl.widget.tasks import OnEnd, OnNews, Outcome, Task, TaskList, Work
from napari_tcl.widget.wheel import guard_wheel
from napari_tcl.widget.workers import RelabelRun, SegmentRun, SliceDone
from napari_tcl.widget.workers import Step as ProgressStep
from tcl_core.errors import TclError
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from napari.viewer import Viewer

__all__ = ["SegmentWidget"]

_WIDTH = 400
_NOTHING_FOUND = "nothing found{}; try lower thresholds, other words, or no background"


class SegmentWidget(QWidget):
    """Type labels, see masks, correct and accept them, export COCO.

    Args:
        napari_viewer: the viewer that it is docked to.
    """

    def __init__(self, napari_viewer: Viewer) -> None:
        super().__init__()
        # The menu hands over a proxy, which wraps a layer anew each time it is asked for it, so that none would be the
        # one that was remembered.
        self.viewer: Viewer = inspect.unwrap(napari_viewer)
        self.engine = Engine()
        self.tasks = TaskList()
        self._task: Task | None = None
        self._task_layer: Image | None = None
        self._task_relabels = False
        self._outdated = False
        self._waiting: Callable[[], None] | None = None
        self._summary_stale = False
        self.image_form = ImageForm(self.viewer)
        self.labels = LabelTable()
        self.background = BackgroundForm()
        self.model = ModelForm()
        self.polygons = PolygonForm()
        self.question = QuestionBar()
        self.buttons = RunButtons()
        self.folder = FolderTab(self)
        self.overlays = Overlays(self)
        self.remover = LabelRemover(self)
        self._guard = CanvasGuard(self.viewer, self)
        self.download = ModelDownload(self)
        self._lay_out()
        self.layers = LayerWatch(self)
        self._connect()
        self.memory = Memory(self)
        self.layers.start()

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
        layout.addWidget(self.question)
        layout.addWidget(self.buttons)
        guard_wheel(self.tabs)
        self._summarize_forms()

    def _connect(self) -> None:
        self._take_errors_back()
        self.labels.around = self._around_labels
        self.labels.failed.connect(self.fail)
        self.labels.said.connect(self.buttons.say)
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
        self.buttons.redo.clicked.connect(lambda: self.redo())
        self.buttons.export.clicked.connect(lambda: self._ask_export())
        for form in (self.image_form, self.image_form.channel_form, self.model):
            form.changed.connect(lambda _: self._summarize_forms())
        # Whichever comes first. The lambdas hold the list, which has to outlive this widget.
        tasks = self.tasks
        self.destroyed.connect(lambda: tasks.close())
        cast(QApplication, QApplication.instance()).aboutToQuit.connect(lambda: tasks.close())

    def _take_errors_back(self) -> None:
        """Clear an error once the user changes what it may be about; connected first, so that a new error stays."""
        for signal in (self.labels.words_changed, self.labels.thresholds_changed, self.labels.loaded):
            signal.connect(lambda *_: self.buttons.message.take_back())
        for form in (self.image_form, self.image_form.channel_form, self.background, self.model, self.polygons):
            form.changed.connect(lambda *_: self.buttons.message.take_back())

    def sizeHint(self) -> QSize:  # noqa: N802 - Qt's name
        """Somewhat wider than it must be, so that prompts can be read; a dock can be made narrower."""
        return super().sizeHint().expandedTo(QSize(_WIDTH, 0))

    def changeEvent(self, event: QEvent | None) -> None:  # noqa: N802 - Qt's name
        """Napari takes the widget out of a dock that is closed, but neither closes nor deletes it."""
        super().changeEvent(event)
        if event is not None and event.type() == QEvent.Type.ParentChange and self.parent() is None:
            # Later, because a script may put it into another dock at once.
            QTimer.singleShot(0, self._end_undocked)

    def _end_undocked(self) -> None:
        # The window may be gone by now.
        with suppress(RuntimeError):
            if self.parent() is None:
                self.tasks.close()
                # The layers keep their results, but the model must not stay with them.
                for results in self.results:
                    results.sessions.clear()
                self.engine = Engine()
                self.deleteLater()

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
            if every_slice:
                layer, reader = self.image_form.source()
                indices = list(reader.indices())
            else:
                layer, reader, index = self.image_form.reader()
                indices = [index]
            vocabulary, ids = self.searched()
            choice = self.model.choice()
            least = self.polygons.least()
        except TclError as error:
            self.fail(str(error))
            return
        self._outdated = False
        run = SegmentRun(self.engine, choice, reader, indices, vocabulary, least)
        step = Step("the run")
        found = np.zeros(len(ids) + 1, np.int64)

        def on_news(news: object) -> None:
            if isinstance(news, SliceDone) and not self._outdated:
                self._show_slice(layer, reader, news, ids, step)
                found[:] += np.bincount(news.found.label_map.ravel(), minlength=len(found))
            elif isinstance(news, ProgressStep):
                self.buttons.show_progress(news.text, news.share)

        def on_end(outcome: Outcome) -> None:
            self._task_layer = None
            if outcome.error is None and layer not in self.viewer.layers:
                self.fail(f"the layer {layer.name!r} was removed in the meantime, so its result is discarded")
            elif self._outdated and outcome.error is None:
                self.buttons.say(
                    f"the image of {layer.name!r} was replaced, so its run was cancelled; segment it again"
                )
            elif outcome.cancelled:
                self.buttons.say(_cancelled(len(step.slices), len(indices)))
            elif outcome.result is not None:
                if self.engine.loaded is not None:
                    self.background.show_default(self.engine.loaded.settings()["background_threshold"])
                self._summary_stale = len(indices) == 1
                if self._summary_stale:
                    self.summarize(layer)
                else:
                    self.buttons.say(_found(found, vocabulary.names, len(indices)))

        self.start(run, on_end, on_news)
        self._task_layer = layer

    def cancel(self) -> None:
        """End the work that is going on; what is shown stays."""
        if self._task is not None:
            self._waiting = None
            self.buttons.show_progress("cancelling", None)
            self._task.cancel()

    def accept(self) -> None:
        """Move the chosen label's regions to the accepted layer, of the slice that is shown or of all."""
        found = self._scope("accept")
        if found is None:
            return
        results, indices = found
        chosen = int(results.draft.selected_label)
        names = {label.id: label.name for label in self.labels.shown_labels()}
        if chosen not in names:
            self.fail("select the label to accept: click its row in the table")
            return
        moved = results.accept(indices, [chosen])
        if not moved:
            what = "these slices" if len(indices) > 1 else "this slice" if results.is_stack else "this image"
            self.buttons.say(f"{names[chosen]} has nothing to accept in {what}; click the row of another label")
            return
        step = results.annotation.history.last
        count = 1 if step is None else len(step.slices)
        where = "" if len(indices) == 1 else " in 1 slice" if count == 1 else f" in {count} slices"
        self.buttons.say(f"{names[chosen]}: {moved:,} pixels accepted{where}; later runs keep them")
        self.overlays.follow()

    def undo(self) -> None:
        """Take back the last run, acceptance or removal (strokes are taken back by Ctrl+Z in their layer)."""
        self._replay(self.remover.undo, "undone", "there is no run, acceptance or removal to undo")

    def redo(self) -> None:
        """Do again what was undone last."""
        self._replay(self.remover.redo, "done again", "there is nothing to redo")

    def _replay(self, action: Callable[[Results | None], str | None], done: str, nothing: str) -> None:
        results = self.current_results()
        what = action(results)
        if what is None:
            self.buttons.say(nothing)
            return
        self.buttons.say(f"{done}: {what}")
        if results is not None:
            self.layers.name_painted(results)
            self.overlays.show_scores()
            self.overlays.follow()

    def relabel(self) -> None:
        """Decide anew with other thresholds; the network does not run."""
        current = self.current()
        if current is None:
            return
        results, shown = current
        if self._task is not None:
            if self._task_relabels:
                # Thresholds of a moment ago.
                self._task.cancel()
            self._waiting = self._waiting or self.relabel
            return
        try:
            (vocabulary, ids), least = self.searched(), self.polygons.least()
        except TclError:
            # Half-typed labels are checked when Segment is pressed.
            return
        note = results.annotation
        others = [index for index in note.indices() if index != shown] if self.buttons.every.isChecked() else []
        wanted = [index for index in (shown, *others) if note.segmented(index)]
        known = [(index, results.sessions.get(index)) for index in wanted]
        ready = [(index, one) for index, one in known if one is not None and one.has_scores(vocabulary)]
        if not ready:
            self.buttons.say("press Segment to apply your changes")
            return

        def on_news(news: object) -> None:
            if isinstance(news, SliceDone) and results.alive:
                found = news.found
                box = results.show(news.index, found.label_map, found.score_map, self._still_there(ids))
                # Drawing takes longer than all else, and the slider may have moved.
                here = self.current()
                if box is not None and (here is None or here[1] == news.index):
                    results.draw(news.index, box)

        def on_end(outcome: Outcome) -> None:
            if outcome.result is not None and results.present:
                self._summary_stale = True
                self.overlays.follow()
                if len(ready) < len(wanted):
                    self.buttons.say(
                        f"{len(ready)} of {len(wanted)} slices follow the threshold; segment the others again"
                    )

        self.start(RelabelRun(ready, vocabulary, least), on_end, on_news, quiet=True)
        self._task_relabels = True

    def export(self, path: str | Path) -> None:
        """Write the image's labels, or all labeled slices of a stack, to a COCO file."""
        exported = self._exported()
        if exported is None:
            return
        results, vocabulary = exported
        # The model that made the draft, whatever is chosen in the form by now.
        loaded = self.engine.loaded
        settings = {} if loaded is None else loaded.settings()
        ids, geometry, tolerance = self.labels.ids, self.polygons.geometry.value, float(self.polygons.tolerance.value)
        images = results.labeled_slices()

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

    def _exported(self) -> tuple[Results, Vocabulary] | None:
        """What is exported; says why there is nothing."""
        results = self.current_results()
        if results is None or not results.labeled_slices():
            self.fail("there is nothing to export; segment the image first")
            return None
        self.layers.name_painted(results)
        try:
            return results, self.vocabulary()
        except TclError as error:
            self.fail(str(error))
            return None

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
            self._task_relabels = False
            if not quiet:
                self.buttons.set_running(False)
            if outcome.error is not None:
                self.fail(outcome.error)
            elif outcome.cancelled and not quiet:
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
        return self.layers.results_for(layer, reader)

    @property
    def results(self) -> list[Results]:
        """The results of all images in the viewer."""
        return self.layers.results

    def current_results(self) -> Results | None:
        """Results of the chosen image, if there are any."""
        try:
            return self.layers.find(*self.image_form.source())
        except TclError:
            return None

    def current(self) -> tuple[Results, Index] | None:
        """Results of the chosen image and the slice that is shown, if there are any."""
        results = self.current_results()
        if results is None:
            return None
        try:
            return results, self.image_form.reader()[2]
        except TclError:
            return None

    def stop_if_removed(self) -> None:
        """End the work on an image whose layer was removed."""
        if self._task is not None and self._task_layer is not None and self._task_layer not in self.viewer.layers:
            self._task.cancel()

    def stop_on(self, layer: Image) -> None:
        """End the work on an image, because its layer shows another now."""
        if self._task is not None and self._task_layer is layer:
            # It may be done already, with its result on the way.
            self._outdated = True
            self.cancel()

    def _scope(self, verb: str) -> tuple[Results, list[Index]] | None:
        """The chosen image's results and the slices to work on; says why there are none."""
        results = self.current_results()
        if results is None:
            self.fail(f"there is nothing to {verb}; segment the image first")
            return None
        if self.buttons.every.isChecked():
            return results, results.labeled_slices()
        try:
            return results, [self.image_form.reader()[2]]
        except TclError as error:
            self.fail(str(error))
            return None

    def searched(self) -> tuple[Vocabulary, tuple[int, ...]]:
        """What the model is asked for: the labels that are more than paint, and their ids."""
        return self.labels.searched()

    # -- reactions -----------------------------------------------------------------------------------------------

    def _show_slice(self, layer: Image, reader: SliceReader, news: SliceDone, ids: tuple[int, ...], step: Step) -> None:
        if layer not in self.viewer.layers:
            return
        results = self.results_for(layer, reader)
        results.show(news.index, news.found.label_map, news.found.score_map, self._still_there(ids), step)
        results.style(self.labels.shown_labels())
        results.sessions.put(news.index, news.session)
        results.draft.refresh(extent=False)
        self.overlays.show_scores()
        self.overlays.follow()

    def _still_there(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Ids of labels, with 0 for those that were removed since the work began."""
        return tuple(number if number in self.labels.ids else 0 for number in ids)

    def summarize(self, layer: Image) -> None:
        """Say how much of the slice that is shown each label covers, if the model changed that since."""
        current = self.current()
        if not self._summary_stale or current is None or current[0].image is not layer:
            return
        self._summary_stale = False
        found, index = current
        labels = self.labels.shown_labels()
        counts = np.bincount(found.annotation.combined(index).ravel(), minlength=max(self.labels.ids, default=0) + 1)
        if not counts[1:].any():
            self.buttons.say(_NOTHING_FOUND.format(""))
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
        results = self.current_results()
        if results is not None:
            results.draft.selected_label = label_id

    def _around_labels(self) -> Surroundings:
        return Surroundings(self.background.value, self.background.competing_names, self.model.own_templates)

    def _take_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.model.set_templates(vocabulary.templates)
        self.background.set_value(vocabulary.background, vocabulary.background_threshold, vocabulary.background_names)

    def _ask_export(self) -> None:
        if self._exported() is None:
            return
        if path := ask_save_path(self, "Export COCO", "labels.json", "COCO (*.json)"):
            self.export(path)


def _found(counts: NDArray[np.int64], names: Sequence[str], slices: int) -> str:
    """What a run over slices found: pixels without a label, then those of each label."""
    if not counts[1:].any():
        return _NOTHING_FOUND.format(f" in {slices} slices")
    shares = (f"{name} {count / counts.sum():.1%}" for name, count in zip(names, counts[1:].tolist(), strict=True))
    return f"{slices} slices segmented: {', '.join(shares)}"


def _cancelled(done: int, total: int) -> str:
    if total == 1 or not done:
        return "cancelled; the layers are unchanged"
    noun, verb = ("slice", "keeps its") if done == 1 else ("slices", "keep their")
    return f"cancelled after {done} of {total} slices: {done} {noun} {verb} new labels; Undo takes them back"
