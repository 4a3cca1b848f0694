"""The widget opens as it was left."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from magicgui.widgets import ComboBox
from qtpy.QtCore import QEvent, QObject, QTimer

from napari_tcl.user_settings import RememberedLabel, UserSettings, load_settings, save_settings, settings_path

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["Memory"]

_PAUSE = 500  # milliseconds without a change before settings are written


class Memory(QObject):
    """Restores the remembered settings, and writes what the user changes.

    Args:
        owner: the widget, with all its parts.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        super().__init__(owner)
        self._owner = owner
        self._path = settings_path()
        settings, word = load_settings(self._path)
        words = [word, *self._restore(settings)]
        if said := "; ".join(word for word in words if word):
            owner.buttons.say(said)
        self._saved = self._current()
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_PAUSE)
        self._timer.timeout.connect(self.save)
        for form in (owner.model, owner.background, owner.polygons):
            form.changed.connect(lambda _: self._timer.start())
        for part in (owner.folder.folder, owner.folder.keep_features):
            part.changed.connect(lambda _: self._timer.start())
        for signal in (owner.labels.words_changed, owner.labels.thresholds_changed, owner.labels.look_changed):
            signal.connect(self._timer.start)
        for section in owner.sections.values():
            section.folded_changed.connect(lambda _: self._timer.start())
        owner.installEventFilter(self)

    def save(self) -> None:
        """Write the settings if they changed since they were written last."""
        self._timer.stop()
        current = self._current()
        if current == self._saved:
            return
        # Said once, for it would come again with every change.
        self._saved = current
        try:
            save_settings(self._path, current)
        except OSError as error:
            self._owner.buttons.say(f"{self._path}: settings cannot be remembered ({error.strerror})", error=True)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 - Qt's name
        """A dock or window that closes hides the widget first."""
        if event is not None and event.type() == QEvent.Type.Hide and self._timer.isActive():
            # Parts may be gone already while Python ends.
            with suppress(RuntimeError):
                self.save()
        return False

    def _current(self) -> UserSettings:
        owner = self._owner
        model, background, polygons = owner.model, owner.background, owner.polygons
        return UserSettings(
            model=model.model.value or "",
            model_file=model.own_file,
            method=model.own_method,
            options=model.method_options.value,
            templates=model.own_templates or "",
            device=model.device.value,
            precision=model.precision.value,
            backend=model.backend.value,
            refine=bool(model.refine.value),
            labels=[
                RememberedLabel(
                    name=row.name,
                    prompts=row.prompts,
                    color=list(row.color),
                    threshold=row.threshold,
                    visible=row.visible,
                    value=row.value,
                    number=row.number,
                )
                for row in owner.labels.rows()
            ],
            background=bool(background.on.value),
            custom_threshold=bool(background.own.value),
            threshold=float(background.threshold.value),
            competing_names=background.names.value,
            min_area=polygons.min_area.value,
            tolerance=float(polygons.tolerance.value),
            geometry=polygons.geometry.value,
            polygons=bool(polygons.polygons.value),
            scores=bool(polygons.scores.value),
            folder=owner.folder.chosen_folder,
            keep_features=bool(owner.folder.keep_features.value),
            folded={name: section.folded for name, section in owner.sections.items()},
        )

    def _restore(self, settings: UserSettings) -> list[str]:
        """Set every control; returns a clause for each choice that is not there any more."""
        owner = self._owner
        model, background, polygons = owner.model, owner.background, owner.polygons
        words = [_choose(model.model, settings.model, "model"), _choose(model.device, settings.device, "device")]
        words.append(_choose(model.precision, settings.precision, "precision"))
        words.append(_choose(model.backend, settings.backend, "backend"))
        if settings.method:
            words.append(_choose(model.method, settings.method, "method"))
        if settings.model_file:
            if Path(settings.model_file).is_file():
                model.file.value = Path(settings.model_file)
            else:
                words.append(f"the model file {settings.model_file} is not there any more")
        model.method_options.value = settings.options
        if settings.templates:
            words.append(_choose(model.templates, settings.templates, "template set"))
        model.refine.value = settings.refine
        for label in settings.labels:
            red, green, blue = label.color
            number = None if label.number in owner.labels.ids else label.number
            owner.labels.add_row(
                label.name, label.prompts, (red, green, blue), label.threshold, label.visible, number, label.value
            )
        background.on.value = settings.background
        background.threshold.value = settings.threshold
        background.own.value = settings.custom_threshold
        background.names.value = settings.competing_names
        polygons.min_area.value = settings.min_area
        polygons.tolerance.value = settings.tolerance
        words.append(_choose(polygons.geometry, settings.geometry, "geometry"))
        polygons.polygons.value = settings.polygons
        polygons.scores.value = settings.scores
        if settings.folder:
            if Path(settings.folder).is_dir():
                owner.folder.folder.value = Path(settings.folder)
            else:
                words.append(f"the folder {settings.folder} is not there any more")
        owner.folder.keep_features.value = settings.keep_features
        for name, section in owner.sections.items():
            section.folded = settings.folded.get(name, section.folded)
        return words


def _choose(combo: ComboBox, value: str, what: str) -> str:
    if value in combo.choices:
        combo.value = value
        return ""
    return f"the {what} {value!r} is not available any more; {combo.value!r} is chosen"
