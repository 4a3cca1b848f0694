"""The tab for many images: label all, open each for correction, write one COCO file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from magicgui.types import FileDialogMode
from magicgui.widgets import CheckBox, FileEdit
from numpy.typing import NDArray
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog, QGridLayout, QLabel, QListWidget, QListWidgetItem, QVBoxLayout
from qtpy.QtWidgets import QWidget as Widget

from napari_tcl.feature_store import MAX_FOLDER_BYTES, MAX_IMAGE_BYTES, FeatureFolder
from napari_tcl.folder import FolderJob, ImageState
from napari_tcl.results import Results
from napari_tcl.widget.buttons import tool_button
from napari_tcl.widget.tasks import Outcome, Reporter
from napari_tcl.widget.workers import Step
from tcl_core.errors import TclError
from tcl_core.images import load_image
from tcl_core.segmentation.session import ImageSession, Progress, ProgressCallback
from tcl_core.segmentation.specks import without_specks
from tcl_core.types import Segmentation

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
        self._opened: tuple[str, Results] | None = None
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
        self.export_button = tool_button("Export COCO...", "Write the labels of all finished images to one file.")
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

    def run(self) -> None:
        """Label the images that are waiting; an interrupted job is resumed."""
        folder = Path(str(self.folder.value))
        try:
            vocabulary = self.owner.vocabulary()
            choice = self.owner.model.choice()
            least = self.owner.polygons.least()
        except TclError as error:
            self.owner.fail(str(error))
            return
        if not str(self.folder.value).strip(".") or not folder.is_dir():
            self.owner.fail("the folder does not exist; choose the folder that contains the images")
            return
        engine = self.owner.engine
        kept = FeatureFolder(folder.with_name(f"{folder.name}.features")) if self.keep_features.value else None
        self._features = kept

        def work(reporter: Reporter) -> FolderJob:
            reporter.tell(Step(f"loading the model {choice.model}"))
            segmenter = engine.segmenter(choice)
            masks = folder.with_name(f"{folder.name}.masks")
            job = FolderJob.open(folder, vocabulary, segmenter.settings(), masks)
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
        """Show an image with its labels, in place of the one that is open."""
        if self.job is None:
            self.owner.fail("no folder is labeled yet; choose a folder and label it first")
            return
        try:
            image = load_image(self.job.images.root / file_name)
            found = self.job.load(file_name)
            if not self._table_is_the_jobs() and not self.owner.labels.set_vocabulary(self.job.vocabulary):
                return
        except TclError as error:
            self.owner.fail(str(error))
            return
        viewer = self.owner.viewer
        if self._opened is not None:
            old = self._opened[1]
            for layer in (old.image, old.draft, old.accepted, old.polygons, *old.score_layers.values()):
                if layer in viewer.layers:
                    viewer.layers.remove(layer)
        layer = viewer.add_image(image, name=Path(file_name).name, rgb=True)
        self.owner.image_form.layer.value = layer
        _, reader, _ = self.owner.image_form.reader()
        results = self.owner.results_for(layer, reader)
        results.show((), found.label_map, found.score_map, self.owner.labels.ids)
        self._opened = (file_name, results)
        viewer.reset_view()
        self._choose(file_name)
        self._prepare(results, image, self.job.state(file_name).state == "corrected")

    def _prepare(self, results: Results, image: NDArray[np.uint8], corrected: bool) -> None:
        """Read the features of an image that was opened, so that thresholds and prompts respond at once."""
        job, kept, loaded = self.job, self._features, self.owner.engine.loaded
        if job is None or kept is None or loaded is None or loaded.settings() != job.settings:
            return
        if loaded.feature_key(image) not in kept:
            return
        try:
            least = self.owner.polygons.least()
        except TclError:
            # Said when the field is used.
            return
        engine, ids = self.owner.engine, self.owner.labels.ids

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
            results.sessions[()] = session
            if corrected:
                # What differs from the model's result was corrected before it was saved.
                results.attribute((), found.label_map, ids)
            if said := kept.words():
                self.owner.buttons.say(said)

        self.owner.start(work, on_end, quiet=True)

    def save(self) -> bool:
        """Keep the corrections of the open image; returns whether that was done."""
        if self.job is None or self._opened is None or not self._opened[1].present:
            self.owner.fail("no image of the folder is open; select one and press Open")
            return False
        name, results = self._opened
        try:
            if not self._table_is_the_jobs():
                raise TclError("the labels no longer belong to the folder's job; open the image again")
            annotated = results.annotated((), self.owner.labels.ids, self.job.vocabulary.names)
            assert annotated.score_map is not None
            self.job.save(name, annotated.label_map, annotated.score_map)
        except TclError as error:
            self.owner.fail(str(error))
            return False
        self._show_state(self.job.state(name))
        self.owner.buttons.say(f"{name}: corrections saved")
        return True

    def save_and_next(self) -> None:
        """Keep the corrections of the open image and open the next that is done."""
        if not self.save() or self.job is None or self._opened is None:
            return
        names = list(self.job.images.file_names)
        later = names[names.index(self._opened[0]) + 1 :]
        done = [name for name in later if self.job.state(name).state in ("labeled", "corrected")]
        if done:
            self.open(done[0])
        else:
            self.owner.buttons.say("this was the last image; to finish, export the folder")

    def export(self, path: str | Path) -> None:
        """Write one COCO file of all images that are done."""
        job = self.job
        if job is None:
            self.owner.fail("no folder is labeled yet; choose a folder and label it first")
            return
        form = self.owner.polygons
        geometry, tolerance = form.geometry.value, float(form.tolerance.value)

        def on_end(outcome: Outcome) -> None:
            if outcome.result is not None:
                self.owner.buttons.say(f"{Path(path).name}: {outcome.result} of {len(job.images)} images")

        self.owner.start(lambda reporter: job.export(path, geometry=geometry, tolerance=tolerance), on_end)

    # -- reactions -----------------------------------------------------------------------------------------------

    def _on_news(self, news: object) -> None:
        if isinstance(news, Step):
            self.owner.buttons.show_progress(news.text, news.share)
        elif isinstance(news, FolderJob):
            self._show_job(news)
        elif isinstance(news, ImageState):
            self._show_state(news)

    def _on_end(self, outcome: Outcome) -> None:
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
        for state in job.states():
            item = QListWidgetItem()
            item.setData(_NAME_ROLE, state.file_name)
            self.images.addItem(item)
            self._show_state(state)

    def _show_state(self, state: ImageState) -> None:
        item = self._item(state.file_name)
        if item is not None:
            item.setText(f"{_MARKS[state.state]}  {state.file_name}")
            item.setToolTip(f"{state.file_name}\n{state.reason or state.state}")

    def _item(self, file_name: str) -> QListWidgetItem | None:
        items = (self.images.item(row) for row in range(self.images.count()))
        return next((item for item in items if item is not None and item.data(_NAME_ROLE) == file_name), None)

    def _choose(self, file_name: str) -> None:
        item = self._item(file_name)
        if item is not None:
            self.images.setCurrentItem(item)

    def _open_chosen(self) -> None:
        item = self.images.currentItem()
        if item is None:
            self.owner.fail("no image is selected; click one in the list")
        else:
            self.open(item.data(_NAME_ROLE))

    def _table_is_the_jobs(self) -> bool:
        assert self.job is not None
        try:
            return self.owner.vocabulary().names == self.job.vocabulary.names
        except TclError:
            return False

    def _ask_export(self) -> None:
        path, _ = QFileDialog.getSaveFileName(self, "Export COCO", "labels.json", "COCO (*.json)")
        if path:
            self.export(path)
