"""Scrolling over the widget must not change what is set in it."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtWidgets import QAbstractSlider, QAbstractSpinBox, QComboBox, QScrollBar, QTabBar, QWidget

__all__ = ["guard_wheel"]

_KINDS = (QAbstractSpinBox, QAbstractSlider, QComboBox, QTabBar)


def guard_wheel(root: QWidget) -> None:
    """Let the mouse wheel change a control only while it has the keyboard focus; else it scrolls what is around it.

    Args:
        root: a control, or a widget with controls inside; those that are added later need a call of their own.
    """
    guard = _WheelGuard(root)
    for control in (root, *root.findChildren(QWidget)):
        if not isinstance(control, _KINDS) or isinstance(control, QScrollBar):
            continue
        control.installEventFilter(guard)
        if control.focusPolicy() == Qt.FocusPolicy.WheelFocus:
            # With this policy the wheel itself gives the focus, before the event arrives.
            control.setFocusPolicy(Qt.FocusPolicy.StrongFocus)


class _WheelGuard(QObject):
    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:  # noqa: N802 - Qt's name
        if event is None or event.type() != QEvent.Type.Wheel or not isinstance(watched, QWidget):
            return False
        if watched.hasFocus():
            return False
        # An event that is ignored goes on to the parent, and so to the scroll area.
        event.ignore()
        return True
