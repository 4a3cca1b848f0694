"""A row of the table of labels, and the parts of a vocabulary that no row shows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

from qtpy.QtWidgets import QPushButton, QWidget

from tcl_core.vocabulary.colors import Color

__all__ = ["LabelRow", "Surroundings", "button_color", "is_painted_name", "paint_button", "painted_name"]

_PAINTED_NAME = re.compile("label [0-9]+")


@dataclass(frozen=True)
class LabelRow:
    """A row of the table, so that it can be brought back.

    Attributes:
        place: of the row, from 0.
        number: the label's id in the layers.
        name: of the label.
        prompts: as typed.
        color: RGB, each 0 to 255.
        threshold: 0 for none.
        visible: whether it is drawn.
        value: pixel value in semantic masks, which the table does not show; ``None`` for the label's position.
    """

    place: int
    number: int
    name: str
    prompts: str
    color: Color
    threshold: float
    visible: bool
    value: int | None = None


@dataclass(frozen=True)
class Surroundings:
    """What a vocabulary says besides its labels.

    Attributes:
        background: ``True``, ``False`` or a threshold.
        names: that compete with the labels, ``None`` for the model's own.
        templates: name of the template set, ``None`` for the model's.
    """

    background: bool | float = True
    names: tuple[str, ...] | None = None
    templates: str | None = None


def painted_name(label_id: int) -> str:
    """What a label is called that somebody painted with before it had a row."""
    return f"label {label_id}"


def is_painted_name(name: str) -> bool:
    """Whether a label has a name from `painted_name`; its id may have changed since, as in another session."""
    return _PAINTED_NAME.fullmatch(name) is not None


def paint_button(button: QPushButton, color: Color) -> None:
    """Show a color on a button."""
    button.setProperty("color", list(color))
    button.setStyleSheet("background-color: rgb({}, {}, {});".format(*color))


def button_color(button: QWidget | None) -> Color:
    """The color that `paint_button` gave to a button."""
    red, green, blue = cast(QPushButton, button).property("color")
    return int(red), int(green), int(blue)
