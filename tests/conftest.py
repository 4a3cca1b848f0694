"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tcl_core.models import Model, load_model
from tcl_core.segmentation.segmenter import Segmenter

# An installable package of its own, which has to be unknown until ``tests/contract`` installs it.
collect_ignore = ["example_method"]

# A busy machine is no fault of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights that knows the words of ``tests.tiny_model.WORDS``."""
    from tests.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_path: Path) -> Model:
    return load_model(tiny_model_path, device="cpu")


@pytest.fixture
def segmenter(tiny_model: Model) -> Segmenter:
    return Segmenter(tiny_model, batch_size=1)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """An image with large colored blocks, so that a random model finds several regions."""
    blocks = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(16, axis=0).repeat(16, axis=1))
