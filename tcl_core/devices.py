"""Where the network runs and in which number format, chosen by name."""

from __future__ import annotations

import functools
import importlib.util
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

import torch

from tcl_core.errors import SettingsError

__all__ = [
    "PRECISIONS",
    "autocast",
    "available_devices",
    "available_precisions",
    "computes_in_float32",
    "has_fast_bfloat16",
    "has_integer_products",
    "has_native_bfloat16",
    "has_wide_vectors",
    "precision_name",
    "select_device",
    "select_precision",
    "to_device",
    "tracing_for",
    "unquantized",
]

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
"""Number formats by the names users write."""


def select_device(name: str = "auto") -> torch.device:
    """Turn a device name into a device that exists on this machine.

    Args:
        name: ``auto`` (the first CUDA device, else Apple's ``mps``, else ``cpu``), ``cpu``, ``cuda``, ``cuda:N`` or
            ``mps``.

    Returns:
        The device; ``cuda`` is returned with its index.

    Raises:
        SettingsError: the name is unknown or the device is not available.

    >>> select_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise SettingsError("device mps is not available on this machine; use --device cpu or auto.")
        return torch.device("mps")
    if re.fullmatch(r"cuda(:\d+)?", name):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise SettingsError(f"device {name} is not available on this machine; use --device cpu or auto.")
        index = int(name[5:]) if ":" in name else torch.cuda.current_device()
        if index >= count:
            raise SettingsError(f"device {name} does not exist; this machine has cuda:0 to cuda:{count - 1}.")
        return torch.device("cuda", index)
    raise SettingsError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps.")


def select_precision(name: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Turn a precision name into the number format of the image tower's matrix products.

    ``auto`` means bfloat16 on CUDA devices that compute in it natively, where it is several times faster than float32,
    and float32 everywhere else. On the CPU it stays float32 even where the processor knows bfloat16: the same images
    then give the same COCO file on every machine of a team, and the products of a small model on a CPU are too little
    of the time to give that up for. ``bfloat16`` may be asked for on any CPU; where it is not fast
    (`has_fast_bfloat16`) it is correct but slower than float32.

    Args:
        name: ``auto``, ``float32``, ``bfloat16``, ``float16`` (CUDA only: CPU kernels for it are missing or slow), or
            ``int8`` (OpenVINO on the CPU only, for models that ``tcl-annotate models quantize`` has measured).
        device: the device it will run on.

    Raises:
        SettingsError: the name is unknown, the device cannot compute in that format, or what it takes is not installed.

    >>> select_precision("auto", "cpu")
    torch.float32
    """
    device = torch.device(device)
    if name == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float32
    if name not in PRECISIONS:
        raise SettingsError(f"precision {name!r} is unknown; use auto, {', '.join(PRECISIONS)}.")
    if name == "float16" and device.type != "cuda":
        raise SettingsError(f"precision float16 needs a CUDA device, not {device}; use float32 or bfloat16.")
    if name == "bfloat16" and device.type == "mps":
        raise SettingsError("precision bfloat16 is not supported on mps; use float32.")
    if name == "int8" and device.type != "cpu":
        raise SettingsError(f"precision int8 runs on the CPU, not on {device}; use --device cpu or another precision.")
    if name == "int8" and not all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        raise SettingsError(
            "precision int8 is not installed; run pip install 'tcl-annotate[int8]', or use another precision."
        )
    return PRECISIONS[name]


def has_wide_vectors() -> bool:
    """Whether the CPU computes with vectors of 512 bits or with matrices (AVX-512, AMX)."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability() or has_native_bfloat16()


def has_native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 without converting it (AMX, AVX-512 BF16)."""
    return _has_amx() or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def has_integer_products() -> bool:
    """Whether the CPU sums products of 8-bit integers in 32 bits at once (VNNI); elsewhere sums of two can overflow."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


def has_fast_bfloat16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 much faster than those of float32.

    With AMX it does. With AVX-512 BF16 alone, AMD's do, while Intel's run that instruction in fewer units than those of
    float32, and take longer with it. The maker decides, and not a measurement, so that what ``auto`` means does not
    depend on what else runs.
    """
    return has_native_bfloat16() and (_has_amx() or _is_amd())


def _has_amx() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


