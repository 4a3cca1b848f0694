"""The widget as the Plugins menu opens it: napari then hands over a public proxy of the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari import Viewer

    from napari_tcl.widget import SegmentWidget

__all__ = ["open_from_menu"]

_MANIFEST = Path(__file__).parents[2] / "napari_tcl" / "napari.yaml"


def open_from_menu(viewer: Viewer) -> SegmentWidget:
    """Open the widget, and leave it as it opens."""
    from npe2 import PluginManager, PluginManifest

    plugins = PluginManager.instance()
    plugins.discover()
    if "tcl-annotate" not in plugins:
        # A checkout that is not installed.
        plugins.register(PluginManifest.from_file(_MANIFEST))
    _, widget = viewer.window.add_plugin_dock_widget("tcl-annotate", "Segment from text")
    return widget
