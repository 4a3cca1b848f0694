"""What the model proposes, what a person changed, and what is accepted, kept apart for one image or stack.

Two maps are shown: the **draft**, which the model fills and a person corrects, and the **accepted** map, which later
runs never touch. A pixel belongs to the accepted map where that is not 0, else to the draft. The person may change
both at any time with the viewer's own tools, so what was changed is found by comparing the maps with what was last
put there.

Because proposals and corrections are kept apart, each can be taken back without the other: `undo` takes back a run and
leaves strokes alone, `undo_stroke` takes back a stroke and shows what the model proposes there by now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_tcl.history import History, MapChange, Runs, SliceChange, Step, Stroke, StrokePart
from napari_tcl.rendering import Box, changed_box, draft_of, whole_box
from napari_tcl.slices import Index

__all__ = ["Annotation", "LabelMap", "MapName"]

_MAX_STROKES = 100

LabelMap = NDArray[np.uint16]
"""Label ids, 0 for nothing."""

MapName = Literal["draft", "accepted"]
"""One of the two maps that are shown."""

_Rule = Callable[[NDArray[Any]], NDArray[Any]]


class Annotation:
    """The draft and the accepted map of an image or stack.

    The arrays are worked on in place, so that a viewer which shows them shows the result. Labels that the draft holds
    already count as corrections, because nobody knows any more who made them.

    Args:
        draft: uint16 ``[..., H, W]``, label ids.
        accepted: uint16 of the same shape.

    Examples:
        >>> note = Annotation(np.zeros((1, 3), np.uint16), np.zeros((1, 3), np.uint16))
        >>> _ = note.propose((), np.array([[1, 1, 2]], np.uint16))
        >>> note.draft[0, 0] = 2  # a person's brush
        >>> _ = note.propose((), np.array([[1, 1, 1]], np.uint16))
        >>> note.draft.tolist()
        [[2, 1, 1]]
        >>> note.accept((), [2])
        1
        >>> _ = note.propose((), np.array([[1, 1, 1]], np.uint16))
        >>> note.draft.tolist(), note.accepted.tolist(), note.combined(()).tolist()
        ([[0, 1, 1]], [[2, 0, 0]], [[2, 1, 1]])
    """

    def __init__(self, draft: LabelMap, accepted: LabelMap) -> None:
        if draft.shape != accepted.shape or draft.ndim < 2:
            raise ValueError(f"the maps have the shapes {draft.shape} and {accepted.shape}")
        self.draft = draft
        self.accepted = accepted
        # Zeros take no memory before something is written to them.
        self._model = np.zeros(draft.shape, np.uint16)
        self._seen_accepted = np.zeros(draft.shape, np.uint16)
        # A person's label plus one, 0 for none.
        self._hand = np.zeros(draft.shape, np.uint32)
        self._scores: dict[Index, NDArray[np.uint8]] = {}
        self._segmented: set[Index] = set()
        self._history = History()
        self._strokes: dict[MapName, list[Stroke]] = {"draft": [], "accepted": []}
        self._undone_strokes: dict[MapName, list[Stroke]] = {"draft": [], "accepted": []}
        self._pending: set[Index] = set()
        for index in self.indices():
            if draft[index].any():
                self._hand[index] = np.where(draft[index] > 0, draft[index].astype(np.uint32) + 1, 0)
            if accepted[index].any():
                self._seen_accepted[index] = accepted[index]

    def indices(self) -> Iterator[Index]:
        """Places of all slices in reading order."""
        return product(*(range(length) for length in self.draft.shape[:-2]))

    # -- what the model does ---------------------------------------------------------------------------------------

    def begin(self, what: str) -> Step:
        """A new step for `propose` and `accept`; `undo` takes back all that belongs to it at once.

        Args:
            what: for the message, such as ``"the run"``.
        """
        return Step(what)

    def propose(
        self,
        index: Index,
        proposal: LabelMap,
        scores: NDArray[np.uint8] | None = None,
        step: Step | None = None,
    ) -> Box | None:
        """Put the model's result into a slice of the draft; corrections and accepted pixels stay.

        Args:
            index: the slice.
            proposal: uint16 ``[H, W]``.
            scores: uint8 ``[H, W]``, 255 for a score of 1.
            step: of `begin`, if the result can be undone; without one it only changes what the last run found, as a
                threshold does.

        Returns:
            The part of the slice that may look different now, ``None`` if none does.
        """
        self.notice(index)
        known = self._scores.get(index)
        if scores is not None and known is not None and np.array_equal(known, scores):
            # One array for all steps of a run that finds the same again.
            scores = known
        if step is not None and index not in step.slices:
            change = SliceChange(
                {"model": MapChange(Runs.of(self._model[index]))}, known, index in self._segmented, True
            )
            step.slices[index] = change
            self._history.begin(step)
        model = self._model[index]
        box = changed_box(model, proposal) if step is None else whole_box(model)
        if scores is not None:
            self._scores[index] = scores
        self._segmented.add(index)
        if box is not None:
            model[box] = proposal[box]
            self._render(index, box)
        return box

    def attribute(self, index: Index, proposal: LabelMap, corrected: NDArray[np.bool_] | None = None) -> None:
        """Say what the model proposes for a slice, without changing what is shown: the rest was changed by a person.

        For maps that were saved together with their corrections.

        Args:
            index: the slice.
            proposal: uint16 ``[H, W]``.
            corrected: bool ``[H, W]``, pixels that a person changed, also where the model proposes the same by now;
                ``None`` if only the difference tells.
        """
        self.notice(index)
        draft = self.draft[index]
        by_hand = (draft != proposal) & (self.accepted[index] == 0)
        if corrected is not None:
            by_hand |= corrected & (self.accepted[index] == 0)
        self._hand[index][by_hand] = draft[by_hand].astype(np.uint32) + 1
        np.copyto(self._model[index], proposal)
        self._render(index)

    def segmented(self, index: Index) -> bool:
        """Whether the model's result is in a slice."""
        return index in self._segmented

    def scores(self, index: Index) -> NDArray[np.uint8] | None:
        """The scores of the model's result, if there is one; uint8 ``[H, W]``."""
        return self._scores.get(index)

    # -- what a person does ----------------------------------------------------------------------------------------

    def notice(self, index: Index) -> None:
        """Take over what a person changed in a slice of either map since this was last called, as a stroke.

        Pixels that were erased from the accepted map stay empty: somebody said that nothing is there.
        """
        found, _ = self._changes(index)
        self._record(found)

    def stroke(self, indices: Iterable[Index]) -> bool:
        """Take over what a person just did, or is about to do, in one of the maps as one stroke.

        Args:
            indices: the slices that it may have changed.

        Returns:
            Whether paint on accepted pixels was removed, so that the draft has to be drawn again.
        """
        found: dict[MapName, list[StrokePart]] = {"draft": [], "accepted": []}
        removed = False
        for index in indices:
            self._pending.add(index)
            changes, covered = self._changes(index)
            removed |= covered
            for each, parts in changes.items():
                found[each] += parts
        self._record(found)
        return removed

    def _changes(self, index: Index) -> tuple[dict[MapName, list[StrokePart]], bool]:
        draft, accepted = self.draft[index], self.accepted[index]
        found: dict[MapName, list[StrokePart]] = {"draft": [], "accepted": []}
        painted = self._painted(index)
        covered = painted & (self._seen_accepted[index] > 0)
        removed = bool(covered.any())
        if removed:
            # Paint on accepted pixels is none, and would be shown until the slice is next drawn.
            draft[covered] = 0
        changed = painted & ~covered
        if changed.any():
            found["draft"].append(self._write(index, "hand", changed, draft[changed].astype(np.uint32) + 1))
        differs = accepted != self._seen_accepted[index]
        if differs.any():
            before = self._seen_accepted[index]
            rows, columns = np.nonzero(differs)
            found["accepted"].append(StrokePart(index, "accepted", rows, columns, before[differs], accepted[differs]))
            erased = differs & (accepted == 0) & ~changed
            if erased.any():
                ones = np.ones(int(erased.sum()), np.uint32)
                found["accepted"].append(self._write(index, "hand", erased, ones))
            np.copyto(before, accepted)
            self._render(index)
        return found, removed

    def _record(self, found: Mapping[MapName, list[StrokePart]]) -> None:
        for name, parts in found.items():
            if parts:
                self._strokes[name].append(tuple(parts))
                del self._strokes[name][:-_MAX_STROKES]
                self._undone_strokes[name].clear()

    def undo_stroke(self, name: MapName) -> bool:
        """Take back the last stroke in one of the maps; what is below it is shown as it is by now.

        Pixels that were changed since, or accepted, stay as they are.

        Returns:
            Whether there was a stroke.
        """
        return self._replay(self._strokes[name], self._undone_strokes[name], undoing=True)

    def redo_stroke(self, name: MapName) -> bool:
        """Do again what `undo_stroke` took back; returns whether there was a stroke."""
        return self._replay(self._undone_strokes[name], self._strokes[name], undoing=False)

    def _replay(self, source: list[Stroke], target: list[Stroke], *, undoing: bool) -> bool:
        # A viewer may tell of a stroke before it is in the map, so the latest may not be recorded yet.
        for index in self._pending | {part.index for stroke in source[-1:] for part in stroke}:
            self.notice(index)
        self._pending.clear()
        if not source:
            return False
        stroke = source.pop()
        target.append(stroke)
        for part in stroke:
            values = self._maps[part.name][part.index]
            here, there = (part.after, part.before) if undoing else (part.before, part.after)
            same = values[part.rows, part.columns] == here
            values[part.rows[same], part.columns[same]] = there[same]
        for index in {part.index for part in stroke}:
            np.copyto(self._seen_accepted[index], self.accepted[index])
            self._render(index)
        return True

    def accept(self, index: Index, ids: Iterable[int], step: Step | None = None) -> int:
        """Move a slice's regions of some labels from the draft to the accepted map.

        Args:
            index: the slice.
            ids: of the labels.
            step: of `begin`, if more than this slice belongs to it.

        Returns:
            Number of pixels moved; pixels that are accepted already stay what they are.
        """
        self.notice(index)
        draft, accepted = self.draft[index], self.accepted[index]
        moved = np.isin(draft, list(ids)) & (draft > 0) & (accepted == 0)
        if not moved.any():
            return 0
        hand, before = self._hand[index], (Runs.of(accepted), Runs.of(self._hand[index]))
        accepted[moved] = draft[moved]
        hand[moved] = 0
        after = Runs.of(accepted), Runs.of(hand)
        step = self.begin("the acceptance") if step is None else step
        step.slices[index] = SliceChange(
            {"accepted": MapChange(before[0], after[0]), "hand": MapChange(before[1], after[1])}
        )
        self._history.begin(step)
        np.copyto(self._seen_accepted[index], accepted)
        self._render(index)
        return int(np.count_nonzero(moved))

    # -- steps -----------------------------------------------------------------------------------------------------

    def undo(self) -> Step | None:
        """Take back the last run, acceptance or removal, in all slices that it changed; strokes stay.

        Returns:
            What was taken back, or ``None`` where there is nothing to undo.
        """
        return self._apply(self._history.pop_done(), undoing=True)

    def redo(self) -> Step | None:
        """Do again what `undo` took back last; returns it, or ``None``."""
        return self._apply(self._history.pop_undone(), undoing=False)

    def _apply(self, step: Step | None, *, undoing: bool) -> Step | None:
        if step is None:
            return None
        for index, change in step.slices.items():
            self.notice(index)
            for name, maps in change.maps.items():
                values = self._maps[name][index]
                if maps.after is None or name == "model":
                    # Only the model writes there, so the other side of the step is whatever it found last.
                    wanted, other = maps.before if undoing else maps.after, Runs.of(values)
                    assert wanted is not None
                    np.copyto(values, wanted.expand())
                    if undoing:
                        maps.after = other
                    else:
                        maps.before = other
                    continue
                before, after = maps.before.expand(), maps.after.expand()
                here, there = (after, before) if undoing else (before, after)
                unchanged_since = (before != after) & (values == here)
                values[unchanged_since] = there[unchanged_since]
            if change.with_scores:
                self._swap_scores(index, change)
            np.copyto(self._seen_accepted[index], self.accepted[index])
            self._render(index)
        return step

    def _swap_scores(self, index: Index, change: SliceChange) -> None:
        scores, segmented = self._scores.pop(index, None), index in self._segmented
        if change.scores is not None:
            self._scores[index] = change.scores
        (self._segmented.add if change.segmented else self._segmented.discard)(index)
        change.scores, change.segmented = scores, segmented

    @property
    def history(self) -> History:
        """What `undo` and `redo` know."""
        return self._history

    def forget_labels(self, ids: Sequence[int], what: str = "the removal of the label", beside: object = None) -> None:
        """Remove labels from both maps, everywhere, as one step.

        Args:
            ids: of the labels.
            what: for the message.
            beside: see `Step`.
        """

        def without(values: NDArray[np.generic], plus: int) -> NDArray[np.generic]:
            return np.where(np.isin(values, [number + plus for number in ids]), 0, values)

        self._rewrite(
            what,
            {
                "model": lambda values: without(values, 0),
                "accepted": lambda values: without(values, 0),
                "hand": lambda values: without(values, 1),
            },
            beside,
        )

    def clear(self, names: Iterable[MapName], what: str) -> None:
        """Empty maps, everywhere, as one step.

        Args:
            names: of the maps.
            what: for the message, such as ``"the removal of the layer"``.
        """
        parts: dict[MapName, tuple[str, ...]] = {"draft": ("model", "hand"), "accepted": ("accepted",)}
        self._rewrite(what, {part: np.zeros_like for name in names for part in parts[name]})

    def renumber(self, new_ids: Mapping[int, int]) -> None:
        """Give labels other ids, everywhere; what was done before cannot be undone any more.

        Args:
            new_ids: by old id; other ids stay.
        """
        if not new_ids:
            return
        for index in self.indices():
            self.notice(index)
            for name, plus in (("model", 0), ("accepted", 0), ("hand", 1)):
                values = self._maps[name][index]
                size = max(int(values.max(initial=0)), *(number + plus for number in new_ids)) + 1
                table = np.arange(size, dtype=values.dtype)
                for old, new in new_ids.items():
                    table[old + plus] = new + plus
                np.copyto(values, table[values])
            np.copyto(self._seen_accepted[index], self.accepted[index])
            self._render(index)
        self._history = History()
        for strokes in (*self._strokes.values(), *self._undone_strokes.values()):
            strokes.clear()

    def _rewrite(self, what: str, rules: Mapping[str, _Rule], beside: object = None) -> None:
        step = Step(what, beside=beside)
        for index in self.indices():
            self.notice(index)
            maps = {}
            for name, rule in rules.items():
                values = self._maps[name][index]
                wanted = rule(values)
                if not np.array_equal(wanted, values):
                    maps[name] = MapChange(Runs.of(values), Runs.of(wanted))
                    np.copyto(values, wanted)
            if not maps:
                continue
            cleared = "model" in maps and not self._model[index].any()
            step.slices[index] = SliceChange(maps)
            if cleared:
                step.slices[index].with_scores = True
                self._swap_scores(index, step.slices[index])
            np.copyto(self._seen_accepted[index], self.accepted[index])
            self._render(index)
        if step.slices:
            self._history.begin(step)

    # -- what is shown and exported --------------------------------------------------------------------------------

    def corrected(self, index: Index) -> NDArray[np.bool_]:
        """Pixels of a slice that a person decided, with or without a label; bool ``[H, W]``."""
        return np.asarray((self.accepted[index] > 0) | self.by_hand(index))

    def by_hand(self, index: Index) -> NDArray[np.bool_]:
        """Pixels of a slice of the draft that a person changed.

        Returns:
            bool ``[H, W]``.
        """
        return np.asarray((self._hand[index] > 0) | self._changed(index))

    def combined(self, index: Index) -> LabelMap:
        """What is exported of a slice: the accepted map, and the draft where nothing is accepted."""
        accepted = self.accepted[index]
        return np.where(accepted > 0, accepted, self.draft[index])

    def confirmed(self, index: Index) -> NDArray[np.bool_]:
        """Pixels of a slice that a person vouches for: accepted, or labeled by hand; bool ``[H, W]``."""
        return np.asarray((self.accepted[index] > 0) | (self.by_hand(index) & (self.draft[index] > 0)))

    def ids_in_use(self) -> set[int]:
        """Ids of all labels that have pixels in either map."""
        found: set[int] = set()
        for index in self.indices():
            for label_map in (self.draft[index], self.accepted[index]):
                found.update(np.flatnonzero(np.bincount(label_map.ravel())).tolist())
        return found - {0}

    @property
    def _maps(self) -> dict[str, NDArray[Any]]:
        return {"model": self._model, "hand": self._hand, "accepted": self.accepted}

    def _write(self, index: Index, name: str, where: NDArray[np.bool_], after: NDArray[Any]) -> StrokePart:
        values = self._maps[name][index]
        rows, columns = np.nonzero(where)
        part = StrokePart(index, name, rows, columns, values[where], after)
        values[where] = after
        return part

    def _expected(self, index: Index, box: Box | None = None) -> LabelMap:
        """The draft, or a part of it, as it was last put there."""
        maps = (self._model[index], self._hand[index], self._seen_accepted[index])
        return draft_of(*(maps if box is None else (values[box] for values in maps)))

    def _changed(self, index: Index) -> NDArray[np.bool_]:
        """Pixels of the draft that somebody changed unnoticed; below accepted ones it is nothing but paint on paint."""
        return self._painted(index) & (self._seen_accepted[index] == 0)

    def _painted(self, index: Index) -> NDArray[np.bool_]:
        return np.asarray(self.draft[index] != self._expected(index))

    def _render(self, index: Index, box: Box | None = None) -> None:
        draft = self.draft[index]
        np.copyto(draft if box is None else draft[box], self._expected(index, box))
