"""Parts of the training step that keep less than autograd would, against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tcl_core.methods.tcl.grounder as grounder_module
from tcl_core.methods.tcl.gated_conv import gated_conv
from tcl_core.methods.tcl.losses import total_variation, variations
from tcl_core.methods.tcl.mask_terms import mask_terms, mask_terms_in_parts
from tcl_core.towers.clip_blocks import attention_block, class_token_block
from tests.core.tcl_models import small_clip, small_tcl


def plain_branch(x: Tensor, parts: list[Tensor], upsample: bool) -> Tensor:
    norm_weight, norm_bias, weight, bias, gate = parts
    if upsample:
        x = x.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)
    normed = (x - x.mean(dim=1, keepdim=True)) / (x.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    active = F.gelu(normed * norm_weight[:, None, None] + norm_bias[:, None, None])
    return x + torch.tanh(gate) * F.conv2d(active, weight, bias, padding=weight.shape[-1] // 2)


@pytest.mark.parametrize(("upsample", "kernel"), [(False, 3), (False, 5), (True, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gated_convolution(upsample: bool, kernel: int, layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.double)

    x = draw(2, 6, 4, 5).to(memory_format=layout).requires_grad_()
    parts = [draw(6), draw(6), draw(6, 6, kernel, kernel), draw(6), draw().squeeze()]
    parts = [part.requires_grad_() for part in parts]
    expected = plain_branch(x, parts, upsample)
    actual = gated_conv(x, (parts[0], parts[1], 1e-5), (parts[2], parts[3]), parts[4], upsample)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    cotangent = draw(*expected.shape)
    mine = torch.autograd.grad(actual, [x, *parts], cotangent)
    for got, wanted in zip(mine, torch.autograd.grad(expected, [x, *parts], cotangent), strict=True):
        # Gradients of kernels are kept in float32.
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def masks_case() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(5, 8, 6, 7, generator=generator)
    texts = F.normalize(torch.randn(9, 8, generator=generator), dim=-1)
    return [x.requires_grad_() for x in (pixels, texts, torch.tensor(10.0), torch.tensor(-2.5))]


@pytest.mark.parametrize("part", [1, 2, 5, None])
def test_terms_in_parts(part: int | None) -> None:
    inputs = masks_case()
    expected, actual = mask_terms(*inputs), mask_terms_in_parts(*inputs, part)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(term.shape, generator=generator) for term in expected]
    for mine, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-6)
    mine = torch.autograd.grad(actual, inputs, cotangents)
    for got, wanted in zip(mine, torch.autograd.grad(expected, inputs, cotangents), strict=True):
        assert float((got - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_terms_in_parts_of_frozen_texts() -> None:
    pixels, texts, slope, offset = masks_case()
    texts = texts.detach()
    for frozen in (pixels.detach(), pixels):
        terms = mask_terms_in_parts(frozen, texts, slope, offset, 2)
        sum(term.sum() for term in terms).backward()
    assert texts.grad is None and slope.grad is not None and pixels.grad is not None


def test_variations_are_those_of_each_image() -> None:
    x = torch.randn(3, 2, 4, 5)
    torch.testing.assert_close(variations(x), torch.stack([total_variation(image) for image in x]))


def test_class_token_of_a_block() -> None:
    block = small_clip().visual.transformer.resblocks[-1]
    tokens = torch.randn(2, 17, 24, requires_grad=True)
    expected, actual = attention_block(block, tokens)[:, :1], class_token_block(block, tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    cotangent = torch.randn(2, 1, 24)
    mine, wanted = (torch.autograd.grad(found, tokens, cotangent)[0] for found in (actual, expected))
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most", [1, 20_000])
def test_windows_that_the_decoder_takes_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tcl, windows = small_tcl(), torch.randn(3, 3, 32, 40)
    decoder = tcl.masker.image_encoder.decoder
    taken: list[int] = []
    decoder.decoder.register_forward_pre_hook(lambda _, args: taken.append(len(args[0])))
    with torch.enable_grad():
        expected = tcl.masker.image_encoder(tcl.clip.tokens_after(windows, 2), (4, 5))
    monkeypatch.setattr(grounder_module, "_MOST_VALUES", most)
    with torch.no_grad():
        found = tcl.masker.image_encoder(tcl.clip.tokens_after(windows, 2), (4, 5))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert taken == [3, *([1, 1, 1] if most == 1 else [2, 1])]
