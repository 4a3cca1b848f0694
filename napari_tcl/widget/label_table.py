"""The table of labels: name, prompts, color, threshold, visible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast

import yaml
from qtpy.QtCore import Qt, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QColorDialog,
    QDoubleSpinBox,
    QFileDialog,
    QGridLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_tcl.layers import ShownLabel
from napari_tcl.widget.buttons import tool_button
from napari_tcl.widget.label_row import (
    LabelRow,
    Surroundings,
    button_color,
    is_painted_name,
    paint_button,
    painted_name,
)
from napari_tcl.widget.save_dialog import ask_save_path
from napari_tcl.widget.wheel import guard_wheel
from napari_tcl.words import join_texts, split_texts
from tcl_core.errors import TclError, VocabularyError
from tcl_core.vocabulary import Label, Vocabulary, default_colors
from tcl_core.vocabulary.colors import Color
from tcl_core.vocabulary.labels import name_key

__all__ = ["LabelTable"]

_VALUE = Qt.ItemDataRole.UserRole
_SHOW, _NAME, _PROMPTS, _COLOR, _THRESHOLD = range(5)
_HEADS = ("", "Label", "Prompts", "Color", "Min. score")
_TIPS = (
    "Show or hide the label. Hidden labels are still segmented and exported.",
    "Name of the annotation (COCO category).",
    "Texts to search for, separated by commas. If empty, the label's name is the prompt.",
    "Click to choose the label's color.",
    "Minimum score, from 0 to 1, that a pixel needs for this label; 0: no minimum. The mask updates as you change it.",
)


class LabelTable(QWidget):
    """Edits a vocabulary's labels; every row keeps its id, so that layers stay right when rows come and go.

    Signals: ``words_changed`` for names, prompts and rows, ``thresholds_changed``, ``look_changed`` for colors and
    visibility, ``label_chosen`` with an id, ``loaded`` with a vocabulary read from a file, ``failed`` and ``said``
    with a sentence, ``labels_removed`` with a list of `LabelRow`.

    Attributes:
        guard: asked before labels are removed, with their rows; calls what it is given if they may go.
        around: asked for what a vocabulary says besides its labels.
    """

    words_changed = Signal()
    thresholds_changed = Signal()
    look_changed = Signal()
    label_chosen = Signal(int)
    labels_removed = Signal(object)
    loaded = Signal(object)
    failed = Signal(str)
    said = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.guard: Callable[[Sequence[LabelRow], Callable[[], None]], None] = lambda rows, go_on: go_on()
        self.around: Callable[[], Surroundings] = Surroundings
        self._ids: list[int] = []
        self._next_id = 1
        self._known_ids: dict[str, int] = {}
        self._free_colors = default_colors()
        self.table = QTableWidget(0, len(_HEADS), self)
        self.table.setHorizontalHeaderLabels(list(_HEADS))
        for column, tip in enumerate(_TIPS):
            cast(QTableWidgetItem, self.table.horizontalHeaderItem(column)).setToolTip(tip)
        header = cast(QHeaderView, self.table.horizontalHeader())
        for column in range(len(_HEADS)):
            header.setSectionResizeMode(column, QHeaderView.ResizeMode.Fixed)
        for column, width in ((_SHOW, 24), (_COLOR, 44), (_THRESHOLD, 92)):
            header.resizeSection(column, width)
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(_PROMPTS, QHeaderView.ResizeMode.Stretch)
        cast(QHeaderView, self.table.verticalHeader()).hide()
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setMinimumHeight(120)
        self.table.itemChanged.connect(self._on_item)
        self.table.currentCellChanged.connect(self._on_row)
        # The brush may have been given another label since the row became the current one.
        self.table.cellClicked.connect(self._on_row)
        buttons = QGridLayout()
        for place, (text, tip, action) in enumerate(
            (
                ("Add label", "Add a row to the table and type the label's name.", self.add_and_edit),
                ("Remove", "Remove the selected row, and its label from the layers.", self.remove_current),
                ("Load...", "Read labels from a label file (labels.yaml).", self._ask_load),
                ("Save...", "Write a label file (labels.yaml), which the command line can read too.", self._ask_save),
            )
        ):
            button = tool_button(text, tip)
            # Without Qt's argument, which says whether the button is down.
            button.clicked.connect(lambda _=False, action=action: action())
            buttons.addWidget(button, 0, place)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.table)
        layout.addLayout(buttons)

    # -- rows ----------------------------------------------------------------------------------------------------

    def add_row(
        self,
        name: str = "",
        prompts: str = "",
        color: Color | None = None,
        threshold: float | None = None,
        visible: bool = True,
        label_id: int | None = None,
        value: int | None = None,
    ) -> None:
        """Add a label; without a color it gets one that no other has, without an id likewise."""
        if color is None:
            taken = set(self._colors())
            color = next(free for free in self._free_colors if free not in taken)
        place = self.table.rowCount()
        number = self._id_for(name) if label_id is None else label_id
        self._insert(place, LabelRow(place, number, name, prompts, color, threshold or 0, visible, value))
        self.table.setCurrentCell(place, _NAME)
        self.words_changed.emit()

    def _insert(self, row: int, label: LabelRow) -> None:
        self.table.blockSignals(True)
        self.table.insertRow(row)
        self._ids.insert(row, label.number)
        self._next_id = max(self._next_id, *(number + 1 for number in self._ids))
        show = QCheckBox()
        show.setChecked(label.visible)
        show.setToolTip(_TIPS[_SHOW])
        show.toggled.connect(lambda _: self.look_changed.emit())
        self.table.setCellWidget(row, _SHOW, show)
        for column, text in ((_NAME, label.name), (_PROMPTS, label.prompts)):
            item = QTableWidgetItem(text)
            item.setToolTip(_tip(item, column))
            item.setData(_VALUE, label.value)
            self.table.setItem(row, column, item)
        button = QPushButton()
        button.setToolTip(_TIPS[_COLOR])
        button.setFixedWidth(36)
        paint_button(button, label.color)
        button.clicked.connect(lambda _=False, b=button: self._ask_color(b))
        self.table.setCellWidget(row, _COLOR, button)
        spin = QDoubleSpinBox()
        spin.setRange(0, 1)
        spin.setSingleStep(0.01)
        spin.setDecimals(2)
        spin.setValue(label.threshold)
        spin.setToolTip(_TIPS[_THRESHOLD])
        guard_wheel(spin)
        spin.valueChanged.connect(lambda _: self.thresholds_changed.emit())
        self.table.setCellWidget(row, _THRESHOLD, spin)
        self.table.blockSignals(False)

    def _row(self, row: int) -> LabelRow:
        return LabelRow(
            row,
            self._ids[row],
            self._text(row, _NAME),
            self._text(row, _PROMPTS),
            button_color(self.table.cellWidget(row, _COLOR)),
            float(self._spin(row).value()),
            self._check(row).isChecked(),
            cast(QTableWidgetItem, self.table.item(row, _NAME)).data(_VALUE),
        )

    def add_and_edit(self) -> None:
        """Add an empty row and open its name for typing."""
        self.add_row()
        item = self.table.item(self.table.rowCount() - 1, _NAME)
        self.table.scrollToItem(item)
        self.table.setFocus()
        self.table.editItem(item)

    def remove_current(self) -> None:
        """Remove the chosen row."""
        row = self.table.currentRow()
        if row < 0:
            self.failed.emit("no label is selected; click a row of the table first")
            return
        gone = self._row(row)
        self.guard([gone], lambda: self._remove(gone))

    def _remove(self, gone: LabelRow) -> None:
        if gone.number not in self._ids:
            return
        self._drop(self._ids.index(gone.number))
        self.labels_removed.emit([gone])
        self.words_changed.emit()

    def restore_rows(self, rows: Sequence[LabelRow]) -> None:
        """Bring back rows that were removed, with their ids and near their places; those that are there stay."""
        for row in sorted(rows, key=lambda row: row.place):
            if row.number in self._ids:
                place = self._ids.index(row.number)
                if not self._is_painted(place):
                    continue
                # Somebody painted with the number meanwhile, so it got a row without its name.
                self._drop(place)
            self._insert(min(row.place, self.table.rowCount()), row)
        self.words_changed.emit()

    def withdraw_rows(self, rows: Sequence[LabelRow]) -> None:
        """Take out rows that `restore_rows` brought back, without asking or telling."""
        for row in rows:
            if row.number in self._ids:
                self._drop(self._ids.index(row.number))
        self.words_changed.emit()

    def _drop(self, place: int) -> None:
        number = self._ids.pop(place)
        self._known_ids = {name: known for name, known in self._known_ids.items() if known != number}
        self.table.removeRow(place)

    def take_ids(self, ids: Mapping[str, int], reserved: Iterable[int]) -> None:
        """Give rows the ids that layers know their labels by; no layer may hold pixels of the table's own ids yet.

        Args:
            ids: by the labels' names.
            reserved: ids that no other label may get.
        """
        free = dict(ids)
        taken = {*ids.values(), *reserved}
        self._next_id = max(self._next_id, *(number + 1 for number in (*taken, *self._ids)))
        for row, number in enumerate(self._ids):
            wanted = free.pop(self._text(row, _NAME), None)
            if wanted is not None:
                self._ids[row] = wanted
            elif number in taken:
                self._ids[row], self._next_id = self._next_id, self._next_id + 1
        self._known_ids.clear()

    def rows(self) -> list[LabelRow]:
        """All rows, also half-typed ones."""
        return [self._row(row) for row in range(self.table.rowCount())]

    def set_threshold(self, row: int, value: float) -> None:
        """Set a row's threshold, as its spin box does."""
        self._spin(row).setValue(value)

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the labels, row by row."""
        return tuple(self._ids)

    def shown_labels(self) -> list[ShownLabel]:
        """How the labels look, row by row."""
        return [
            ShownLabel(
                self._ids[row],
                self._text(row, _NAME),
                color,
                self._check(row).isChecked(),
                self._text(row, _PROMPTS),
            )
            for row, color in enumerate(self._colors())
        ]

    def vocabulary(self) -> Vocabulary:
        """The labels as a vocabulary.

        Raises:
            VocabularyError: there is none, one is empty or there twice, or a prompt is; the message names the row.
        """
        labels: list[Label] = []
        rows: dict[str, int] = {}
        for row, color in enumerate(self._colors()):
            name, prompts = self._text(row, _NAME), self._text(row, _PROMPTS)
            threshold = self._spin(row).value() or None
            value = self._row(row).value
            try:
                labels.append(Label(name, split_texts(prompts) if prompts else (), threshold, color, value))
            except VocabularyError as error:
                raise VocabularyError(f"row {row + 1}: {error}") from error
            key = name_key(labels[-1].name)
            if key.casefold() == "background":
                raise VocabularyError(
                    f"row {row + 1}: {name!r} stands for pixels without a label; remove the row and turn on Background"
                )
            if key in rows:
                raise VocabularyError(
                    f"row {row + 1}: the label {name!r} is already in row {rows[key] + 1}; rename or remove one of them"
                )
            rows[key] = row
        if not labels:
            raise VocabularyError("there are no labels; add one to the table and type a name")
        around = self.around()
        threshold = None if isinstance(around.background, bool) else around.background
        names = None if around.background is False else around.names
        return Vocabulary(tuple(labels), around.background is not False, threshold, around.templates, names)

    def searched(self) -> tuple[Vocabulary, tuple[int, ...]]:
        """The labels that the model is asked for, and their ids: all but those that were only painted so far.

        Raises:
            VocabularyError: see `vocabulary`.
        """
        whole = self.vocabulary()
        rows = [row for row in range(len(self._ids)) if not self._is_painted(row)]
        if not rows:
            raise VocabularyError("all labels were only painted so far; type a name into the table")
        labels = tuple(whole.labels[row] for row in rows)
        return replace(whole, labels=labels), tuple(self._ids[row] for row in rows)

    def add_painted(self, ids: Iterable[int]) -> list[str]:
        """Add rows for ids that somebody painted with and that no row has.

        Returns:
            The names of the new rows; the model is not asked for such a label before somebody names it.
        """
        names = []
        for number in sorted(set(ids) - set(self._ids)):
            # Rows of another session may be called after other ids.
            name = next(free for free in map(painted_name, count(number)) if free not in self.ids_by_name)
            self.add_row(name, label_id=number)
            names.append(name)
        return names

    @property
    def ids_by_name(self) -> dict[str, int]:
        """Ids of the labels by their names."""
        return {self._text(row, _NAME): number for row, number in enumerate(self._ids)}

    def add_missing(self, vocabulary: Vocabulary) -> None:
        """Add rows for labels that the table does not have by name; other rows stay."""
        for label, color in zip(vocabulary.labels, vocabulary.colors, strict=True):
            if label.name not in self.ids_by_name:
                self._add_label(label, color)

    def _add_label(self, label: Label, color: Color) -> None:
        prompts = "" if label.prompts == (label.name,) else join_texts(label.prompts)
        self.add_row(label.name, prompts, color, label.threshold, value=label.value)

    def _is_painted(self, row: int) -> bool:
        return is_painted_name(self._text(row, _NAME)) and not self._text(row, _PROMPTS)

    def set_vocabulary(self, vocabulary: Vocabulary, then: Callable[[], None] | None = None) -> None:
        """Replace all rows, once `guard` agrees that labels which are gone may go; those of the same name keep ids.

        Args:
            vocabulary: the new labels.
            then: called after they were replaced.
        """
        names = set(vocabulary.names)
        gone = [row for row in self.rows() if row.name not in names]

        def go_on() -> None:
            self._replace(vocabulary, gone)
            if then is not None:
                then()

        if gone:
            self.guard(gone, go_on)
        else:
            go_on()

    def _replace(self, vocabulary: Vocabulary, gone: Sequence[LabelRow]) -> None:
        self._known_ids.update({self._text(row, _NAME): number for row, number in enumerate(self._ids)})
        self.table.setRowCount(0)
        self._ids.clear()
        for label, color in zip(vocabulary.labels, vocabulary.colors, strict=True):
            self._add_label(label, color)
        if gone:
            self.labels_removed.emit(gone)
        self.loaded.emit(vocabulary)

    # -- files ---------------------------------------------------------------------------------------------------

    def load(self, path: str | Path) -> None:
        """Read a label file; a mistake in it leaves the table as it is and goes to ``failed``."""
        try:
            self.set_vocabulary(Vocabulary.from_file(path))
        except TclError as error:
            self.failed.emit(str(error))

    def save(self, path: str | Path) -> None:
        """Write a label file; what goes wrong goes to ``failed``."""
        try:
            data = self.vocabulary().to_dict()
        except TclError as error:
            self.failed.emit(str(error))
            return
        data["labels"] = [{key: value for key, value in label.items() if value is not None} for label in data["labels"]]
        data = {key: value for key, value in data.items() if value is not None}
        try:
            Path(path).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
        except OSError as error:
            self.failed.emit(f"{path}: cannot be written ({error.strerror}); choose another folder")
            return
        count = len(data["labels"])
        self.said.emit(f"{Path(path).name}: {count} {'label' if count == 1 else 'labels'} saved")

    def _ask_load(self) -> None:
        path, _ = QFileDialog.getOpenFileName(self, "Load labels", "", "Labels (*.yaml *.yml)")
        if path:
            self.load(path)

    def _ask_save(self) -> None:
        if path := ask_save_path(self, "Save labels", "labels.yaml", "Labels (*.yaml *.yml)"):
            self.save(path)

    # -- cells ---------------------------------------------------------------------------------------------------

    def _on_item(self, item: QTableWidgetItem) -> None:
        self.table.blockSignals(True)
        item.setToolTip(_tip(item, item.column()))
        self.table.blockSignals(False)
        self.words_changed.emit()

    def _on_row(self, row: int, *_: int) -> None:
        if 0 <= row < len(self._ids):
            self.label_chosen.emit(self._ids[row])

    def _ask_color(self, button: QPushButton) -> None:
        chosen = QColorDialog.getColor(QColor(*button_color(button)), self)
        if chosen.isValid():
            paint_button(button, (chosen.red(), chosen.green(), chosen.blue()))
            self.look_changed.emit()

    def _id_for(self, name: str) -> int:
        number = self._known_ids.get(name)
        if name and number is not None and number not in self._ids:
            return number
        number, self._next_id = self._next_id, self._next_id + 1
        return number

    def _text(self, row: int, column: int) -> str:
        item = self.table.item(row, column)
        return "" if item is None else str(item.text()).strip()

    def _spin(self, row: int) -> QDoubleSpinBox:
        return cast(QDoubleSpinBox, self.table.cellWidget(row, _THRESHOLD))

    def _check(self, row: int) -> QCheckBox:
        return cast(QCheckBox, self.table.cellWidget(row, _SHOW))

    def _colors(self) -> Iterator[Color]:
        for row in range(self.table.rowCount()):
            yield button_color(self.table.cellWidget(row, _COLOR))


def _tip(item: QTableWidgetItem, column: int) -> str:
    """The whole text, of which a narrow column shows the beginning, and what the column is for."""
    return f"{item.text()}\n{_TIPS[column]}" if item.text() else _TIPS[column]
