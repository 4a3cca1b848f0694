"""What a segmenter needs of a model, so that it need not know how models are named, fetched and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from tcl_core.backends.base import Backend
from tcl_core.methods.base import Method
from tcl_core.segmentation.preprocess import Preprocess
from tcl_core.segmentation.text_debiasing import PromptDebiasing

__all__ = ["SegmentationModel"]


class SegmentationModel(Protocol):
    """What a segmenter needs of a model; :class:`tcl_core.models.Model` is one."""

    @property
    def name(self) -> str:
        """How it is called in lists and in COCO's ``info``."""
        ...

    @property
    def method(self) -> Method:
        """The method with its weights, on ``device``."""
        ...

    @property
    def preprocess(self) -> Preprocess:
        """From images to input."""
        ...

    @property
    def templates(self) -> str:
        """Name of the template set that is used where a vocabulary names none."""
        ...

    @property
    def background_threshold(self) -> Mapping[str, float]:
        """Default background score by the refiner's name, ``"plain"`` for none; may be empty."""
        ...

    @property
    def background_names(self) -> tuple[str, ...]:
        """Everything that the model's world holds, where that is a closed one; else empty."""
        ...

    @property
    def text_folder(self) -> Path | None:
        """Where embedded names may be kept between runs; ``None`` for nowhere."""
        ...

    @property
    def weights_sha256(self) -> str:
        """Of the weights, in hexadecimal."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    @property
    def precision(self) -> torch.dtype:
        """Number format of the matrix products."""
        ...

    @property
    def backend(self) -> Backend:
        """What runs its network."""
        ...

    @property
    def debiasing(self) -> PromptDebiasing | None:
        """What is taken out of prompts that do not name it."""
        ...

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Refuse prompts that the model would not read as they are."""
        ...

    def check_length(self, prompt: str, text: str, reserved: int = 0) -> None:
        """Refuse a text whose end the model would not read."""
        ...
