"""A CUDA device for the tests of this folder, which are skipped where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu.models import RandomModels, Scale

PRETENDED = os.environ.get("TCL_ANNOTATE_TEST_DEVICE")
"""Another device on which the tests are tried themselves; with ``cpu`` they compare the CPU with itself."""


@pytest.fixture(scope="session")
def device() -> torch.device:
    if PRETENDED:
        return torch.device(PRETENDED)
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device; the tests of tests/gpu need one")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def cuda(device: torch.device) -> torch.device:
    """The device, for what a CPU cannot stand in for."""
    if device.type != "cuda":
        pytest.skip("nothing but a CUDA device can show this")
    return device


@pytest.fixture(scope="session")
def models(device: torch.device) -> RandomModels:
    """Small networks with random weights on the CPU and on the device."""
    return RandomModels(Scale.small(), device)


@pytest.fixture
def no_waiting(cuda: torch.device) -> Iterator[None]:
    """Everything that waits for the device is an error."""
    torch.cuda.synchronize(cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