@functools.cache
def _is_amd() -> bool:
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        about = platform.processor()
    return "AuthenticAMD" in about


def available_devices() -> tuple[str, ...]:
    """Names of the devices of this machine, without ``auto``; one of several GPUs has its number.

    >>> available_devices()[0]
    'cpu'
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = ("cuda",) if count == 1 else tuple(f"cuda:{index}" for index in range(count))
    return ("cpu", *gpus, *(("mps",) if torch.backends.mps.is_available() else ()))


def available_precisions(device: str = "auto") -> tuple[str, ...]:
    """Names of the precisions that a device of this machine computes in, without ``auto``.

    Args:
        device: see `select_device`.

    Raises:
        SettingsError: the device is unknown or not available.

    >>> available_precisions("cpu")[:2]
    ('float32', 'bfloat16')
    """
    chosen = select_device(device)
    names = []
    for name in PRECISIONS:
        try:
            select_precision(name, chosen)
        except SettingsError:
            continue
        names.append(name)
    return tuple(names)


def precision_name(dtype: torch.dtype) -> str:
    """The user's name of a number format, the inverse of `PRECISIONS`.

    Raises:
        SettingsError: the format is none of `PRECISIONS`.

    >>> precision_name(torch.bfloat16)
    'bfloat16'
    """
    for name, known in PRECISIONS.items():
        if known == dtype:
            return name
    raise SettingsError(f"precision {dtype} is unknown; use {', '.join(PRECISIONS)}.")


def autocast(device: torch.device | str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in ``dtype``.

    Weights stay float32 and are converted on use, so one loaded model serves every precision. Nothing in PyTorch is
    quantized: beside a network in int8, products are those of float32. Float32 means float32: by default cuDNN rounds
    the factors of its convolutions to TF32, of ten bits, which moves scores by more than processors differ.
    """
    kind = torch.device(device).type
    dtype = unquantized(dtype)
    if dtype == torch.float32:
        return _exact_convolutions() if kind == "cuda" else nullcontext()
    return torch.autocast(kind, dtype=dtype)


def unquantized(dtype: torch.dtype) -> torch.dtype:
    """The number format of products that are not part of a quantized network: float32 beside int8.

    >>> unquantized(torch.int8), unquantized(torch.bfloat16)
    (torch.float32, torch.bfloat16)
    """
    return torch.float32 if dtype == torch.int8 else dtype


@contextmanager
def tracing_for(dtype: torch.dtype) -> Iterator[None]:
    """A context in which a network is traced for another program that multiplies in ``dtype``.

    Its tensors do not tell: the program converts them when it compiles the network.
    """
    token = _traced_for.set(dtype)
    try:
        yield
    finally:
        _traced_for.reset(token)


def computes_in_float32(device: str) -> bool:
    """Whether products of float32 tensors are made in float32: no autocast, and no trace for a lower precision.

    Args:
        device: type of the tensors' device.
    """
    if torch.jit.is_tracing() and _traced_for.get() != torch.float32:
        return False
    return not torch.is_autocast_enabled(device)


_traced_for: ContextVar[torch.dtype] = ContextVar("traced_for", default=torch.float32)


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor of the CPU's on a device, without waiting for a GPU that still works on what came before.

    Only memory that the system cannot move is copied in the background, so it goes there first.
    """
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


_exact_lock = threading.Lock()
_exact_users = 0
_exact_before: object = None


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Keep TF32 out of convolutions. The flag is the process's, so the last thread to leave puts it back."""
    global _exact_users, _exact_before
    with _exact_lock:
        if not _exact_users:
            _exact_before = _convolution_precision("ieee")
        _exact_users += 1
    try:
        yield
    finally:
        with _exact_lock:
            _exact_users -= 1
            if not _exact_users:
                _convolution_precision(_exact_before)


def _convolution_precision(wanted: object) -> object:
    """Set how cuDNN rounds the factors of float32 convolutions; returns what it was."""
    cudnn = torch.backends.cudnn
    # Since PyTorch 2.9 convolutions have a flag of their own, and reading the older one fails where the two differ.
    if hasattr(cudnn, "conv"):
        before: object = cudnn.conv.fp32_precision
        cudnn.conv.fp32_precision = wanted
        return before
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = wanted is True
    return before
