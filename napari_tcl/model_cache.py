"""The loaded model and the images that are at hand: what one window works with."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from napari_tcl.feature_store import FolderFeatureCache
from tcl_core.images import content_hash
from tcl_core.models import Model, load_model
from tcl_core.models.registry import check_options
from tcl_core.segmentation.features import check_image
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession

__all__ = ["Engine", "ModelChoice"]

_SESSIONS = 3
_CPU_BATCH, _GPU_BATCH = 1, 8


@dataclass(frozen=True)
class ModelChoice:
    """Which model, where and how.

    Attributes:
        model: name or path, see `tcl_core.models.load_model`.
        device: see `tcl_core.devices.select_device`.
        precision: see `tcl_core.devices.select_precision`.
        backend: see `tcl_core.backends.select_backend`.
        refine: whether masks follow the image's edges.
        options: names and values of the method's options.
    """

    model: str = "playground"
    device: str = "auto"
    precision: str = "auto"
    backend: str = "auto"
    refine: bool = True
    options: tuple[tuple[str, str], ...] = ()


class Engine:
    """Loads the model when it is needed and keeps the sessions of the last few images.

    Not for several threads at once.

    Args:
        cache: features of more images than there are sessions.

    Attributes:
        cache: the same.
    """

    def __init__(self, cache: FolderFeatureCache | None = None) -> None:
        self.cache = FolderFeatureCache() if cache is None else cache
        self._choice: ModelChoice | None = None
        self._segmenter: Segmenter | None = None
        self._sessions: OrderedDict[str, ImageSession] = OrderedDict()

    @property
    def loaded(self) -> Segmenter | None:
        """The segmenter that was used last, if any."""
        return self._segmenter

    def segmenter(self, choice: ModelChoice) -> Segmenter:
        """The segmenter of a choice; loads the model if it is another than before.

        Raises:
            WeightsError: the model cannot be loaded; the one before stays.
            SettingsError: the device, precision or backend is not available, or an option is unknown or out of range.
        """
        if self._segmenter is None or choice != self._choice:
            options = dict(choice.options)
            if options:
                # Before the weights are read, which takes a while.
                check_options(choice.model, options)
            before = self._choice
            same = before is not None and replace(before, refine=choice.refine, options=choice.options) == choice
            if self._segmenter is not None and same:
                model = cast(Model, self._segmenter.model)
            else:
                model = load_model(choice.model, choice.device, choice.precision, choice.backend)
            # On a processor the network gains nothing from company, and cancelling waits for a batch.
            batch = _CPU_BATCH if model.device.type == "cpu" else _GPU_BATCH
            self._segmenter = Segmenter(
                model, refine=choice.refine, options=options, cache=self.cache, batch_size=batch
            )
            self._choice = choice
            self._sessions.clear()
        return self._segmenter

    def session(self, choice: ModelChoice, image: NDArray[np.uint8]) -> ImageSession:
        """The session of an image, an old one if the image is the same to the pixel.

        Args:
            choice: of the model.
            image: uint8 ``[H, W, 3]``, RGB.

        Raises:
            ImageError: the array is not such an image.
            WeightsError: see `segmenter`.
            SettingsError: see `segmenter`.
        """
        return self._session(self.segmenter(choice), image)

    def session_of_loaded(self, image: NDArray[np.uint8]) -> ImageSession | None:
        """The session of an image with the model that is loaded; ``None`` where none is.

        Raises:
            ImageError: the array is not such an image.
        """
        return None if self._segmenter is None else self._session(self._segmenter, image)

    def _session(self, segmenter: Segmenter, image: NDArray[np.uint8]) -> ImageSession:
        check_image(image)
        key = content_hash(image)
        session = self._sessions.pop(key, None) or ImageSession(segmenter, image)
        self._sessions[key] = session
        while len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)
        return session
