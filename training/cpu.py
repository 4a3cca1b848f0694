"""What a CPU trains fastest in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tcl_core.devices import has_fast_bfloat16, precision_name, select_precision

__all__ = ["Precision", "fast_attention", "native_precision"]

Precision = Literal["float32", "bfloat16"]
_CPU = torch.device("cpu")


def native_precision(device: torch.device = _CPU) -> Precision:
    """bfloat16 where the processor multiplies matrices of it much faster than those of float32, else float32.

    On AMD's processors with AVX-512 BF16, a step of the playground's training takes 0.6 times as long in bfloat16 as in
    float32; on Intel's, without AMX, 1.5 times as long; and where bfloat16 is emulated, ten times as long.

    Args:
        device: that trains.
    """
    if device.type != "cpu":
        return cast(Precision, precision_name(select_precision("auto", device)))
    return "bfloat16" if has_fast_bfloat16() else "float32"


@contextmanager
def fast_attention(precision: Precision, device: torch.device = _CPU) -> Iterator[None]:
    """Choose the attention that is faster on a CPU; other devices keep theirs.

    In bfloat16 PyTorch's fused attention is the slower one, for tens as for hundreds of tokens, and its plain one
    computes in float32 unless it is told that bfloat16 will do. In float32 the fused one is faster.

    Args:
        precision: of the training.
        device: that trains.
    """
    if precision == "float32" or device.type != "cpu":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
