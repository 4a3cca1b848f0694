from __future__ import annotations

import numpy as np
import pytest
import torch

from tcl_core.methods.tcl.losses import draw_noise, gumbel_sigmoid, info_nce, pool_by_masks, total_variation


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 5), (2, 1, 4, 1), (1, 1, 1, 1)])
def test_total_variation_against_loops(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    values, (*_, height, width) = x.detach().double().numpy().reshape(-1, *shape[2:]), shape
    horizontal = [abs(m[y, i + 1] - m[y, i]) for m in values for y in range(height) for i in range(width - 1)]
    vertical = [abs(m[i + 1, c] - m[i, c]) for m in values for i in range(height - 1) for c in range(width)]
    expected = sum(float(np.mean(part)) for part in (horizontal, vertical) if part)
    actual = total_variation(x)
    assert float(actual.detach()) == pytest.approx(expected, rel=1e-5, abs=1e-12)
    actual.backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_total_variation_has_autograds_gradient() -> None:
    x = torch.randn(2, 3, 6, 5, dtype=torch.double, requires_grad=True)
    (3.0 * total_variation(x)).backward()
    assert x.grad is not None
    actual, x.grad = x.grad.clone(), None
    naive = (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
    (3.0 * naive).backward()
    torch.testing.assert_close(actual, x.grad)
    assert torch.autograd.gradcheck(total_variation, (x.detach().requires_grad_(),), fast_mode=True)


def test_total_variation_of_a_constant_has_no_gradient() -> None:
    x = torch.ones(1, 2, 4, 4, requires_grad=True)
    total_variation(x).backward()
    assert x.grad is not None and float(x.grad.abs().max()) == 0


def reference_info_nce(rows: np.ndarray, columns: np.ndarray, scale: float, offset: int) -> float:
    total = 0.0
    for logits in (scale * rows, scale * columns):
        for b, row in enumerate(logits):
            total -= row[b + offset] - np.log(sum(np.exp(value) for value in row))
    return total / (2 * len(rows))


@pytest.mark.parametrize("offset", [0, 2])
def test_info_nce_against_loops(offset: int) -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(-1, 1, (3, 5)), rng.uniform(-1, 1, (3, 5))
    actual = info_nce(torch.tensor(rows), torch.tensor(columns), torch.tensor(7.0, dtype=torch.double), offset)
    assert float(actual) == pytest.approx(reference_info_nce(rows, columns, 7.0, offset), rel=1e-12)


def test_info_nce_counts_pairs_as_often_as_their_weights_say() -> None:
    rng = np.random.default_rng(0)
    rows, columns = rng.uniform(-1, 1, (2, 3, 5))
    weights = rng.integers(0, 4, (2, 3, 5)) / 3
    expected = 0.0
    for logits, counted in zip((7 * rows, 7 * columns), weights, strict=True):
        np.fill_diagonal(counted[:, 2:], 1)
        for b, (row, weight) in enumerate(zip(logits, counted, strict=True)):
            expected -= row[b + 2] - np.log(sum(w * np.exp(value) for value, w in zip(row, weight, strict=True)))
    scale = torch.tensor(7.0, dtype=torch.double)
    row_weights, column_weights = torch.tensor(weights)
    actual = info_nce(torch.tensor(rows), torch.tensor(columns), scale, 2, (row_weights, column_weights))
    assert float(actual) == pytest.approx(expected / 6, rel=1e-12)


def test_info_nce_of_one_pair_is_zero() -> None:
    one = torch.tensor([[0.3]])
    assert float(info_nce(one, one, torch.tensor(14.0))) == 0


def test_gumbel_sigmoid_against_loops() -> None:
    rng = np.random.default_rng(0)
    logits, noise = rng.normal(size=(4, 5)), rng.uniform(0.01, 0.99, (4, 5))
    soft = 1 / (1 + np.exp(-(logits + np.log(noise / (1 - noise))) / 0.5))
    x = torch.tensor(logits, requires_grad=True)
    hard = gumbel_sigmoid(x, torch.tensor(noise), tau=0.5)
    np.testing.assert_allclose(hard.detach().numpy(), soft > 0.5, atol=1e-12)
    hard.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), soft * (1 - soft) / 0.5, rtol=1e-10)


def test_gumbel_sigmoid_is_one_as_often_as_the_mask_says() -> None:
    logits = torch.full((200, 200), 0.8)
    hard = gumbel_sigmoid(logits, draw_noise(logits, torch.Generator().manual_seed(0)))
    assert float(hard.mean()) == pytest.approx(1 / (1 + np.exp(-0.8)), abs=0.01)


def test_noise_is_in_the_open_interval_and_seeded() -> None:
    like = torch.empty(1000, 1000)
    noise = draw_noise(like, torch.Generator().manual_seed(3))
    assert bool(torch.logit(noise).isfinite().all())
    assert noise.dtype == torch.float32
    assert torch.equal(noise, draw_noise(like, torch.Generator().manual_seed(3)))
    assert not torch.equal(noise, draw_noise(like, torch.Generator().manual_seed(4)))


def test_pooling_against_loops() -> None:
    rng = np.random.default_rng(0)
    features, masks = rng.normal(size=(2, 4, 3, 5)), rng.uniform(size=(2, 6, 3, 5))
    actual = pool_by_masks(torch.tensor(features), torch.tensor(masks))
    for b in range(2):
        for n in range(6):
            weighted = sum(features[b, :, y, x] * masks[b, n, y, x] for y in range(3) for x in range(5))
            np.testing.assert_allclose(actual[b, n].numpy(), weighted / (masks[b, n].sum() + 1e-6), rtol=1e-10)


def test_pooling_by_an_empty_mask_is_zero_and_finite() -> None:
    masks = torch.zeros(1, 1, 3, 3, requires_grad=True)
    pooled = pool_by_masks(torch.randn(1, 4, 3, 3), masks)
    pooled.sum().backward()
    assert float(pooled.detach().abs().max()) == 0
    assert masks.grad is not None and bool(masks.grad.isfinite().all())
