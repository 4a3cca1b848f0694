"""What a CPU trains fastest in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tcl_core.devices import precision_name, select_precision

__all__ = ["Precision", "fast_attention", "native_precision"]

Precision = Literal["float32", "bfloat16"]
_CPU = torch.device("cpu")


def native_precision(device: torch.device = _CPU) -> Precision:
    """bfloat16 where the processor multiplies matrices of it in hardware (AMX on a CPU), else float32.

    In bfloat16 a step of the playground's training takes 1.5 times as long as in float32 with AVX512-BF16 alone, and
    ten times as long where bfloat16 is emulated.

    Args:
        device: that trains.
    """
    if device.type != "cpu":
        return cast(Precision, precision_name(select_precision("auto", device)))
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"


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
