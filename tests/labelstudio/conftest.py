"""Fixtures of the backend's tests: recorded requests, a small model, and servers to fetch from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.labelstudio.image_server import ImageServer
from tests.tiny_model import WORDS, write_tiny_model

PAYLOADS = Path(__file__).parents[1] / "data" / "labelstudio"


@pytest.fixture(scope="session")
def payload() -> Callable[[str], dict[str, Any]]:
    """Reads a recorded request by its name."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((PAYLOADS / f"{name}.json").read_text(encoding="utf-8"))

    return read


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights that knows the words of the recorded requests."""
    path = tmp_path_factory.mktemp("words") / "words.safetensors"
    return write_tiny_model(path, words=[*WORDS, "box", "rect", "kp"])


@pytest.fixture
def image_server() -> Iterator[ImageServer]:
    """A server on a loopback address that is as well or badly behaved as its path says."""
    with ImageServer() as server:
        yield server
