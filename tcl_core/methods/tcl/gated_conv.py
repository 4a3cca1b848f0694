r"""The decoder's branch :math:`x + \tanh(g)\,\text{Conv}(\text{GELU}(\text{LN}(x)))`.

In training autograd would keep four tensors of the size of ``x`` for each branch. Norm and activation cost next to
nothing beside the convolution, so they are computed again in the backward pass, and only ``x`` is kept.

Where a branch follows a nearest-neighbor up-sampling by two, everything before the convolution can be done before it,
and a 3 x 3 kernel over the up-sampled map is one of four 2 x 2 kernels over the small one: 16 products instead of 36
(sub-pixel convolution, Shi et al., arXiv 1609.05158).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tcl_core.methods.tcl.winograd import saves_time, winograd_conv2d

__all__ = ["gated_conv", "gated_conv_inference"]

# Row p says which of three taps meet on each of two neighbors, for the upper (0) and the lower (1) of a pixel's halves.
_TAPS = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))


def gated_conv(
    x: Tensor, norm: tuple[Tensor, Tensor, float], conv: tuple[Tensor, Tensor], gate: Tensor, upsample: bool
) -> Tensor:
    """Apply the branch and add it to its input.

    Args:
        x: float ``[B, C, h, w]``.
        norm: weight and bias ``[C]`` and epsilon of the layer norm over channels.
        conv: weight ``[C, C, k, k]`` with k odd, and bias ``[C]``; k is 3 with ``upsample``.
        gate: g, a scalar.
        upsample: double height and width first, by repeating pixels.

    Returns:
        float ``[B, C, h, w]``, or ``[B, C, 2h, 2w]``; differentiable once.
    """
    if torch.compiler.is_compiling():
        # The compiler decides by itself what to keep.
        return _residual(x, upsample) + torch.tanh(gate) * _convolve(_activate(x, *norm), *conv, upsample)
    return _GatedConv.apply(x, norm[0], norm[1], conv[0], conv[1], gate, norm[2], upsample)


def gated_conv_inference(
    x: Tensor, norm: tuple[Tensor, Tensor, float], conv: tuple[Tensor, Tensor], gate: Tensor, upsample: bool
) -> Tensor:
    """`gated_conv` without gradients: on a CPU in float32 with fewer products, by `winograd_conv2d`.

    Args:
        x: float ``[B, C, h, w]``.
        norm: as for `gated_conv`.
        conv: as for `gated_conv`.
        gate: g, a scalar.
        upsample: double height and width first, by repeating pixels; the kernel is then one of 3 x 3.

    Returns:
        float ``[B, C, h, w]``, or ``[B, C, 2h, 2w]``.
    """
    branch = _faster_convolve(_activate(x, *norm), *conv, upsample)
    if torch.jit.is_tracing():
        return _residual(x, upsample) + torch.tanh(gate) * branch
    # In place, because a map at the masks' resolution is the largest tensor of all.
    return branch.mul_(torch.tanh(gate)).add_(_residual(x, upsample))


def _activate(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.gelu(F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, epsilon).permute(0, 3, 1, 2))


def _residual(x: Tensor, upsample: bool) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest") if upsample else x


def _small_kernels(weight: Tensor) -> Tensor:
    """Four kernels ``[4 C, C, 2, 2]`` of one ``[C, C, 3, 3]``."""
    taps = weight.new_tensor(_TAPS)
    return torch.einsum("pak,qbl,oikl->pqoiab", taps, taps, weight).flatten(0, 2)


def _large_kernel(weight: Tensor) -> Tensor:
    """The transpose of `_small_kernels`, for gradients."""
    taps = weight.new_tensor(_TAPS)
    return torch.einsum("pak,qbl,pqoiab->oikl", taps, taps, weight.unflatten(0, (2, 2, -1)))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, upsample: bool) -> Tensor:
    if not upsample:
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    rows, columns = x.shape[-2:]
    # [B, 4 C, h + 1, w + 1]: the halves of neighboring pixels start at the same window.
    parts = F.conv2d(x, _small_kernels(weight), bias.repeat(4), padding=1).unflatten(1, (2, 2, -1))
    halves = [torch.stack([parts[:, p, q, :, p : p + rows, q : q + columns] for q in (0, 1)], dim=-1) for p in (0, 1)]
    # [B, C, h, 2, w, 2]: to each row its two, to each column its two.
    return torch.stack(halves, dim=3).flatten(4).flatten(2, 3)


def _faster_convolve(x: Tensor, weight: Tensor, bias: Tensor, upsample: bool) -> Tensor:
    """`_convolve` with channels last, and with fewer products where that saves time; not differentiable by hand."""
    if not upsample:
        if saves_time(x, weight):
            return winograd_conv2d(x, weight, bias)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
    rows, columns = x.shape[-2:]
    kernels, biases = _small_kernels(weight), bias.repeat(4)
    if saves_time(x, kernels):
        joint = winograd_conv2d(x, kernels, biases)
    else:
        joint = F.conv2d(x, kernels, biases, padding=1)
    # [B, h + 1, w + 1, 2, 2, C]
    parts = joint.permute(0, 2, 3, 1).unflatten(3, (2, 2, -1))
    halves = [torch.stack([parts[:, p : p + rows, q : q + columns, p, q] for q in (0, 1)], dim=3) for p in (0, 1)]
    # [B, h, 2, w, 2, C]
    return torch.stack(halves, dim=2).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, upsample: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias."""
    if upsample:
        rows, columns = x.shape[-2:]
        parts = grad.new_zeros(len(x), 2, 2, len(weight), rows + 1, columns + 1)
        for p in (0, 1):
            for q in (0, 1):
                parts[:, p, q, :, p : p + rows, q : q + columns] = grad[:, :, p::2, q::2]
        grad, kernel, padding = parts.flatten(1, 3), _small_kernels(weight), 1
    else:
        kernel, padding = weight, weight.shape[-1] // 2
    pads, ones = [padding, padding], [1, 1]
    into, kernels, biases = torch.ops.aten.convolution_backward(
        grad, x, kernel, [len(kernel)], ones, pads, ones, False, [0, 0], 1, [True, True, True]
    )
    if upsample:
        return into, _large_kernel(kernels.to(weight.dtype)), biases.unflatten(0, (4, -1)).sum(dim=0)
    return into, kernels, biases


