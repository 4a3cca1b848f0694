"""Asks where to write a file."""

from __future__ import annotations

import re

from qtpy.QtWidgets import QFileDialog, QWidget

__all__ = ["ask_save_path"]


def ask_save_path(parent: QWidget, title: str, name: str, kinds: str) -> str:
    """A path to write to; a name without a suffix gets the first one of its kind, with which it is found again.

    Args:
        parent: of the dialog.
        title: of the dialog.
        name: of the file that is proposed.
        kinds: a Qt filter such as ``"COCO (*.json)"``.

    Returns:
        The path, empty if the dialog was cancelled.
    """
    dialog = QFileDialog(parent, title, "", kinds)
    dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
    suffix = re.search(r"\*\.(\w+)", kinds)
    assert suffix is not None
    # Qt adds it before it asks whether an existing file may be replaced.
    dialog.setDefaultSuffix(suffix[1])
    dialog.selectFile(name)
    return str(dialog.selectedFiles()[0]) if dialog.exec() else ""
