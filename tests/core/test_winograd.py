"""Convolutions with fewer products give what plain ones give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl_core.devices import tracing_for
from tcl_core.methods.tcl import gated_conv as module
from tcl_core.methods.tcl.gated_conv import gated_conv, gated_conv_inference
from tcl_core.methods.tcl.winograd import saves_time, winograd_conv2d

SIDES = st.integers(1, 20)


@settings(max_examples=40)
@given(st.integers(1, 2), st.integers(1, 5), SIDES, SIDES, st.sampled_from([2, 3]), st.integers(0, 2**31))
def test_tiles_give_the_plain_convolution(
    batch: int, channels: int, height: int, width: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight, bias = torch.randn(6, channels, size, size, generator=generator), torch.randn(6, generator=generator)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    found = winograd_conv2d(x, weight, bias)
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5 * max(1.0, float(exact.abs().max())))


def test_a_large_map_is_worked_off_in_strips_that_fit_together() -> None:
    x, weight, bias = torch.randn(2, 3, 90, 120), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(winograd_conv2d(x, weight, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_the_branch_without_gradients_is_that_of_training(
    layout: torch.memory_format, upsample: bool, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "saves_time", lambda x, weight: tiled)
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, 7).contiguous(memory_format=layout)
    before = x.clone()
    norm, conv = (torch.randn(6), torch.randn(6), 1e-5), (torch.randn(6, 6, 3, 3), torch.randn(6))
    gate = torch.tensor(0.7)
    expected = gated_conv(x, norm, conv, gate, upsample)
    with torch.no_grad():
        found = gated_conv_inference(x, norm, conv, gate, upsample)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


def test_tiles_are_for_many_channels_and_pixels_in_single_precision() -> None:
    x, weight = torch.zeros(1, 128, 48, 48), torch.zeros(128, 128, 3, 3)
    assert saves_time(x, weight)
    assert not saves_time(x[:, :64], weight[:64, :64])
    assert not saves_time(x[..., :16, :16], weight)
    assert not saves_time(x.bfloat16(), weight)
    assert not saves_time(x, weight.new_zeros(128, 128, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert not saves_time(x, weight)


@pytest.mark.parametrize(("dtype", "saved"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_traced_network_has_tiles_if_it_will_be_run_in_single_precision(dtype: torch.dtype, saved: bool) -> None:
    torch.manual_seed(0)
    x, other = torch.randn(2, 1, 128, 48, 50)
    norm, gate = (torch.randn(128), torch.randn(128), 1e-5), torch.tensor(0.7)
    conv = (torch.randn(128, 128, 3, 3) / 34, torch.randn(128))

    def branch(x: torch.Tensor) -> torch.Tensor:
        return gated_conv_inference(x, norm, conv, gate, upsample=False)

    with torch.no_grad(), tracing_for(dtype), pytest.warns(torch.jit.TracerWarning):
        traced = torch.jit.trace(branch, x, check_trace=False)
    assert ("aten::bmm" in str(traced.graph)) == saved
    assert ("aten::_convolution" in str(traced.graph)) != saved
    torch.testing.assert_close(traced(other), gated_conv(other, norm, conv, gate, upsample=False), rtol=1e-4, atol=1e-4)
