"""``tcl-annotate napari``: opens images in napari with the widget, its labels and its model set."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tcl_core.cli.main import EXIT_FINE
from tcl_core.cli.options import GEOMETRIES, MinAreaType, make_vocabulary, method_option, vocabulary_options
from tcl_core.cli.places import INPUT_PATH
from tcl_core.errors import SettingsError

if TYPE_CHECKING:
    from tcl_core.segmentation.specks import MinArea

__all__ = ["command"]

_NEEDED = ("napari", "magicgui", "npe2", "psutil", "qtpy")
_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")


@click.command(
    "napari",
    short_help="Open images in napari with labels and model set.",
    epilog="""\b
Examples:
  tcl-annotate napari room.jpg --label "Sofa=sofa,couch" --label Lamp
  tcl-annotate napari scan-1.tif scan-2.tif --labels labels.yaml --model naclip:ViT-B-16-quickgelu/openai
  tcl-annotate napari photos --labels labels.yaml""",
)
@click.argument("images", nargs=-1, required=True, type=INPUT_PATH, metavar="IMAGE...")
@vocabulary_options
@click.option(
    "--model",
    metavar="NAME",
    help="Name of a model (see 'tcl-annotate models list') or path of a model file. Default: the last one used.",
)
@click.option("--refine/--no-refine", default=None, help="Refine masks along image edges. Default: as last time.")
@method_option(
    "Option of the model's method, such as kp_weight=0.2; repeatable. Default: as last time; with --model, the "
    "method's own."
)
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps. Default: as last time.")
@click.option("--precision", metavar="NAME", help="auto, float32, bfloat16, float16 or int8. Default: as last time.")
@click.option("--backend", metavar="NAME", help="auto, torch, compile or openvino. Default: as last time.")
@click.option(
    "--min-area",
    type=MinAreaType(),
    metavar="N",
    help="Merge predicted regions with fewer pixels into their surroundings: auto, or a number. Default: as last time.",
)
@click.option(
    "--tolerance",
    metavar="D",
    help="Maximum deviation of polygons from the masks: exact, fine, default, easy-to-edit, or a number of pixels. "
    "Default: as last time.",
)
@click.option(
    "--geometry",
    type=click.Choice(GEOMETRIES),
    help="How regions are exported. Default: as last time.",
)
def command(
    images: tuple[Path, ...],
    labels_file: Path | None,
    label_options: tuple[str, ...],
    background: bool | None,
    background_threshold: float | None,
    background_names: str | None,
    templates: str | None,
    model: str | None,
    refine: bool | None,
    device: str | None,
    precision: str | None,
    backend: str | None,
    option_values: dict[str, str],
    min_area: MinArea | None,
    tolerance: str | None,
    geometry: str | None,
) -> int:
    """Open each IMAGE as a layer in napari, next to the widget 'Segment from text'.

    A single folder is opened in the widget's Folder tab. Without labels, the widget shows those of the last time.
    """
    _check_installed()
    # Its masks lie beside it, under its name, which "." does not say.
    folder = Path(os.path.abspath(images[0])) if len(images) == 1 and _is_folder(images[0]) else None
    if folder is None:
        for path in images:
            _check_image(path)
    vocabulary = None
    given = (labels_file, background, background_threshold, background_names, templates)
    if label_options or any(value is not None for value in given):
        vocabulary = make_vocabulary(
            labels_file, label_options, background, background_threshold, background_names, templates
        )
    model = _checked_model(model, device, precision, backend, option_values)
    pixels = None if tolerance is None else _pixels(tolerance)

    from napari_tcl.window import Wishes, open_window, run

    wishes = Wishes(
        images if folder is None else (),
        folder,
        vocabulary,
        model,
        device,
        precision,
        backend,
        refine,
        option_values or None,
        min_area,
        pixels,
        geometry,
    )
    open_window(wishes)
    run()
    return EXIT_FINE


def _check_installed() -> None:
    """Refuse before napari does, whose own message spans pages.

    Raises:
        SettingsError: napari or every Qt binding is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f'napari: needs {", ".join(missing)}, which is not installed; run pip install "tcl-annotate[napari]" PyQt6'
        )
    if not any(importlib.util.find_spec(name) is not None for name in _BINDINGS):
        raise SettingsError("napari: needs a Qt binding, and none is installed; run pip install PyQt6 (or PySide6)")
    # Qt ends the whole process where it finds no display.
    places = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    if sys.platform == "linux" and not any(os.environ.get(place) for place in places):
        raise SettingsError("napari: there is no display; run it on a desktop, or with xvfb-run")


def _is_folder(path: Path) -> bool:
    # Zarr images are folders.
    return path.is_dir() and path.suffix != ".zarr"


def _check_image(path: Path) -> None:
    if _is_folder(path):
        raise SettingsError(f"{path}: is a folder; give a single folder for the Folder tab, or only images")
    if not path.exists():
        raise SettingsError(f"{path}: does not exist; check the path")


def _pixels(tolerance: str) -> float:
    """The tolerance in pixels.

    Raises:
        SettingsError: it is no tolerance, or one that the widget cannot show.
    """
    from napari_tcl.user_settings import LARGEST_TOLERANCE
    from tcl_core.polygons import tolerance_in_pixels

    pixels = tolerance_in_pixels(tolerance)
    if pixels > LARGEST_TOLERANCE:
        raise SettingsError(
            f"--tolerance {tolerance}: the largest polygon tolerance in the widget is {LARGEST_TOLERANCE:g}; give a "
            "smaller one"
        )
    return pixels


def _checked_model(
    model: str | None, device: str | None, precision: str | None, backend: str | None, options: dict[str, str]
) -> str | None:
    """Refuse before the window opens what the widget could not load.

    Returns:
        The model; a file with its whole path, for the widget remembers it.

    Raises:
        WeightsError: there is no such model.
        SettingsError: the device, the precision or the backend is not available, or the method has no such option.
    """
    if model is not None:
        from tcl_core.models.clips import find_clip
        from tcl_core.models.registry import find_model, named_clip, split_method

        method, name = split_method(model)
        clip = named_clip(model)
        if clip is not None:
            # The widget shows the progress of downloads that it is asked for, and starts none by itself.
            find_clip(clip, fetch=False)
        elif find_model(name) == Path(name):
            whole = os.path.abspath(name)
            model = whole if method is None else f"{method}:{whole}"
        if options:
            from tcl_core.models.registry import check_options

            check_options(model, options)
    if device is not None or precision is not None:
        from tcl_core.devices import select_device, select_precision

        select_precision(precision or "auto", select_device(device or "auto"))
    if backend is not None:
        from tcl_core.backends import select_backend
        from tcl_core.devices import select_device

        select_backend(backend, select_device(device or "auto"))
    return model
