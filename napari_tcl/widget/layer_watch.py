"""Keeps the widget in step with the viewer's layers: opened, selected, renamed, moved, replaced, removed, reopened."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Labels
from qtpy.QtCore import QTimer

from napari_tcl.adoption import Found, find_layers, fit, known_labels
from napari_tcl.annotation import Annotation
from napari_tcl.placement import frame_of
from napari_tcl.results import Results, placement_events
from napari_tcl.slices import Index, SliceReader
from napari_tcl.widget.removing import LabelRemoval
from tcl_core.errors import TclError

if TYPE_CHECKING:
    from napari_tcl.widget.main import SegmentWidget

__all__ = ["LayerWatch"]

_ACCEPT_KEY = "c"
_MOST_TOLD = 6


class LayerWatch:
    """The results of all images in the viewer, and what happens to their layers.

    Args:
        owner: the widget with labels, forms and threads.
    """

    def __init__(self, owner: SegmentWidget) -> None:
        self._owner = owner
        self.results: list[Results] = []
        self._watched: list[Image] = []
        # Layers of results that are being made, of which the viewer tells before they are known.
        self._adding = False
        self._shown: tuple[str, Index] | None = None
        viewer, react = owner.viewer, owner.tasks.while_open
        viewer.layers.events.inserted.connect(react(self._on_inserted))
        viewer.layers.events.removed.connect(react(self._on_removed))
        viewer.layers.selection.events.active.connect(react(self._on_selected))
        viewer.dims.events.point.connect(react(self._on_slice))
        viewer.dims.events.order.connect(react(self._on_slice))
        for form in (owner.image_form, owner.image_form.channel_form):
            form.changed.connect(lambda _: self._on_image_chosen())

    def start(self) -> None:
        """Take up what is in the viewer already, once the rows of the table are there."""
        self._on_inserted()
        self._on_selected()

    # -- results ---------------------------------------------------------------------------------------------------

    def find(self, layer: Image, reader: SliceReader) -> Results | None:
        """The results of an image, if their layers are in the viewer."""
        for results in reversed(self.results):
            if results.image is layer and results.alive and results.fits(reader):
                return results
        return None

    def results_for(self, layer: Image, reader: SliceReader) -> Results:
        """The results of an image; made if there are none, with layers that an earlier day left in the viewer."""
        found = self.find(layer, reader)
        if found is None:
            kept = find_layers(self._owner.viewer, layer, frame_of(layer, reader), self._taken())
            found = self._add(layer, reader, kept if kept.ours else Found())
        found.show_layers()
        return found

    def _add(self, layer: Image, reader: SliceReader, kept: Found) -> Results:
        owner = self._owner
        frame = frame_of(layer, reader)
        if kept.annotation is not None and not any(results.alive for results in self.results):
            self._take_ids(kept.annotation, list(kept.layers.values()))
        renumbered = self._take_labels(list(kept.layers.values()))
        if kept.annotation is not None and renumbered:
            kept.annotation.renumber(renumbered)
        elif kept.annotation is None:
            for each in kept.layers.values():
                data = fit(np.asarray(each.data), frame)
                assert data is not None
                table = np.arange(max(int(data.max(initial=0)), *renumbered, 0) + 1)
                table[list(renumbered)] = list(renumbered.values())
                each.data = table[data].astype(np.uint16)
        self._adding = True
        results = Results(
            owner.viewer,
            layer,
            reader,
            owner.labels.shown_labels(),
            found=kept.layers,
            annotation=kept.annotation,
            on_layer=self._prepare_layer,
        )
        self._adding = False
        self.results.append(results)
        if kept.layers:
            self.name_painted(results)
            # Later, because the viewer may be about to tell others of the image, which covers what lies below it.
            QTimer.singleShot(0, partial(owner.tasks.while_open(partial(self._lift, results)), None))
        if owner.labels.ids:
            row = max(owner.labels.table.currentRow(), 0)
            results.draft.selected_label = owner.labels.ids[row]
        if not kept.layers:
            owner.viewer.layers.selection.active = results.draft
        return results

    def _lift(self, results: Results) -> None:
        """Move layers that lie below the image, where nobody sees them, above it."""
        layers = self._owner.viewer.layers
        for layer in (results.draft, results.accepted):
            if results.image in layers and layer in layers and layers.index(layer) < layers.index(results.image):
                layers.move(layers.index(layer), layers.index(results.image) + 1)

    def _taken(self) -> list[object]:
        return [layer for results in self.results for layer in (results.draft, results.accepted)]

    def _prepare_layer(self, layer: Labels) -> None:
        owner, react = self._owner, self._owner.tasks.while_open
        layer.bind_key(_ACCEPT_KEY, react(owner.accept), overwrite=True)
        layer.events.paint.connect(react(partial(self._on_paint, layer)))

    def _take_ids(self, note: Annotation, layers: list[Labels]) -> None:
        """Number the rows as the layers do, because other numbers would cost all that can be undone."""
        removed = [
            row for step in note.history.steps if isinstance(step.beside, LabelRemoval) for row in step.beside.rows
        ]
        known = {label.name: number for layer in layers for number, label in known_labels(layer).items()}
        self._owner.labels.take_ids(known, [row.number for row in removed])

    def _take_labels(self, layers: list[Labels]) -> dict[int, int]:
        """Give the labels of layers rows in the table; returns their new ids where those are others."""
        table, renumbered = self._owner.labels, {}
        for layer in layers:
            for number, known in known_labels(layer).items():
                ids = dict(zip((label.name for label in table.shown_labels()), table.ids, strict=True))
                if known.name not in ids:
                    free = number not in table.ids
                    table.add_row(known.name, known.prompts, known.color, label_id=number if free else None)
                    ids[known.name] = table.ids[-1]
                if ids[known.name] != number:
                    renumbered[number] = ids[known.name]
        return renumbered

    def name_painted(self, results: Results) -> None:
        """Give rows to ids in the layers that no row has, so that everything can be seen, chosen and exported."""
        selected = results.draft.selected_label
        new = self._owner.labels.add_painted(results.annotation.ids_in_use())
        if new:
            results.style(self._owner.labels.shown_labels())
            results.draft.selected_label = selected

    # -- reactions -------------------------------------------------------------------------------------------------

    def _on_inserted(self) -> None:
        owner = self._owner
        owner.image_form.refill()
        new = [layer for layer in owner.viewer.layers if isinstance(layer, Image) and layer not in self._watched]
        for layer in new:
            self._watch(layer)
        if new:
            owner.image_form.choose(new[-1])
        self.adopt()
        self._show_scope()

    def _watch(self, layer: Image) -> None:
        react = self._owner.tasks.while_open
        self._watched.append(layer)
        for event in placement_events(layer):
            event.connect(react(partial(self._on_moved, layer)))
        layer.events.name.connect(react(self._owner.image_form.refill))
        layer.events.data.connect(react(partial(self._on_replaced, layer)))

    def _on_removed(self) -> None:
        owner = self._owner
        self._watched = [layer for layer in self._watched if layer in owner.viewer.layers]
        for results in self.results:
            results.layer_removed()
        self.results = [results for results in self.results if results.alive]
        owner.image_form.refill()
        owner.stop_if_removed()
        self._show_scope()
        # Later, because layers that are removed together are told of one by one, and ours are forgotten afterwards.
        QTimer.singleShot(0, partial(owner.tasks.while_open(owner.overlays.follow_deleted), None))

    def _on_selected(self) -> None:
        active = self._owner.viewer.layers.selection.active
        if isinstance(active, Image):
            self._owner.image_form.choose(active)
        for results in self.results:
            if active is not None and results.alive and results.owns(active):
                self._owner.image_form.choose(results.image)

    def _on_image_chosen(self) -> None:
        self.adopt()
        self._show_scope()

    def _show_scope(self) -> None:
        try:
            _, reader = self._owner.image_form.source()
        except TclError:
            is_stack = False
        else:
            is_stack = bool(reader.stack_shape)
        self._owner.buttons.every.setEnabled(is_stack)
        if not is_stack:
            self._owner.buttons.every.setChecked(False)

    def _on_slice(self) -> None:
        current = self._owner.current()
        shown = None if current is None else (current[0].image.name, current[1])
        # The viewer also tells when layers are added, such as those that follow.
        if shown is not None and shown != self._shown:
            self._owner.overlays.follow()
        self._shown = shown

    def _on_moved(self, layer: Image) -> None:
        for results in self.results:
            if results.image is layer and results.alive:
                results.follow_image()

    def _on_paint(self, layer: Labels) -> None:
        """Paint with a number that no row has gets one, as after napari's key for a new label."""
        owner = self._owner
        number = int(layer.selected_label)
        if number and number not in owner.labels.ids:
            (name,) = owner.labels.add_painted([number])
            owner.buttons.say(f"{name} was added to the table for what you painted; type its name there")
        owner.overlays.follow()

    def _on_replaced(self, layer: Image) -> None:
        """Somebody gave an image's layer other pixels."""
        owner = self._owner
        owner.stop_on(layer)
        topic = f"replaced {id(layer)}"
        for results in self.results:
            if results.image is not layer or not results.alive:
                continue
            results.sessions.clear()
            if not results.annotation.ids_in_use():
                continue
            data = layer.data[0] if layer.multiscale else layer.data
            if tuple(data.shape[: layer.ndim]) != results.image_shape:
                owner.buttons.say(
                    f"the image of {layer.name!r} now has another size; its labels stay in their layers, and the next "
                    "run makes new ones"
                )
                continue
            owner.question.ask(
                topic,
                f"The image of {layer.name!r} was replaced, but the labels were made for the one before.",
                {
                    "Keep the labels": lambda: owner.buttons.say("the labels are kept; press Segment to update them"),
                    "Clear the labels": partial(self._clear, results),
                },
            )

    def _clear(self, results: Results) -> None:
        results.clear()
        self._owner.buttons.say("the labels are cleared; Undo brings them back")
        self._owner.overlays.follow()

    # -- going on --------------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Go on with labels layers of the chosen image that are in the viewer already."""
        owner = self._owner
        try:
            layer, reader = owner.image_form.source()
        except TclError:
            return
        if self._adding or self.find(layer, reader) is not None:
            return
        kept = find_layers(owner.viewer, layer, frame_of(layer, reader), self._taken())
        topic = f"adopt {id(layer)}"
        if not kept.layers:
            owner.question.withdraw(topic)
        elif kept.ours:
            self._go_on(layer, reader, kept)
        else:
            names = " and ".join(repr(each.name) for each in kept.layers.values())
            told = self._told_numbers(list(kept.layers.values()))
            owner.question.ask(
                topic,
                f"Continue with the labels in {names}? {told} Later runs keep them.",
                {"Continue": partial(self._go_on_if_there, layer, kept), "Leave them alone": lambda: None},
            )

    def _told_numbers(self, layers: list[Labels]) -> str:
        """What the numbers in layers without names will mean."""
        names = {label.id: label.name for label in self._owner.labels.shown_labels()}
        used = sorted({int(number) for layer in layers for number in np.unique(np.asarray(layer.data))} - {0})
        if not used:
            return "They are empty."
        told = [f"{number} is {names[number]!r}" if number in names else f"{number} is a new row" for number in used]
        more = ["..."] if len(told) > _MOST_TOLD else []
        return f"Their numbers are taken as in the table: {', '.join([*told[:_MOST_TOLD], *more])}."

    def _go_on_if_there(self, layer: Image, kept: Found) -> None:
        owner = self._owner
        if layer not in owner.viewer.layers or any(each not in owner.viewer.layers for each in kept.layers.values()):
            owner.buttons.say("these layers were removed in the meantime")
            return
        owner.image_form.choose(layer)
        _, reader = owner.image_form.source()
        self._go_on(layer, reader, kept)

    def _go_on(self, layer: Image, reader: SliceReader, kept: Found) -> None:
        results = self._add(layer, reader, kept)
        count = len(results.annotation.ids_in_use())
        noun = "label" if count == 1 else "labels"
        self._owner.buttons.say(f"continuing with the layers of {layer.name!r}: {count} {noun}; later runs keep them")
