"""Networks of OpenVINO in int8, quantized after training by NNCF."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcl_core.backends.libraries import nncf_library
from tcl_core.errors import SettingsError

__all__ = ["QUANTIZATION", "quantized"]

QUANTIZATION = "performance 1"
"""How networks are quantized; change it with anything that gives other networks."""


def quantized(network: Any, samples: Sequence[NDArray[np.float32]]) -> Any:
    """A network whose products are made of integers of 8 bits.

    Weights and activations have symmetric ranges, which were closer to float32 than asymmetric ones and are faster.

    Args:
        network: of OpenVINO, in float32; with products that are products, not transformed tiles (Winograd).
        samples: inputs float32 of the network's shape, from which the ranges of its activations are taken.

    Raises:
        SettingsError: the network cannot be quantized.
    """
    nncf = nncf_library()
    try:
        with _quietly():
            return nncf.quantize(
                network,
                nncf.Dataset(samples),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.PERFORMANCE,
                subset_size=len(samples),
            )
    except Exception as error:
        if not type(error).__module__.startswith("nncf"):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingsError(
            f"precision int8: NNCF cannot quantize this network ({reason}); use another one."
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """NNCF draws its progress onto the standard output, which may be read by a program."""
    from rich import get_console

    console, extensions = get_console(), logging.getLogger("torch.utils.cpp_extension")
    quiet, level = console.quiet, extensions.level
    console.quiet = True
    # NNCF also loads a part for PyTorch, which is not used here and misses a GPU.
    extensions.setLevel(logging.ERROR)
    try:
        yield
    finally:
        console.quiet = quiet
        extensions.setLevel(level)
