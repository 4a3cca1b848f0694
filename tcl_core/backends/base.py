"""The contract of backends, and the two that come with PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from tcl_core.backends.calibration import Calibration
from tcl_core.devices import autocast
from tcl_core.errors import SettingsError
from tcl_core.methods.base import Features, Method
from tcl_core.methods.capabilities import Exportable
from tcl_core.methods.exportable import Run

__all__ = ["BACKENDS", "BACKEND_VARIABLE", "Backend", "CompiledBackend", "Encoder", "TorchBackend", "check_precision"]

BACKENDS = ("torch", "compile", "openvino")
"""Names of all backends, the one that is always there first."""

BACKEND_VARIABLE = "TCL_ANNOTATE_BACKEND"

Encoder = Callable[[Tensor], Features]
"""`tcl_core.methods.Method.encode`, by whatever runs it."""


class Backend(ABC):
    """What runs the networks of one model.

    Attributes:
        name: one of `BACKENDS`.
        for_method: the backend that a method gets that has no network; it is named in results.
    """

    name: ClassVar[str]

    def for_method(self, method: Method) -> Backend:
        """This backend, or PyTorch's for a method that is not `Exportable`."""
        return self if isinstance(method, Exportable) else TorchBackend()

    def calibration(self, identity: str) -> Calibration | None:
        """What a quantized network was calibrated with, and how well it then did; ``None`` where nobody has.

        Args:
            identity: see `encoder`.
        """
        return None

    @abstractmethod
    def encoder(self, method: Method, identity: str, precision: torch.dtype) -> Encoder:
        """A way to encode windows.

        Args:
            method: with its weights, on its device.
            identity: what its network depends on: weights, method, and options that affect features.
            precision: of the matrix products.

        Raises:
            SettingsError: this backend does not compute in this precision.
        """


class TorchBackend(Backend):
    """PyTorch, operation by operation."""

    name = "torch"

    def encoder(self, method: Method, identity: str, precision: torch.dtype) -> Encoder:
        """The method's own, under autocast."""
        check_precision(self.name, precision)

        def encode(windows: Tensor) -> Features:
            with autocast(windows.device, precision):
                return method.encode(windows)

        return encode


class CompiledBackend(Backend):
    """PyTorch's compiler; it takes a minute for each new size of windows, in every process."""

    name = "compile"

    def encoder(self, method: Method, identity: str, precision: torch.dtype) -> Encoder:
        """The compiled network."""
        assert isinstance(method, Exportable)
        check_precision(self.name, precision)
        return partial(self._encode, method, torch.compile(method.network(), dynamic=False), precision)

    def _encode(self, method: Exportable, network: Run, precision: torch.dtype, windows: Tensor) -> Features:
        with autocast(windows.device, precision):
            try:
                return method.encode_through(network, windows)
            except torch.OutOfMemoryError:
                raise
            # The compiler fails in as many ways as there are systems without what it needs.
            except Exception as error:
                if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                    raise
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise SettingsError(
                    f"backend compile: PyTorch cannot compile the network ({reason}); install a C++ compiler, or use "
                    "--backend torch."
                ) from error


def check_precision(backend: str, precision: torch.dtype) -> None:
    """Refuse a precision that a backend does not compute in.

    Raises:
        SettingsError: it is int8, which is OpenVINO's alone.
    """
    if precision == torch.int8 and backend != "openvino":
        raise SettingsError(
            f"precision int8 is OpenVINO's alone, not that of the backend {backend}; use --backend openvino or another "
            "precision."
        )
