"""What all forms of the widget have in common."""

from __future__ import annotations

from magicgui.widgets import Container
from qtpy.QtWidgets import QComboBox, QWidget

from napari_tcl.widget.long_names import show_long_names
from napari_tcl.widget.wheel import guard_wheel

__all__ = ["finish_form"]


def finish_form(form: Container) -> None:
    """Let a form fit into its box, and its tooltips reach the parts of which sliders and file fields are made.

    The mouse wheel scrolls past it, and long names do not widen it.
    """
    form.margins = (0, 0, 0, 0)
    for part in form:
        for child in part.native.findChildren(QWidget):
            child.setToolTip(part.tooltip)
    for combo in form.native.findChildren(QComboBox):
        show_long_names(combo)
    guard_wheel(form.native)
