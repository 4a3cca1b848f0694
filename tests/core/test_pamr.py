from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode

from tcl_core.refinement import pamr as module
from tcl_core.refinement.pamr import PamrAffinity, pamr, pamr_affinity, refine_masks


def reference_weights(image: NDArray[np.float64], dilations: tuple[int, ...]) -> NDArray[np.float64]:
    """Affinities of ``[3, h, w]`` pixel by pixel, from the paper's formula."""
    _, height, width = image.shape
    out = np.zeros((8 * len(dilations), height, width))
    for y in range(height):
        for x in range(width):
            neighbors, samples = [], []
            for d in dilations:
                for dy in (-d, 0, d):
                    for dx in (-d, 0, d):
                        pixel = image[:, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                        samples.append(pixel)
                        if dy or dx:
                            neighbors.append(pixel)
            sigma = np.std(np.array(samples), axis=0, ddof=1)
            kernel = np.array([np.mean(-np.abs(image[:, y, x] - n) / (1e-8 + 0.1 * sigma)) for n in neighbors])
            exponent = np.exp(kernel - kernel.max())
            out[:, y, x] = exponent / exponent.sum()
    return out


def reference_refinement(
    weights: NDArray[np.float64], mask: NDArray[np.float64], dilations: tuple[int, ...], iterations: int
) -> NDArray[np.float64]:
    height, width = mask.shape
    offsets = [(dy, dx) for d in dilations for dy in (-d, 0, d) for dx in (-d, 0, d) if dy or dx]
    for _ in range(iterations):
        new = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                for plane, (dy, dx) in zip(weights, offsets, strict=True):
                    new[y, x] += plane[y, x] * mask[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
        mask = new
    return mask


@pytest.mark.parametrize("size", [(7, 9), (1, 6), (1, 1)])
@pytest.mark.parametrize("dilations", [(1, 2, 4, 8, 12, 24), (1, 3)])
def test_against_loops(size: tuple[int, int], dilations: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image, masks = torch.randn(2, 3, *size), torch.rand(2, 2, *size)
    affinity = pamr_affinity(image, dilations=dilations)
    refined = refine_masks(affinity, masks, iterations=3)
    for b in range(2):
        weights = reference_weights(image[b].double().numpy(), dilations)
        np.testing.assert_allclose(affinity.weights[b].numpy(), weights, atol=2e-6)
        for k in range(2):
            expected = reference_refinement(weights, masks[b, k].double().numpy(), dilations, 3)
            np.testing.assert_allclose(refined[b, k].numpy(), expected, atol=1e-6)


def test_weights_sum_to_one_and_the_mask_keeps_its_range() -> None:
    image = torch.rand(1, 3, 20, 30)
    affinity = pamr_affinity(image)
    torch.testing.assert_close(affinity.weights.sum(dim=1), torch.ones(1, 20, 30))
    masks = torch.rand(1, 4, 20, 30) * 0.5 + 0.2
    refined = refine_masks(affinity, masks)
    assert float(refined.min()) >= 0.2 - 1e-6 and float(refined.max()) <= 0.7 + 1e-6


def test_a_flat_image_averages_its_neighbors() -> None:
    """Zero deviation must not divide by zero."""
    affinity = pamr_affinity(torch.full((1, 3, 9, 9), 0.7))
    torch.testing.assert_close(affinity.weights, torch.full((1, 48, 9, 9), 1 / 48))


def test_an_edge_of_the_image_stops_the_mask() -> None:
    image = torch.zeros(1, 3, 16, 32)
    image[..., 16:] = 1.0
    image += 0.01 * torch.randn(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., 2:14, 3:13] = 1.0
    refined = pamr(image, mask)
    assert float(refined[..., :16].mean()) > 20 * float(refined[..., 16:].mean())


def test_gain_and_offset_of_the_colors_do_not_matter() -> None:
    image = torch.rand(1, 3, 12, 12)
    scaled = image * torch.tensor([4.0, 0.5, 2.0])[:, None, None] + 3.0
    torch.testing.assert_close(pamr_affinity(scaled).weights, pamr_affinity(image).weights, atol=1e-4, rtol=1e-3)


def test_image_and_masks_are_resized_with_aligned_corners() -> None:
    image, masks = torch.rand(1, 3, 24, 16), torch.rand(1, 2, 5, 7)
    small = F.interpolate(image, size=(6, 8), mode="bilinear", align_corners=True)
    affinity = pamr_affinity(image, size=(6, 8))
    assert torch.equal(affinity.weights, pamr_affinity(small).weights)
    enlarged = F.interpolate(masks, size=(6, 8), mode="bilinear", align_corners=True)
    assert torch.equal(refine_masks(affinity, masks), refine_masks(affinity, enlarged))


def test_images_strips_and_chunks_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    image, masks = torch.rand(3, 3, 40, 30), torch.rand(3, 7, 40, 30)
    whole = pamr_affinity(image)
    refined = refine_masks(whole, masks)
    monkeypatch.setattr(module, "_STRIP_PIXELS", 30 * 7)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 1200 * 2)
    strips = pamr_affinity(image)
    torch.testing.assert_close(strips.weights, whole.weights, rtol=1e-5, atol=1e-7)
    for index in range(3):
        one = slice(index, index + 1)
        torch.testing.assert_close(refine_masks(strips[one], masks[one]), refined[one], rtol=0, atol=1e-6)


def test_a_device_works_off_images_and_masks_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are what a GPU pays for; a device that is pretended counts them."""
    strips, steps = [], []
    weights, iterate = module._strip_weights, module._iterate
    monkeypatch.setattr(module, "_strip_weights", lambda *args: strips.append(args[0].shape) or weights(*args))
    monkeypatch.setattr(module, "_iterate", lambda *args: steps.append(args[1].shape) or iterate(*args))
    with FakeTensorMode():
        affinity = pamr_affinity(torch.rand(8, 3, 112, 112, device="cuda"))
        refined = refine_masks(affinity, torch.rand(8, 4, 112, 112, device="cuda"))
    assert refined.device.type == "cuda" and refined.shape == (8, 4, 112, 112)
    assert strips == [(8, 3, 160, 160)] and steps == [(8, 4, 112, 112)]


def test_groups_of_images_do_not_mix() -> None:
    """What a device does: several images at once, in strips; the numbers can be had on a CPU."""
    image = torch.rand(3, 3, 40, 30)
    padded = F.pad(image, [24] * 4, mode="replicate")
    expected = pamr_affinity(image).weights
    for top, bottom in ((0, 40), (10, 25)):
        strip = module._strip_weights(padded[:2, :, top : bottom + 48], (bottom - top, 30), module.DILATIONS)
        torch.testing.assert_close(strip, expected[:2, :, top:bottom], rtol=1e-5, atol=1e-7)


def test_one_image_serves_all_masks() -> None:
    affinity, masks = pamr_affinity(torch.rand(1, 3, 8, 8)), torch.rand(3, 1, 8, 8)
    refined = refine_masks(affinity, masks)
    assert torch.equal(refined[2:], refine_masks(affinity, masks[2:]))


def test_other_numbers_of_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 images.*3"):
        refine_masks(pamr_affinity(torch.rand(2, 3, 8, 8)), torch.rand(3, 1, 8, 8))


def test_no_masks() -> None:
    assert refine_masks(pamr_affinity(torch.rand(1, 3, 8, 8)), torch.rand(1, 0, 8, 8)).shape == (1, 0, 8, 8)


def test_bytes_precision_and_autocast() -> None:
    image, masks = torch.rand(1, 3, 10, 10), torch.rand(1, 1, 10, 10)
    affinity = pamr_affinity(image)
    assert affinity.nbytes == 48 * 100 * 4
    half = affinity.to(dtype=torch.float16)
    assert isinstance(half, PamrAffinity) and half.nbytes == affinity.nbytes // 2
    torch.testing.assert_close(refine_masks(half, masks), refine_masks(affinity, masks), atol=5e-3, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(refine_masks(pamr_affinity(image), masks), refine_masks(affinity, masks))