class _GatedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        norm_weight, norm_bias, weight, bias, gate, epsilon, upsample = rest
        device = x.device.type
        half = torch.is_autocast_enabled(device)
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, bias, gate)
        ctx.epsilon, ctx.upsample = epsilon, upsample
        ctx.dtype = torch.get_autocast_dtype(device) if half else x.dtype
        branch = _convolve(_activate(x, norm_weight, norm_bias, epsilon), weight, bias, upsample)
        return _residual(x, upsample) + torch.tanh(gate) * branch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, bias, gate = ctx.saved_tensors
        (grad,) = grads
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            inputs = [tensor.detach().requires_grad_() for tensor in (x, norm_weight, norm_bias)]
            active = _activate(inputs[0], inputs[1], inputs[2], ctx.epsilon)
        into, kernels, biases = _convolve_backward(
            grad.to(ctx.dtype), active.detach().to(ctx.dtype), weight.to(ctx.dtype), ctx.upsample
        )
        opening = torch.tanh(gate)
        # The branch itself was not kept: its product with the gradient is that of the kernel with the kernel's.
        slope = (1 - opening**2) * ((kernels * weight).sum() + (biases * bias).sum())
        found = torch.autograd.grad(active, inputs, into.to(active.dtype) * opening)
        residual = 4 * F.avg_pool2d(grad, 2) if ctx.upsample else grad
        return found[0] + residual, found[1], found[2], opening * kernels, opening * biases, slope, None, None
