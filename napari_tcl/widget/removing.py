"""Removing labels: asked about where pixels would be lost, and undone with their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_tcl.history import Step
from napari_tcl.results import Results
from napari_tcl.widget.label_row import LabelRow

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["LabelRemoval", "LabelRemover"]

_TOPIC = "remove labels"


@dataclass(frozen=True, eq=False)
class LabelRemoval:
    """Rows that were removed from the table together.

    Attributes:
        rows: as they were.
    """

    rows: tuple[LabelRow, ...]

    def __str__(self) -> str:
        return f"the removal of {'label' if len(self.rows) == 1 else 'labels'} {_names(self.rows)}"


class LabelRemover:
    """Takes labels that leave the table out of the layers of all images, and brings both back.

    Args:
        owner: the widget with the table, the results and the questions.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        self._owner = owner
        # Removals that changed no pixel, with the step of the chosen image that came before; and those undone.
        self._unused: list[tuple[LabelRemoval, Step | None]] = []
        self._undone_unused: list[tuple[LabelRemoval, Step | None]] = []
        owner.labels.guard = self._ask
        owner.labels.labels_removed.connect(self._take_out)

    def undo(self, results: Results | None) -> str | None:
        """Take back the last removal of labels without pixels or the last step, whichever came last.

        A removal of labels is taken back in all images.

        Args:
            results: of the chosen image, if it has any.

        Returns:
            What was taken back, or ``None`` where there is nothing to undo.
        """
        if self._unused and self._unused[-1][1] is _last_step(results):
            removal, before = self._unused.pop()
            self._undone_unused.append((removal, before))
            self._owner.labels.restore_rows(removal.rows)
            return str(removal)
        step = None if results is None else results.undo()
        if step is None:
            return None
        if isinstance(step.beside, LabelRemoval):
            for other in self._alive:
                last = other.annotation.history.last
                if last is not None and last.beside is step.beside:
                    other.undo()
            self._owner.labels.restore_rows(step.beside.rows)
        return _told(step)

    def redo(self, results: Results | None) -> str | None:
        """Do again what `undo` took back last; see there."""
        if self._undone_unused and self._undone_unused[-1][1] is _last_step(results):
            removal, before = self._undone_unused.pop()
            self._unused.append((removal, before))
            self._owner.labels.withdraw_rows(removal.rows)
            return str(removal)
        step = None if results is None else results.redo()
        if step is None:
            return None
        if isinstance(step.beside, LabelRemoval):
            for other in self._alive:
                following = other.annotation.history.next
                if following is not None and following.beside is step.beside:
                    other.redo()
            self._owner.labels.withdraw_rows(step.beside.rows)
        return _told(step)

    def _ask(self, rows: Sequence[LabelRow], go_on: Callable[[], None]) -> None:
        ids = [row.number for row in rows]
        counts = [(results.image.name, count) for results in self._alive if (count := results.count(ids))]
        if not counts:
            self._owner.question.withdraw(_TOPIC)
            go_on()
            return
        pixels = sum(count for _, count in counts)
        where = f"the image {counts[0][0]!r}" if len(counts) == 1 else f"{len(counts)} images"
        noun = "label" if len(rows) == 1 else "labels"
        self._owner.question.ask(
            _TOPIC,
            f"Remove the {noun} {_names(rows)} and {pixels:,} pixels in {where}? Undo brings them back.",
            {"Remove": go_on, "Cancel": lambda: None},
        )

    def _take_out(self, rows: Sequence[LabelRow]) -> None:
        before = _last_step(self._owner.current_results())
        ids = [row.number for row in rows]
        used = [results for results in self._alive if results.count(ids)]
        removal = LabelRemoval(tuple(rows))
        self._undone_unused.clear()
        if not used:
            self._unused.append((removal, before))
        # One object for all images, by which they know that their steps belong together.
        for results in used:
            results.forget_labels(ids, str(removal), removal)
        what, back = ("label", "it") if len(rows) == 1 else ("labels", "them")
        self._owner.buttons.say(f"removed the {what} {_names(rows)}; Undo brings {back} back")

    @property
    def _alive(self) -> list[Results]:
        return [results for results in self._owner.results if results.alive]


def _last_step(results: Results | None) -> Step | None:
    return None if results is None else results.annotation.history.last


def _told(step: Step) -> str:
    where = f" in {len(step.slices)} slices" if len(step.slices) > 1 else ""
    return f"{step.what}{where}"


def _names(rows: Sequence[LabelRow]) -> str:
    return ", ".join(repr(row.name) for row in rows)
