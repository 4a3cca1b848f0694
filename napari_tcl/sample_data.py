"""Sample data of the File menu."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage import data

from tcl_core.playground.export import sample_scene

__all__ = ["photograph", "playground_scene", "playground_stack"]

_SEED, _NUMBER, _SIZE = 7, 1, (480, 640)
_SLICES, _SLICE_SIZE = 4, (240, 320)

LayerData = tuple[Any, dict[str, Any], str]


def playground_scene() -> list[LayerData]:
    """A drawn scene of the small world that the embedded model knows."""
    image = sample_scene(_SEED, _NUMBER, _SIZE).image
    return [(image, {"name": "playground scene", "rgb": True}, "image")]


def playground_stack() -> list[LayerData]:
    """Four drawn scenes as a stack."""
    stack = np.stack([sample_scene(_SEED, number, _SLICE_SIZE).image for number in range(_SLICES)])
    return [(stack, {"name": "playground stack", "rgb": True}, "image")]


def photograph() -> list[LayerData]:
    """A photograph of a cat (scikit-image's *chelsea*, CC0), for models of photographs."""
    return [(data.chelsea(), {"name": "photograph", "rgb": True}, "image")]
