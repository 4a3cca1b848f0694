"""OpenVINO (extra ``openvino``): networks are exported once for each size of windows, and kept on disk."""

from __future__ import annotations

import ctypes
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
from tcl_core.backends.networks import NetworkStore
from tcl_core.devices import tracing_for
from tcl_core.errors import SettingsError
from tcl_core.methods.base import Features, Method
from tcl_core.methods.capabilities import Exportable

__all__ = ["OpenVinoBackend"]

_MOST_SIZES = 4
"""Compiled networks in memory; each holds its own copy of the weights."""

_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


class OpenVinoBackend(Backend):
    """OpenVINO on the CPU. Windows go through the network one by one, so that batches of any length share it.

    Args:
        folder: where exported networks are kept; ``None`` for nowhere.
    """

    name = "openvino"

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def encoder(self, method: Method, identity: str, precision: torch.dtype) -> Encoder:
        """The method's network, compiled for each size when it is first seen.

        Raises:
            SettingsError: OpenVINO does not compute in this precision.
        """
        assert isinstance(method, Exportable)
        if precision not in _PRECISIONS:
            raise SettingsError("backend openvino computes in float32 or bfloat16 alone; give one, or --backend torch.")
        networks = _Networks(method.network(), identity, precision, self._folder)
        return partial(_encode, method, networks)


@cache
def _core() -> Any:
    """One for the whole life of the process.

    On some processors OpenVINO gives the thread that loads it another stack for signals, and unmaps that stack when the
    last core and network are gone, perhaps in another thread: the next signal then ended the process, such as the end
    of a child.
    """
    import openvino

    core = openvino.Core()
    # Not even when Python ends, for signals come until then.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(core))
    return core


def _encode(method: Exportable, networks: _Networks, windows: Tensor) -> Features:
    return method.encode_through(networks.run, windows)


class _Networks:
    """A network compiled for several sizes."""

    def __init__(self, network: nn.Module, identity: str, precision: torch.dtype, folder: Path | None) -> None:
        import openvino

        self._openvino: Any = openvino
        self._network = network
        self._precision = precision
        # What is exported depends on the precision too: some networks take fewer products in float32.
        self._identity = f"{identity} openvino {openvino.__version__} {_PRECISIONS[precision]}"
        self._store = None if folder is None else NetworkStore(folder)
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        # A request holds the memory of all layers, and one of them uses all processors.
        self._lock = threading.Lock()

    def run(self, padded: Tensor) -> tuple[Tensor, ...]:
        """The tensors of windows float32 ``[B, 3, H, W]``."""
        with self._lock:
            request = self._request((1, *padded.shape[1:]))
            found = []
            for window in padded:
                results = request.infer([window[None].contiguous().numpy()])
                # The request's memory is used again by the next window.
                found.append([torch.from_numpy(np.array(results[place])) for place in range(len(results))])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _request(self, shape: tuple[int, ...]) -> Any:
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
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._precision],
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

    def _export(self, shape: tuple[int, ...]) -> Any:
        with warnings.catch_warnings(), torch.no_grad(), tracing_for(self._precision):
            # Sizes become constants, which is what is wanted.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._network, torch.zeros(shape), check_trace=False, strict=False)
            try:
                return self._openvino.convert_model(traced, input=list(shape))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[-1]
                raise SettingsError(
                    f"backend openvino cannot export this network ({reason}); use --backend torch."
                ) from error
