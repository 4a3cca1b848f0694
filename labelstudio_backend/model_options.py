"""Which model predicts, how, and what identifies its predictions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelstudio_backend.labeling_config import LabelingConfig, ProjectConfig
from labelstudio_backend.prompts import Added
from tcl_core.errors import SettingsError
from tcl_core.images import DEFAULT_MAX_PIXELS
from tcl_core.polygons import tolerance_in_pixels
from tcl_core.segmentation.specks import MinArea, check_min_area

if TYPE_CHECKING:
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["FAILED_VERSION", "ModelOptions", "model_version"]

_RESULTS_FORMAT = 4
"""Raise it when equal settings begin to give other regions."""

FAILED_VERSION = "tcl-annotate-failed"
"""Version of the empty answer for a task that failed: none of a model, so that Label Studio asks again for the task."""


@dataclass(frozen=True)
class ModelOptions:
    """A model and everything that its predictions depend on besides images and vocabulary.

    Attributes:
        model: a name of ``tcl-annotate models list``, or the path of a model file.
        refine: whether masks follow the image's edges.
        options: values of the method's options, such as ``{"kp_weight": 0.2}``; those left out are the model's.
        device: see :func:`tcl_core.devices.select_device`.
        precision: see :func:`tcl_core.devices.select_precision`.
        batch_size: most windows that go through the network together.
        tolerance: of the polygons, see :func:`tcl_core.polygons.tolerance_in_pixels`.
        min_area: regions of fewer pixels are merged into their surroundings; ``"auto"`` takes what follows from the
            model's patch (two patches for a task, a quarter of one for what an annotator asks for), 0 keeps all.
        max_pixels: larger images are refused.
        backend: see :func:`tcl_core.backends.select_backend`.

    Raises:
        SettingsError: a value is out of range.
    """

    model: str = "playground"
    refine: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 8
    tolerance: str | float = "easy-to-edit"
    min_area: MinArea = "auto"
    max_pixels: int = DEFAULT_MAX_PIXELS
    backend: str = "auto"

    def __post_init__(self) -> None:
        check_min_area(self.min_area)
        if self.max_pixels < 1:
            raise SettingsError(f"max_pixels is {self.max_pixels}; give a number of pixels, 1 or more")
        tolerance_in_pixels(self.tolerance)

    def load(self) -> Segmenter:
        """Load the model; see :func:`tcl_core.models.load_model` for the errors."""
        from tcl_core.models import load_model
        from tcl_core.segmentation.segmenter import Segmenter

        loaded = load_model(self.model, self.device, self.precision, self.backend)
        return Segmenter(loaded, refine=self.refine, options=self.options, batch_size=self.batch_size)

    def identity(self) -> str:
        """Canonical JSON of the weights' hash, the method and the settings; reads the file, but loads nothing.

        Raises:
            WeightsError: there is no such model.
            SettingsError: an option is unknown or out of range.
        """
        from tcl_core.models.registry import check_options, named_clip, weights_file

        method, options = check_options(self.model, self.options)

        settings = asdict(self)
        for name in ("model", "batch_size", "max_pixels"):
            del settings[name]
        return json.dumps(
            {
                "weights": _sha256(weights_file(self.model)),
                "method": method,
                # The configuration under which a CLIP's file is used is not in the file.
                **({"clip": str(clip)} if (clip := named_clip(self.model)) else {}),
                **settings,
                "options": options,
                **self._calibrations(),
            },
            sort_keys=True,
        )

    def _calibrations(self) -> dict[str, Any]:
        """What int8 depends on beside the settings, which another measurement changes."""
        if self.precision != "int8":
            return {}
        from tcl_core.backends.calibration import calibration_digests
        from tcl_core.backends.networks import NetworkStore
        from tcl_core.models.paths import networks_folder
        from tcl_core.models.registry import weights_file

        weights = _sha256(weights_file(self.model))
        return {"calibrations": calibration_digests(NetworkStore(networks_folder()), weights)}


@lru_cache(maxsize=8)
def _sha256(path: Path) -> str:
    from tcl_core.models.paths import file_sha256

    return file_sha256(path)


def model_version(options: ModelOptions, config: LabelingConfig | ProjectConfig, added: Added) -> str:
    """Name of what predicts: equal versions give equal predictions.

    Args:
        options: the model and its settings.
        config: the project's labeling configuration, or the part of it that is about one image.
        added: the project's typed prompts.

    Returns:
        The model's name and a hash of weights, settings, vocabulary, tags and prompts.
    """
    images = config.images if isinstance(config, ProjectConfig) else (config,)
    typed = sorted((label, list(prompts)) for label, prompts in added.items() if prompts)
    what = [_RESULTS_FORMAT, options.identity(), *map(repr, images), typed]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return f"{Path(options.model).stem}-{digest[:10]}"
