"""What may be given as an image and as labels."""

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
"""A file, an array uint8 ``[H, W, 3]`` (RGB), or an image of Pillow."""

Labels: TypeAlias = (
    Vocabulary | Mapping[str, str | Sequence[str] | Mapping[str, Any]] | Sequence[str | Mapping[str, Any] | Label]
)
"""A vocabulary, or what `tcl_core.Vocabulary.from_labels` takes."""
