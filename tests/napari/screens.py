"""Screenshots of the widget at small and usual sizes, in the dark and the light theme, to look at.

``python -m tests.napari.screens FOLDER`` writes ``SIZE-THEME-STEP.png``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import napari
from napari.settings import get_settings

from napari_tcl.user_settings import CONFIG_VARIABLE
from tests.napari.steps import dock, idle, settle

__all__ = ["take"]

SIZES = ((1280, 720), (1400, 900))
THEMES = ("dark", "light")
_LABELS = (("Sofa", "sofa, couch"), ("House", "house"), ("A label with a long name", "a prompt that is longer still"))
_PATH = "/a/folder/with/a/long/path/that/holds/the/annotations/of/the/third/campaign/labels-of-all-images.json"


def take(folder: Path) -> None:
    """Write the screenshots of each size, theme and step.

    Args:
        folder: for the images; it must exist.
    """
    for width, height in SIZES:
        for theme in THEMES:
            get_settings().appearance.theme = theme
            # Else the window would open with what the one before it was closed with.
            os.environ[CONFIG_VARIABLE] = tempfile.mkdtemp(dir=folder)
            viewer = napari.Viewer(show=True)
            viewer.window.resize(width, height)
            widget = dock(viewer)
            settle()
            viewer.open_sample("tcl-annotate", "scene")
            viewer.reset_view()
            widget.model.device.value = "cpu"

            place = str(folder / f"{width}x{height}-{theme}")
            for name, prompts in _LABELS[:2]:
                widget.labels.add_row(name, prompts)
            widget.segment()
            idle(widget)
            _shoot(viewer, f"{place}-daily.png")
            widget.labels.add_row(*_LABELS[2])
            widget.fail(f"{_PATH}: cannot be written to; change its permissions, or choose another folder")
            for section in widget.sections.values():
                section.folded = False
            _shoot(viewer, f"{place}-unfolded.png")
            widget.tabs.setCurrentIndex(1)
            _shoot(viewer, f"{place}-folder.png")
            viewer.close()


def _shoot(viewer: napari.Viewer, path: str) -> None:
    settle()
    viewer.screenshot(path, canvas_only=False, flash=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.napari.screens FOLDER")
    take(Path(sys.argv[1]))
