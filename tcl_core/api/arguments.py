"""The types of images and labels that the API accepts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["ImageInput", "Labels"]

ImageInput: TypeAlias = str | os.PathLike[str] | NDArray[np.uint8] | Image.Image
"""A path, an array uint8 ``[H, W, 3]`` (RGB), or a Pillow image."""

Labels: TypeAlias = (
    Vocabulary | Mapping[str, str | Sequence[str] | Mapping[str, Any]] | Sequence[str | Mapping[str, Any] | Label]
)
"""A vocabulary, or anything that `tcl_core.Vocabulary.from_labels` accepts."""
