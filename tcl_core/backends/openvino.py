"""OpenVINO (extra ``openvino``): networks are exported once for each size of windows, and kept on disk."""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tcl_core.backends.base import Backend, Encoder
from tcl_core.backends.calibration import Calibration, read_calibration, write_calibration
from tcl_core.backends.libraries import openvino_library, quantizer_version
from tcl_core.backends.networks import NetworkStore
from tcl_core.backends.quantizing import QUANTIZATION, quantized
from tcl_core.devices import has_integer_products, tracing_for, unquantized
from tcl_core.errors import SettingsError
from tcl_core.methods.base import Features, Method
from tcl_core.methods.capabilities import Exportable

__all__ = ["OpenVinoBackend"]

_MOST_SIZES = 4
"""Compiled networks in memory; each holds its own copy of the weights."""

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "int8"}
_log = logging.getLogger(__name__)


class OpenVinoBackend(Backend):
    """OpenVINO on the CPU. Windows go through the network one by one, so that batches of any length share it.

    Args:
        folder: where exported networks are kept; ``None`` for nowhere.
        calibration: what every network is quantized with in int8; by default what the folder has for it.
    """

    name = "openvino"

    def __init__(self, folder: Path | None, calibration: Calibration | None = None) -> None:
        self._store = None if folder is None else NetworkStore(folder)
        self._calibration = calibration

    def calibration(self, identity: str) -> Calibration | None:
        """What was given, or kept in the folder."""
        if self._calibration is not None or self._store is None:
            return self._calibration
        return read_calibration(self._store, _calibration_identity(identity))

    def keep(self, identity: str, calibration: Calibration, networks: Path) -> None:
        """Keep a calibration and the networks that were quantized with it, for every later run.

        Args:
            identity: see `encoder`.
            calibration: with what was measured.
            networks: the folder of another backend like this, which has them.

        Raises:
            SettingsError: they cannot be written.
        """
        assert self._store is not None
        try:
            self._store.adopt(networks)
            write_calibration(self._store, _calibration_identity(identity), identity, calibration)
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(f"{error.filename or 'the calibration'}: cannot be written ({reason}).") from error

    def encoder(self, method: Method, identity: str, precision: torch.dtype) -> Encoder:
        """The method's network, compiled for each size when it is first seen.

        Raises:
            SettingsError: OpenVINO does not compute in this precision, or nothing was calibrated for it.
        """
        assert isinstance(method, Exportable)
        if precision not in _PRECISIONS:
            raise SettingsError(
                "backend openvino computes in float32, bfloat16 or int8 alone; give one, or --backend torch."
            )
        calibration = self.calibration(identity) if precision == torch.int8 else None
        if precision == torch.int8 and calibration is None:
            raise SettingsError(
                "precision int8 needs a measurement on your images; run 'tcl-annotate models quantize MODEL IMAGE... "
                "--labels FILE'."
            )
        networks = _Networks(method.network(), identity, precision, self._store, calibration)
        return partial(_encode, method, networks)


@cache
def _core() -> Any:
    """One for the whole life of the process.

    On some processors OpenVINO gives the thread that loads it another stack for signals, and unmaps that stack when the
    last core and network are gone, perhaps in another thread: the next signal then ended the process, such as the end
    of a child.
    """
    core = openvino_library().Core()
    # Not even when Python ends, for signals come until then.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
    return core


def _encode(method: Exportable, networks: _Networks, windows: Tensor) -> Features:
    return method.encode_through(networks.run, windows)


class _Networks:
    """A network compiled for several sizes."""

    def __init__(
        self,
        network: nn.Module,
        identity: str,
        precision: torch.dtype,
        store: NetworkStore | None,
        calibration: Calibration | None,
    ) -> None:
        self._openvino = openvino_library()
        self._network = network
        self._precision = precision
        self._calibration = calibration
        # What is exported depends on the precision too: some networks take fewer products in float32.
        self._identity = f"{identity} openvino {self._openvino.__version__} {_PRECISIONS[precision]}"
        if calibration is not None:
            self._identity = f"{_calibration_identity(identity)} {calibration.digest}"
        self._store = store
        self._requests: OrderedDict[tuple[int, int, int, int], Any] = OrderedDict()
        # A request holds the memory of all layers, and one of them uses all processors.
        self._lock = threading.Lock()

    def run(self, padded: Tensor) -> tuple[Tensor, ...]:
        """The tensors of windows float32 ``[B, 3, H, W]``."""
        with self._lock:
            request = self._request((1, 3, int(padded.shape[2]), int(padded.shape[3])))
            found = []
            for window in padded:
                results = request.infer([window[None].contiguous().numpy()])
                # The request's memory is used again by the next window.
                found.append([torch.from_numpy(np.array(results[place])) for place in range(len(results))])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _request(self, shape: tuple[int, int, int, int]) -> Any:
        if shape in self._requests:
            self._requests.move_to_end(shape)
            return self._requests[shape]
        core = _core()
        model = None
        identity = f"{self._identity} {list(shape)}"
        if self._store is not None:
            model = self._store.read(identity, core.read_model)
        if model is None:
            model = self._export(shape)
            if self._store is not None:
                self._store.write(identity, partial(self._openvino.save_model, model, compress_to_fp16=False))
                # As later runs read it, so that all of them give the same, and without the weights in memory twice.
                model = self._store.read(identity, core.read_model) or model
        settings = {
            # What is not quantized of a network in int8.
            "INFERENCE_PRECISION_HINT": _PRECISIONS[unquantized(self._precision)],
            # OpenVINO counts the machine's processors, and not those that this process may use.
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            # Pinned, every process would take the same processors.
            "ENABLE_CPU_PINNING": False,
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._requests[shape] = request
        while len(self._requests) > _MOST_SIZES:
            self._requests.popitem(last=False)
        return request

    def _export(self, shape: tuple[int, int, int, int]) -> Any:
        with warnings.catch_warnings(), torch.no_grad(), tracing_for(self._precision):
            # Sizes become constants, which is what is wanted.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._network, torch.zeros(shape), check_trace=False, strict=False)
            if self._calibration is not None:
                # Only weights that are constants are quantized, and some are computed from others.
                traced = torch.jit.freeze(traced.eval())
            try:
                exported = self._openvino.convert_model(traced, input=list(shape))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise SettingsError(
                    f"backend openvino cannot export this network ({reason}); use --backend torch."
                ) from error
        if self._calibration is None:
            return exported
        _log.warning("quantizing the network for windows of %d x %d pixels, once; it may take minutes", *shape[:1:-1])
        return quantized(exported, self._calibration.samples(shape[2:]))


def _calibration_identity(identity: str) -> str:
    """What a calibration holds for: a network, the programs that quantize and run it, and the kind of processor.

    Machines may share a folder, and where sums overflow, the same network gives other labels.
    """
    programs = f"openvino {openvino_library().__version__} int8 nncf {quantizer_version()} {QUANTIZATION}"
    return f"{identity} {programs}{'' if has_integer_products() else ' without VNNI'}"
