"""Removing labels: asked about where pixels would be lost, and undone with their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from napari_tcl.history import Step
from napari_tcl.results import Results
from napari_tcl.widget.label_row import LabelRow

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["LabelRemover"]

_TOPIC = "remove labels"


class LabelRemover:
    """Takes labels that leave the table out of the layers of all images, and brings both back.

    Args:
        owner: the widget with the table, the results and the questions.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        self._owner = owner
        self._rows: dict[int, LabelRow] = {}
        # Removals that changed no pixel, with the step of the chosen image that came before.
        self._unused: list[tuple[tuple[LabelRow, ...], Step | None]] = []
        owner.labels.guard = self._ask
        owner.labels.labels_removed.connect(self._take_out)

    def undo_unused(self) -> str | None:
        """Bring back labels without pixels, if their removal was the last thing that was done.

        Returns:
            Their names, or ``None``.
        """
        if not self._unused or self._unused[-1][1] is not self._last_step():
            return None
        rows, _ = self._unused.pop()
        self._owner.labels.restore_rows(rows)
        return _names(rows)

    def undo(self, results: Results) -> Step | None:
        """Take back the last step of an image; if that was the removal of labels, also in all other images.

        Returns:
            What was taken back, or ``None`` where there is nothing to undo.
        """
        step = results.undo()
        if step is None:
            return None
        for other in self._alive:
            last = other.annotation.last_step
            if other is not results and last is not None and last.what == step.what and self._is_removal(step):
                other.undo()
        used = set().union(*(each.annotation.ids_in_use() for each in self._alive))
        missing = [row for number, row in self._rows.items() if number in used - set(self._owner.labels.ids)]
        self._owner.labels.restore_rows(sorted(missing, key=lambda row: row.place))
        return step

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
        before = self._last_step()
        ids = [row.number for row in rows]
        used = [results for results in self._alive if results.count(ids)]
        if not used:
            self._unused.append((tuple(rows), before))
            return
        self._rows.update({row.number: row for row in rows})
        for results in used:
            results.forget_labels(ids, _removal(rows))

    def _is_removal(self, step: Step) -> bool:
        return step.what.startswith(_REMOVAL)

    def _last_step(self) -> Step | None:
        results = self._owner.current_results()
        return None if results is None else results.annotation.last_step

    @property
    def _alive(self) -> list[Results]:
        return [results for results in self._owner.results if results.alive]


_REMOVAL = "the removal of label"


def _removal(rows: Sequence[LabelRow]) -> str:
    # With the ids, because a label of the same name may have been removed before.
    return f"{_REMOVAL} {', '.join(f'{row.name!r} ({row.number})' for row in rows)}"


def _names(rows: Sequence[LabelRow]) -> str:
    return ", ".join(repr(row.name) for row in rows)
