"""A napari window that is opened from the command line, with everything set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import napari
from napari.errors import MultipleReaderError

import napari_tcl.triton_workaround  # noqa: F401 - before PyTorch
from tcl_core.errors import ImageError, SettingsError
from tcl_core.models.registry import check_options

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_tcl.widget import SegmentWidget
    from tcl_core.segmentation.specks import MinArea
    from tcl_core.vocabulary import Vocabulary

__all__ = ["Wishes", "open_window", "run"]

_PLUGIN, _WIDGET = "tcl-annotate", "Segment from text"


@dataclass(frozen=True)
class Wishes:
    """What the window shall show.

    Attributes:
        images: files to open as layers.
        folder: for the Folder tab, or ``None``.
        vocabulary: the labels, ``None`` for those that the widget remembers.
        model: name of a model or path of a model file, ``None`` for the remembered one.
        device: name of the device, ``None`` for the remembered one.
        precision: name of the precision, ``None`` for the remembered one.
        backend: name of what runs the network, ``None`` for the remembered one.
        refine: whether masks follow the image's edges, ``None`` for what is remembered.
        options: values of the method's options by their names, ``None`` for those that are remembered, if the model is.
        min_area: pieces of fewer pixels join their surroundings, ``None`` for what is remembered.
        tolerance: of polygons in pixels, ``None`` for what is remembered.
        geometry: of the export, ``None`` for what is remembered.
    """

    images: tuple[Path, ...]
    folder: Path | None
    vocabulary: Vocabulary | None
    model: str | None
    device: str | None
    precision: str | None
    backend: str | None
    refine: bool | None
    options: Mapping[str, str] | None = None
    min_area: MinArea | None = None
    tolerance: float | None = None
    geometry: str | None = None


def open_window(wishes: Wishes) -> tuple[Viewer, SegmentWidget]:
    """Open a window with image layers and the widget; `run` shows it until it is closed.

    Args:
        wishes: what it shall show; paths exist.

    Returns:
        The viewer and the widget in it.

    Raises:
        ImageError: napari cannot read a file.
        SettingsError: no window can be opened, the widget cannot be set so, or the method has no such option.
    """
    try:
        viewer = napari.Viewer(show=True)
    except (ImportError, RuntimeError) as error:
        raise SettingsError(f"napari: no window can be opened ({' '.join(str(error).split())[:200]})") from error
    try:
        _, docked = viewer.window.add_plugin_dock_widget(_PLUGIN, _WIDGET)
        widget = cast("SegmentWidget", docked)
        _set(widget, wishes)
        for path in wishes.images:
            _open(viewer, path)
        if wishes.folder is not None:
            widget.folder.folder.value = wishes.folder
            widget.tabs.setCurrentWidget(widget.folder)
    except BaseException:
        viewer.close()
        raise
    return viewer, widget


def run() -> None:
    """Show the windows until all are closed."""
    napari.run()


def _set(widget: SegmentWidget, wishes: Wishes) -> None:
    widget.model.set_choice(
        wishes.model, wishes.device, wishes.precision, wishes.backend, wishes.refine, wishes.options
    )
    if wishes.options:
        choice = widget.model.choice()
        check_options(choice.model, dict(choice.options))
    widget.polygons.set_choice(wishes.min_area, wishes.tolerance, wishes.geometry)
    if wishes.vocabulary is not None:
        widget.labels.set_vocabulary(wishes.vocabulary)
    if wishes.model is not None or wishes.options:
        # Whoever names a model wants to see that it was chosen.
        widget.sections["model"].folded = False


def _open(viewer: Viewer, path: Path) -> None:
    place = str(path.absolute())
    try:
        try:
            layers = viewer.open(place)
        except MultipleReaderError:
            # Another plugin reads such files too, and nobody is there to be asked which to take.
            layers = viewer.open(place, plugin="napari")
    # Each reader has errors of its own.
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise ImageError(f"{path}: napari cannot open it as an image ({type(error).__name__}: {text})") from error
    if not layers:
        raise ImageError(f"{path}: napari finds no image in it")
