"""The tab for many images: label all, open each for correction, write one COCO file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, FileEdit
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QListWidget, QListWidgetItem, QVBoxLayout
from qtpy.QtWidgets import QWidget as Widget

from napari_tcl.feature_store import MAX_FOLDER_BYTES, MAX_IMAGE_BYTES, FeatureFolder
from napari_tcl.folder import FolderJob, ImageState, JobChangedError, beside
from napari_tcl.results import Results
from napari_tcl.widget.buttons import tool_button
from napari_tcl.widget.save_dialog import ask_save_path
from napari_tcl.widget.tasks import Outcome, Reporter
from napari_tcl.widget.workers import Step
from tcl_core.errors import SettingsError, TclError
from tcl_core.images import load_image
from tcl_core.segmentation.session import ImageSession, Progress, ProgressCallback
from tcl_core.segmentation.specks import without_specks
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["FolderTab"]

_MARKS = {"waiting": "·", "labeled": "○", "corrected": "●", "failed": "✕"}
_NAME_ROLE = Qt.ItemDataRole.UserRole


class FolderTab(Widget):
    """A folder's images and where each stands.

    Args:
        owner: the widget with labels, model and threads.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        super().__init__()
        self.owner = owner
        self.job: FolderJob | None = None
        self._items: dict[str, QListWidgetItem] = {}
        self._opened: _Opened | None = None
        self._features: FeatureFolder | None = None
        self.folder = FileEdit(
            label="Folder",
            mode=FileDialogMode.EXISTING_DIRECTORY,
            tooltip="Folder of images to label, including its subfolders.",
        )
        self.run_button = tool_button(
            "Label folder / resume",
            "Label every image that has no labels yet, with the labels and the model of the first tab. Masks are "
            "stored next to the folder in FOLDER.masks, so that you can stop and resume.",
        )
        self.keep_features = CheckBox(
            text="Keep features on disk",
            value=True,
            tooltip="On: what the model computed for each image is kept next to the folder in FOLDER.features (at most "
            f"{MAX_IMAGE_BYTES / 1e6:.0f} MB an image, {MAX_FOLDER_BYTES / 1e9:.0f} GB in all), so that thresholds and "
            "prompts respond at once when an image is opened again. The folder can be deleted at any time.",
        )
        self.images = QListWidget()
        self.images.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        self.images.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.images.setToolTip("· waiting   ○ labeled   ● corrected by you   ✕ failed. Double-click opens an image.")
        self.open_button = tool_button("Open", "Open the selected image with its labels for correction.")
        self.save_button = tool_button(
            "Save and next", "Save the corrections of the current image and open the next one."
        )
        self.export_button = tool_button(
            "Export folder...", "Write the labels of all finished images to one COCO file."
        )
        layout = QVBoxLayout(self)
        layout.addWidget(QLabel("Folder of images"))
        layout.addWidget(self.folder.native)
        layout.addWidget(self.run_button)
        layout.addWidget(self.keep_features.native)
        layout.addWidget(self.images)
        grid = QGridLayout()
        for place, button in enumerate((self.open_button, self.save_button, self.export_button)):
            grid.addWidget(button, 0, place)
        layout.addLayout(grid)
        self.run_button.clicked.connect(lambda: self.run())
        self.images.itemDoubleClicked.connect(lambda item: self.open(item.data(_NAME_ROLE)))
        self.open_button.clicked.connect(lambda: self._open_chosen())
        self.save_button.clicked.connect(lambda: self.save_and_next())
        self.export_button.clicked.connect(lambda: self._ask_export())

    @property
    def chosen_folder(self) -> str:
        """The folder as chosen, empty for none."""
        text = "" if self.folder.value is None else str(self.folder.value)
        return "" if text == "." else text

    def run(self, new_folder: bool = False) -> None:
        """Label the images that are waiting; an interrupted job is resumed.

        Args:
            new_folder: begin anew beside the masks of jobs with other labels or settings.
        """
        folder = Path(self.chosen_folder)
        try:
            vocabulary, _ = self.owner.searched()
            choice = self.owner.model.choice()
            least = self.owner.polygons.least()
        except TclError as error:
            self.owner.fail(str(error))
            return
        if not self.chosen_folder or not folder.is_dir():
            self.owner.fail("the folder does not exist; choose the folder that contains the images")
            return
        engine = self.owner.engine
        try:
            kept = FeatureFolder(beside(folder, "features")) if self.keep_features.value else None
        except TclError as error:
            self.owner.fail(str(error))
            return
        self._features = kept

        def work(reporter: Reporter) -> FolderJob:
            reporter.tell(Step(f"loading the model {choice.model}"))
            segmenter = engine.segmenter(choice)
            job = open_job(folder, vocabulary, segmenter.settings(), new_folder=new_folder)
            reporter.tell(job)
            places = {name: place for place, name in enumerate(job.images.file_names)}

            def told(name: str) -> ProgressCallback:
                def tell(_: Progress) -> None:
                    reporter.tell(Step(f"labeling {name}", places[name] / len(places)))

                return tell

            with engine.cache.beside(kept):
                for state in job.run(segmenter, told, min_area=least):
                    reporter.tell(state)
            return job

        self.owner.start(work, self._on_end, self._on_news)

    def open(self, file_name: str) -> None:
        """Show an image with its labels, in place of the one that is open; asks first if that was changed."""
        if self.job is None:
            self.owner.fail("no folder is labeled yet; choose a folder and label it first")
            return
        if self._opened is None or not self._opened.unsaved:
            self._open(self.job, file_name)
            return
        job = self.job

        def save_and_open() -> None:
            if self.save():
                self._open(job, file_name)

        self.owner.question.ask(
            "unsaved",
            f"Your changes to {self._opened.name} are not saved.",
            {
                f"Save, open {file_name}": save_and_open,
                "Discard them": lambda: self._open(job, file_name),
                "Stay": lambda: None,
            },
        )

    def _open(self, job: FolderJob, file_name: str) -> None:
        try:
            image = load_image(job.images.root / file_name)
            found = job.load(file_name)
            corrected = job.state(file_name).state == "corrected"
            by_hand = job.by_hand(file_name) if corrected else None
        except TclError as error:
            self.owner.fail(str(error))
            return
        viewer = self.owner.viewer
        if self._opened is not None:
            old = self._opened.results
            for layer in (old.image, old.draft, old.accepted, old.polygons, *old.score_layers.values()):
                if layer in viewer.layers:
                    viewer.layers.remove(layer)
        self.owner.labels.add_missing(job.vocabulary)
        layer = viewer.add_image(image, name=Path(file_name).name, rgb=True)
        self.owner.image_form.choose(layer)
        _, reader = self.owner.image_form.source()
        results = self.owner.results_for(layer, reader)
        known = self.owner.labels.ids_by_name
        ids = [known[name] for name in job.vocabulary.names]
        results.show((), found.label_map, found.score_map, ids)
        if by_hand is not None:
            # Also without the features of the image, for the model may run again.
            results.attribute((), found.label_map, ids, by_hand)
        results.style(self.owner.labels.shown_labels())
        results.refresh()
        self._opened = _Opened(job, file_name, results)
        viewer.reset_view()
        self._choose(file_name)
        self._prepare(self._opened, image, corrected, by_hand)

    def _prepare(
        self, opened: _Opened, image: NDArray[np.uint8], corrected: bool, by_hand: NDArray[np.bool_] | None
    ) -> None:
        """Read the features of an image that was opened, so that thresholds and prompts respond at once."""
        job, results, kept, loaded = opened.job, opened.results, self._features, self.owner.engine.loaded
        if kept is None or loaded is None or loaded.settings() != job.settings:
            return
        if loaded.feature_key(image) not in kept:
            return
        try:
            least = self.owner.polygons.least()
        except TclError:
            # Said when the field is used.
            return
        engine, known = self.owner.engine, self.owner.labels.ids_by_name
        ids = [known[name] for name in job.vocabulary.names]

        def work(reporter: Reporter) -> tuple[ImageSession, Segmentation] | None:
            with engine.cache.beside(kept):
                session = engine.session_of_loaded(image)
                if session is None:
                    return None
                found = session.segment(job.vocabulary)
                return session, without_specks(found, session.segmenter.model, least)

        def on_end(outcome: Outcome) -> None:
            if outcome.result is None or not results.present:
                return
            session, found = outcome.result
            results.sessions.put((), session)
            if corrected:
                unsaved = opened.unsaved
                results.attribute((), found.label_map, ids, by_hand)
                if not unsaved:
                    opened.mark_saved()
            if said := kept.words():
                self.owner.buttons.say(said)

        self.owner.start(work, on_end, quiet=True)

    def save(self) -> bool:
        """Keep the corrections of the open image; returns whether that was done."""
        opened = self._opened
        if self.job is None or opened is None or not opened.results.alive:
            self.owner.fail("no image of the folder is open; select one and press Open")
            return False
        try:
            annotated = opened.results.annotated((), *self._ids_of(opened))
            assert annotated.score_map is not None
            by_hand = opened.results.annotation.corrected(())
            opened.job.save(opened.name, annotated.label_map, annotated.score_map, by_hand=by_hand)
        except TclError as error:
            self.owner.fail(str(error))
            return False
        opened.mark_saved()
        self._show_state(opened.job.state(opened.name))
        self.owner.buttons.say(f"{opened.name}: corrections saved")
        return True

    def _ids_of(self, opened: _Opened) -> tuple[list[int], tuple[str, ...]]:
        """Ids and names of the job's labels, in the job's order.

        Raises:
            SettingsError: the image has pixels of a label that the job does not know.
        """
        ids, names = self.owner.labels.ids_by_name, opened.job.vocabulary.names
        used = opened.results.annotation.ids_in_use()
        strange = sorted(used - {ids[name] for name in names if name in ids})
        if strange:
            named = {number: name for name, number in ids.items()}
            which = ", ".join(named.get(number) or f"label {number}" for number in strange)
            raise SettingsError(
                f"{opened.name}: {which} is not among the labels of this folder's job ({', '.join(names)}); paint over "
                "it, or rename it to one of them"
            )
        unused = count(max([*used, *ids.values(), 0]) + 1)
        return [ids[name] if name in ids else next(unused) for name in names], names

    def save_and_next(self) -> None:
        """Keep the corrections of the open image and open the next that is done."""
        if not self.save() or self._opened is None:
            return
        job = self._opened.job
        names = list(job.images.file_names)
        later = names[names.index(self._opened.name) + 1 :]
        done = [name for name in later if job.state(name).state in ("labeled", "corrected")]
        if done:
            self._open(job, done[0])
        else:
            self.owner.buttons.say("this was the last image; to finish, export the folder")

    def export(self, path: str | Path) -> None:
        """Write one COCO file of all images that are done."""
        job = self._exported_job()
        if job is None:
            return
        form = self.owner.polygons
        geometry, tolerance = form.geometry.value, float(form.tolerance.value)

        def on_end(outcome: Outcome) -> None:
            if outcome.result is not None:
                self.owner.buttons.say(f"{Path(path).name}: {outcome.result} of {len(job.images)} images")

        self.owner.start(lambda reporter: job.export(path, geometry=geometry, tolerance=tolerance), on_end)

    def _exported_job(self) -> FolderJob | None:
        """The job to export; says why there is none."""
        if self.job is None:
            self.owner.fail("no folder is labeled yet; choose a folder and label it first")
            return None
        if self._opened is not None and self._opened.unsaved:
            self.owner.fail(f"your changes to {self._opened.name} are not saved; press Save and next, then export")
            return None
        return self.job

    # -- reactions -----------------------------------------------------------------------------------------------

    def _on_news(self, news: object) -> None:
        if isinstance(news, Step):
            self.owner.buttons.show_progress(news.text, news.share)
        elif isinstance(news, FolderJob):
            self._show_job(news)
        elif isinstance(news, ImageState):
            self._show_state(news)

    def _on_end(self, outcome: Outcome) -> None:
        if isinstance(outcome.cause, JobChangedError):
            self._ask_about(outcome.cause)
        if self.job is None or outcome.error is not None:
            return
        states = self.job.states()
        done = sum(state.state in ("labeled", "corrected") for state in states)
        failed = sum(state.state == "failed" for state in states)
        text = f"{done} of {len(states)} images are labeled"
        said = "" if self._features is None else self._features.words()
        self.owner.buttons.say(
            text
            + (f", {failed} failed; hover over them in the list to see the reason" if failed else "")
            + (f"; {said}" if said else "")
        )

    def _show_job(self, job: FolderJob) -> None:
        self.job = job
        self.images.clear()
        # A folder of ten thousand images is not searched for each of them.
        self._items.clear()
        for state in job.states():
            item = QListWidgetItem()
            item.setData(_NAME_ROLE, state.file_name)
            self.images.addItem(item)
            self._items[state.file_name] = item
            self._show_state(state)

    def _show_state(self, state: ImageState) -> None:
        item = self._items.get(state.file_name)
        if item is not None:
            item.setText(f"{_MARKS[state.state]}  {state.file_name}")
            item.setToolTip(f"{state.file_name}\n{state.reason or state.state}")

    def _choose(self, file_name: str) -> None:
        item = self._items.get(file_name)
        if item is not None:
            self.images.setCurrentItem(item)

    def _open_chosen(self) -> None:
        item = self.images.currentItem()
        if item is None:
            self.owner.fail("no image is selected; click one in the list")
        else:
            self.open(item.data(_NAME_ROLE))

    def _ask_about(self, changed: JobChangedError) -> None:
        answers: dict[str, Callable[[], None]] = {}
        if changed.vocabulary is not None:
            old = changed.vocabulary

            def use_old() -> None:
                self.owner.labels.set_vocabulary(old, then=self.run)

            answers["Use the old labels"] = use_old
        answers["New mask folder"] = lambda: self.run(new_folder=True)
        answers["Cancel"] = lambda: None
        self.owner.question.ask("job", f"{changed}.", answers)

    def _ask_export(self) -> None:
        if self._exported_job() is None:
            return
        if path := ask_save_path(self, "Export folder", "labels.json", "COCO (*.json)"):
            self.export(path)


