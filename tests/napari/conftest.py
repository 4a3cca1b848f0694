"""Fixtures of the napari plugin's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tcl_core.models import Model, load_model
from tcl_core.segmenter import Segmenter


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(tiny_model: Model) -> Segmenter:
    return Segmenter(tiny_model, batch_size=1)


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    """A picture with large coloured blocks, so that a random model finds several regions."""
    blocks = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, axis=0).repeat(16, axis=1))
