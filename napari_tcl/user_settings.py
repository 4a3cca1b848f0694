"""What the widget remembers from one day to the next, in the user's configuration folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

__all__ = [
    "CONFIG_VARIABLE",
    "LARGEST_TOLERANCE",
    "RememberedLabel",
    "UserSettings",
    "load_settings",
    "save_settings",
    "settings_path",
]

CONFIG_VARIABLE = "TCL_ANNOTATE_CONFIG"
LARGEST_TOLERANCE = 8.0
"""Of polygons, in pixels: what the widget's slider reaches."""

_MAX_BYTES = 1 << 20
_MAX_LABELS = 10_000
_MAX_ID = 65_535


class RememberedLabel(BaseModel):
    """A row of the table of labels, also a half-typed one.

    Attributes:
        number: the label's id in the layers, so that layers which were saved without names mean the same labels.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    name: str
    prompts: str = ""
    color: list[int] = Field(min_length=3, max_length=3)
    threshold: float = Field(default=0, ge=0, le=1)
    visible: bool = True
    value: int | None = None
    number: int | None = Field(default=None, ge=1, le=_MAX_ID)


class UserSettings(BaseModel):
    """The settings of the widget; the defaults are those of a first start.

    Attributes:
        model: name of the model.
        model_file: own model file, empty for none.
        method: of segmentation, empty for the model's.
        options: of the method, as typed.
        templates: name of the template set, empty for the model's.
        device: name of the device, or ``auto``.
        precision: name of the precision, or ``auto``.
        backend: name of what runs the network, or ``auto``.
        refine: whether masks follow the image's edges.
        labels: rows of the table.
        background: whether pixels may stay without a label.
        custom_threshold: whether ``threshold`` counts, not the model's.
        threshold: of the background.
        competing_names: as typed.
        min_area: as typed.
        tolerance: of polygons in pixels.
        geometry: of the export.
        polygons: whether a polygons layer is shown.
        scores: whether score maps are shown.
        folder: of the Folder tab, empty for none.
        keep_features: whether a folder's features are kept on disk.
        folded: which sections are folded, by name.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    model: str = "playground"
    model_file: str = ""
    method: str = ""
    options: str = ""
    templates: str = ""
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    refine: bool = True
    labels: list[RememberedLabel] = Field(default=[], max_length=_MAX_LABELS)
    background: bool = True
    custom_threshold: bool = False
    threshold: float = Field(default=0.5, ge=0, le=1)
    competing_names: str = "auto"
    min_area: str = "auto"
    tolerance: float = Field(default=5.0, ge=0, le=LARGEST_TOLERANCE)
    geometry: str = "polygon"
    polygons: bool = False
    scores: bool = False
    folder: str = ""
    keep_features: bool = True
    folded: dict[str, bool] = {}


def settings_path() -> Path:
    """The file: ``napari.json`` in ``TCL_ANNOTATE_CONFIG`` if that is set, else in the user's configuration folder."""
    chosen = os.environ.get(CONFIG_VARIABLE)
    folder = Path(chosen).expanduser() if chosen else user_config_path("tcl-annotate", appauthor=False)
    return folder / "napari.json"


def load_settings(path: Path) -> tuple[UserSettings, str]:
    """Read the settings; what cannot be used is replaced by its default.

    A file that is no JSON object is set aside, so that the next one does not overwrite it.

    Args:
        path: of the file; it need not exist.

    Returns:
        The settings, and a sentence about what was ignored, empty if nothing was.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        return UserSettings(), ""
    except OSError as error:
        return UserSettings(), f"{path}: the remembered settings cannot be read ({error.strerror}); defaults are used"
    except (ValueError, RecursionError):
        return UserSettings(), f"{path}: the remembered settings are damaged; defaults are used{_set_aside(path)}"
    good: dict[str, Any] = {}
    ignored = []
    for name in UserSettings.model_fields:
        if name not in found:
            continue
        try:
            good[name] = getattr(UserSettings.model_validate({name: found[name]}), name)
        except ValidationError:
            ignored.append(name)
    word = f"{path}: ignored remembered settings that are not valid: {', '.join(ignored)}" if ignored else ""
    return UserSettings(**good), word


def save_settings(path: Path, settings: UserSettings) -> None:
    """Write the settings, in place of older ones, in a folder that is made if need be.

    Raises:
        OSError: it cannot be written; older settings stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            # Only ASCII, because names of files need not be valid text.
            json.dump(settings.model_dump(), file, indent=1)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _set_aside(path: Path) -> str:
    aside = path.with_name(f"{path.name}.bad")
    try:
        os.replace(path, aside)
    except OSError:
        return ""
    return f", and the file is kept as {aside.name}"