class _Opened:
    """The image that is open, and what of it is saved."""

    def __init__(self, job: FolderJob, name: str, results: Results) -> None:
        self.job, self.name, self.results = job, name, results
        self.mark_saved()

    def mark_saved(self) -> None:
        """From here on changes count."""
        note = self.results.annotation
        self._saved = note.combined(()), note.confirmed(())

    @property
    def unsaved(self) -> bool:
        """Whether something was changed that opening another image would lose."""
        if not self.results.alive:
            return False
        note = self.results.annotation
        now = note.combined(()), note.confirmed(())
        return not all(np.array_equal(one, other) for one, other in zip(now, self._saved, strict=True))


def open_job(
    folder: Path, vocabulary: Vocabulary, settings: Mapping[str, Any], *, new_folder: bool = False
) -> FolderJob:
    """The job of a folder with these labels and settings: an old one, or a new one where there is none at all.

    Args:
        folder: of the images.
        vocabulary: the labels.
        settings: of the segmenter.
        new_folder: make a new one also beside others.

    Raises:
        JobChangedError: there are masks, but with other labels or settings.
        TclError: see `FolderJob`.
    """
    changed: JobChangedError | None = None
    for number in count(1):
        masks = beside(folder, "masks" if number == 1 else f"masks-{number}")
        if changed is not None and not masks.exists() and not new_folder:
            raise changed
        try:
            return FolderJob.open(folder, vocabulary, settings, masks)
        except JobChangedError as error:
            changed = error
    raise AssertionError("numbers do not end")
