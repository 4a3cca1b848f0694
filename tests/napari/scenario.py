"""The whole workflow in a real window, with a screenshot of each step: ``python -m tests.napari.scenario FOLDER``.

It is a program of its own, so that it can run under each Qt binding. It makes the screenshots of ``docs/napari.md``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import napari
import numpy as np
import qtpy
from PIL import Image
from qtpy.QtCore import QTimer

from tests.napari.coco_pixels import label_maps_of
from tests.napari.images_of_steps import STEPS
from tests.napari.steps import brush, dock, idle, register_plugin, settle

__all__ = ["run"]

_WINDOW = (1400, 900)
_COLORS = 256  # of a screenshot: enough for the eye, a third of the bytes
_LABELS = (("Sofa", "sofa, couch"), ("House", "house"))


def run(folder: Path) -> None:
    """Open the sample, type two labels, segment, move a threshold, correct, accept, export, and check the file.

    Args:
        folder: for the screenshots ``napari-STEP.png``.
    """
    register_plugin()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*_WINDOW)
    settle()
    # Libraries of the graphics driver are loaded by now, PyTorch's come with the plugin.
    assert "torch" not in sys.modules
    viewer.open_sample("tcl-annotate", "scene")
    widget = dock(viewer)
    widget.model.device.value = "cpu"
    settle()
    viewer.reset_view()
    _screenshot(viewer, folder, "opened")

    for name, prompts in _LABELS:
        widget.labels.add_row(name, prompts)
    _screenshot(viewer, folder, "typed")

    widget.buttons.segment.click()
    idle(widget)
    current = widget.current()
    assert current is not None, widget.buttons.message.text()
    results, _ = current
    _screenshot(viewer, folder, "segmented")

    before = results.draft.data.copy()
    # Somewhat less than what the model asks for.
    assert widget.engine.loaded is not None
    widget.background.threshold.value = widget.engine.loaded.settings()["background_threshold"] * 0.85
    idle(widget)
    assert np.count_nonzero(results.draft.data) >= np.count_nonzero(before)
    _screenshot(viewer, folder, "threshold")

    height, width = results.draft.data.shape
    brush(viewer, results.draft, widget.labels.ids[0], height // 2, width // 2, size=40)
    stroke = results.draft.data.copy()
    idle(widget)
    _screenshot(viewer, folder, "corrected")

    widget.labels.table.setCurrentCell(0, 1)
    widget.buttons.accept.click()
    idle(widget)
    assert np.array_equal(results.accepted.data == widget.labels.ids[0], stroke == widget.labels.ids[0])
    assert np.array_equal(results.annotation.combined(()), stroke)
    _screenshot(viewer, folder, "accepted")

    widget.polygons.geometry.value = "rle"
    from tcl_core.export.coco import validate_coco

    with tempfile.TemporaryDirectory() as exports:
        out = Path(exports) / "labels.json"
        widget.export(out)
        idle(widget)
        assert validate_coco(out) == []
        (exported,) = label_maps_of(out).values()
    assert np.array_equal(exported, stroke)
    _screenshot(viewer, folder, "exported")
    print(f"{qtpy.API_NAME}: {np.count_nonzero(exported)} labeled pixels, equal to the layers")

    # As a user ends it, in the middle of work.
    widget.model.refine.value = False
    widget.segment()
    QTimer.singleShot(0, viewer.window._qt_window.close)
    napari.run()


def _screenshot(viewer: napari.Viewer, folder: Path, step: str) -> None:
    assert step in STEPS
    settle()
    shot = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)[..., :3])
    shot.quantize(_COLORS).save(folder / f"napari-{step}.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.napari.scenario FOLDER")
    run(Path(sys.argv[1]))
