from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.core.tcl_models import captions, small_tcl
from training import cpu
from training.cpu import fast_attention, native_precision


@pytest.mark.parametrize(("fast", "expected"), [(False, "float32"), (True, "bfloat16")])
def test_bfloat16_is_for_processors_that_are_fast_in_it(
    fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: fast)
    assert native_precision() == expected


@pytest.mark.parametrize(("generation", "expected"), [((7, 5), "float32"), ((9, 0), "bfloat16")])
def test_a_gpu_is_asked_for_itself(generation: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: generation)
    assert native_precision(torch.device("cuda")) == expected


def test_attention_in_float32_is_left_alone() -> None:
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with fast_attention("float32"):
        inside = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        assert inside == before


def test_half_precision_reaches_attention_and_ends_with_it() -> None:
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    before = allowed()
    query, key, value = torch.randn(3, 2, 4, 65, 32).unbind()
    expected = F.scaled_dot_product_attention(query, key, value)
    with pytest.raises(KeyboardInterrupt), fast_attention("bfloat16"), torch.autocast("cpu", torch.bfloat16):
        assert allowed()
        half = [part.bfloat16() for part in (query, key, value)]
        torch.testing.assert_close(F.scaled_dot_product_attention(*half).float(), expected, rtol=0.05, atol=0.02)
        assert (query[0, 0] @ key[0, 0].T).dtype == torch.bfloat16
        raise KeyboardInterrupt
    assert allowed() == before
    assert (query[0, 0] @ key[0, 0].T).dtype == torch.float32


def test_gradients_may_follow_after_half_precision() -> None:
    """What is computed again in the backward pass is computed as it was."""
    losses = []
    for inside in (True, False):
        tcl = small_tcl()
        tcl.trainable("full")
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with fast_attention("bfloat16"), torch.autocast("cpu", torch.bfloat16):
            total = tcl.losses(images, captions(3), generator=torch.Generator().manual_seed(1))["total"]
            if inside:
                total.backward()
        if not inside:
            total.backward()
        losses.append([p.grad for p in tcl.parameters() if p.grad is not None])
    for first, second in zip(*losses, strict=True):
        torch.testing.assert_close(first, second, rtol=0.05, atol=0.05 * float(first.abs().max()) + 1e-6)
