from __future__ import annotations

import threading

import pytest
import torch

import tcl_core.devices as devices_module
from tcl_core.devices import (
    PRECISIONS,
    autocast,
    has_fast_bfloat16,
    has_native_bfloat16,
    precision_name,
    select_device,
    select_precision,
)
from tcl_core.errors import SettingsError


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, devices: int, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


def test_auto_takes_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    pretend_cuda(monkeypatch, 0)
    assert select_device("auto") == torch.device("cpu")
    pretend_cuda(monkeypatch, 2)
    assert select_device("auto") == torch.device("cuda:0")
    pretend_cuda(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto") == torch.device("mps")


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 2)
    assert select_device("cpu") == torch.device("cpu")
    assert select_device("cuda") == torch.device("cuda:0")
    assert select_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(SettingsError, match="cuda:2 does not exist.*cuda:0 to cuda:1"):
        select_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_unavailable_devices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=f"{name} is not available"):
        select_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "CPU", "cuda:1x"])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(SettingsError, match="unknown"):
        select_device(name)


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_precision("auto", "cpu") == torch.float32
    assert select_precision("bfloat16", "cpu") == torch.bfloat16
    assert select_precision("float32", torch.device("cpu")) == torch.float32
    pretend_cuda(monkeypatch, 1)
    assert select_precision("auto", "cuda:0") == torch.bfloat16
    assert select_precision("float16", "cuda:0") == torch.float16
    pretend_cuda(monkeypatch, 1, capability=(7, 5))
    assert select_precision("auto", "cuda:0") == torch.float32


@pytest.mark.parametrize(
    ("amx", "avx512", "amd", "fast", "native"),
    [
        (True, True, False, True, True),
        (False, True, False, False, True),
        (False, True, True, True, True),
        (False, False, True, False, False),
    ],
)
def test_processors_of_bfloat16(
    amx: bool, avx512: bool, amd: bool, fast: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(devices_module, "_is_amd", lambda: amd)
    assert (has_fast_bfloat16(), has_native_bfloat16()) == (fast, native)


@pytest.mark.parametrize(("maker", "amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_maker_of_the_processor(maker: str, amd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    is_amd = devices_module._is_amd.__wrapped__
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_, **__: f"processor: 0\nvendor_id : {maker}\n")
    assert is_amd() == amd
    # As Windows says it.
    monkeypatch.setattr("pathlib.Path.read_text", absent)
    monkeypatch.setattr("platform.processor", lambda: f"AMD64 Family 25 Model 17 Stepping 1, {maker}")
    assert is_amd() == amd


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [("float16", "cpu", "needs a CUDA"), ("half", "cpu", "unknown"), ("bfloat16", "mps", "not supported")],
)
def test_precisions_that_cannot_be(name: str, device: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        select_precision(name, device)


def test_precision_names_are_inverse() -> None:
    assert all(precision_name(dtype) == name for name, dtype in PRECISIONS.items())
    with pytest.raises(SettingsError, match="int16"):
        precision_name(torch.int16)


def test_autocast_changes_products_and_leaves_float32_alone() -> None:
    left = torch.ones(2, 2)
    with autocast("cpu", torch.bfloat16):
        assert (left @ left).dtype == torch.bfloat16
    with autocast("cpu", torch.float32):
        assert (left @ left).dtype == torch.float32


def convolution_precision() -> object:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32


def test_float32_on_cuda_keeps_tf32_out_of_convolutions() -> None:
    """By default cuDNN rounds them to ten bits, which is no float32; the flag can be set without a device."""
    before = convolution_precision()
    with autocast("cpu", torch.float32), autocast("cuda:0", torch.bfloat16):
        assert convolution_precision() == before
    with autocast("cuda:0", torch.float32):
        assert convolution_precision() in ("ieee", False)
        with autocast("cuda:0", torch.float32):
            pass
        assert convolution_precision() in ("ieee", False)
    assert convolution_precision() == before


def test_float32_lasts_until_the_last_thread_is_done() -> None:
    before, seen = convolution_precision(), []
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with autocast("cuda", torch.float32):
            inside.set()
            leave.wait(10)
            seen.append(convolution_precision())

    with autocast("cuda", torch.float32):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
    leave.set()
    thread.join()
    assert seen[0] in ("ieee", False)
    assert convolution_precision() == before


def test_float32_ends_with_an_error() -> None:
    before = convolution_precision()
    with pytest.raises(ValueError), autocast("cuda", torch.float32):
        raise ValueError
    assert convolution_precision() == before
