"""Sampling and losses of MGCA-style training against slow, obvious implementations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.mgca.losses import (
    hard_info_nce,
    nearest_terms,
    part_embeddings,
    pixel_loss,
    region_loss,
    strongest,
)
from tcl_core.methods.mgca.sampling import farthest_points, hard_pixels, hardest, pseudo_foreground
from tcl_core.methods.tcl.mask_terms import mask_terms, terms_in_parts

DOUBLE = torch.double


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def unit(*shape: int, dim: int = -1, seed: int = 0) -> Tensor:
    return F.normalize(drawn(*shape, seed=seed), dim=dim)


def close(actual: Tensor, expected: float | Tensor) -> None:
    torch.testing.assert_close(actual.double(), torch.as_tensor(expected, dtype=DOUBLE), rtol=1e-5, atol=1e-6)


# -- sampling --------------------------------------------------------------------------------------------------------


def test_foreground_against_loops() -> None:
    similarities = unit(6, 30, seed=1)
    masks = torch.sigmoid(8 * similarities - torch.linspace(0, 4, 6, dtype=DOUBLE)[:, None])
    found = pseudo_foreground(masks, similarities, least=8, share=0.4)
    guarded = []
    for number in range(6):
        above = {place for place in range(30) if masks[number, place] > 0.5}
        guarded.append(len(above) < 8)
        if guarded[-1]:
            above = set(sorted(range(30), key=lambda place: -float(similarities[number, place]))[:12])
        assert set(found.pixels[number].nonzero().flatten().tolist()) == above
    assert found.guarded.tolist() == guarded and {True, False} <= set(guarded)


@pytest.mark.parametrize(("least", "share", "count"), [(8, 0.05, 8), (2, 0.5, 15), (50, 0.05, 30)])
def test_an_empty_mask_has_a_foreground(least: int, share: float, count: int) -> None:
    found = pseudo_foreground(torch.zeros(2, 30), drawn(2, 30), least, share)
    assert found.pixels.sum(dim=1).tolist() == [count] * 2 and found.guarded.all()


def test_farthest_points_by_brute_force() -> None:
    pixels, allowed = unit(3, 8, 20, dim=1), drawn(3, 20, seed=2) > -0.5
    first = torch.tensor([int(row.nonzero()[1]) for row in allowed])
    found = farthest_points(pixels, allowed, first, 5)
    for number in range(3):
        chosen = [int(first[number])]
        while len(chosen) < 5:
            distances = {
                place: min(1 - float(pixels[number, :, place] @ pixels[number, :, other]) for other in chosen)
                for place in range(20)
                if allowed[number, place]
            }
            chosen.append(max(distances, key=distances.__getitem__))
        assert found[number].tolist() == chosen and len(set(chosen)) == 5


def test_more_points_than_pixels_are_chosen_again() -> None:
    allowed = torch.zeros(1, 6, dtype=torch.bool)
    allowed[0, [1, 4]] = True
    found = farthest_points(unit(1, 4, 6, dim=1), allowed, torch.tensor([4]), 5)
    assert set(found[0].tolist()) == {1, 4}


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_hardest_by_brute_force(count: int) -> None:
    """Of all sets of allowed candidates of this size, the one with the greatest sum."""
    similarities, allowed = drawn(4, 7), drawn(4, 7, seed=3) > 0
    allowed[3] = False
    places, valid = hardest(similarities, allowed, count)
    assert places.shape == valid.shape == (4, min(count, 7))
    for row in range(4):
        candidates = allowed[row].nonzero().flatten().tolist()
        size = min(count, len(candidates))
        best = max(
            itertools.combinations(candidates, size), key=lambda some: sum(float(similarities[row, c]) for c in some)
        )
        assert set(places[row][valid[row]].tolist()) == set(best) and int(valid[row].sum()) == size


def test_hard_pixels_by_brute_force() -> None:
    similarities = unit(5, 40, seed=1)
    masks = torch.sigmoid(6 * similarities - torch.tensor([0.0, 0.2, 0.5, 0.9, 6.0], dtype=DOUBLE)[:, None])
    foreground = pseudo_foreground(masks, similarities, 8, 0.3)
    found = hard_pixels(masks, similarities, foreground, 0.1, 6)
    assert foreground.guarded.any() and not foreground.guarded.all()
    for number in range(5):
        order = sorted(range(40), key=lambda place: float(similarities[number, place]))
        labeled = [place for place in order if abs(float(masks[number, place]) - 0.5) >= 0.1]
        assert len(labeled) < 40 or number == 4
        inside = [p for p in order if foreground.pixels[number, p] and (p in labeled or foreground.guarded[number])]
        outside = [p for p in reversed(order) if not foreground.pixels[number, p] and p in labeled]
        assert found.positives[number][found.positive[number]].tolist() == inside[:6]
        assert found.negatives[number][found.negative[number]].tolist() == outside[:6]


def test_a_mask_of_the_whole_image_leaves_no_negative() -> None:
    similarities = drawn(1, 9)
    foreground = pseudo_foreground(torch.ones(1, 9), similarities, 4, 0.1)
    found = hard_pixels(torch.ones(1, 9), similarities, foreground, 0.1, 3)
    assert found.positive.all() and not found.negative.any()


# -- losses ----------------------------------------------------------------------------------------------------------


def _value(number: Tensor) -> float:
    return float(number.detach())


def slow_info_nce(positive: Tensor, negatives: list[Tensor], scale: Tensor) -> Tensor:
    return -(scale * positive) + torch.stack([(scale * value).exp() for value in [positive, *negatives]]).sum().log()


def test_hard_info_nce_against_loops() -> None:
    positives, negatives, valid = unit(5, 1)[:, 0], unit(5, 4), drawn(5, 4, seed=1) > 0
    valid[0] = False
    found = hard_info_nce(positives, negatives, valid, torch.tensor(5.0, dtype=DOUBLE))
    for row in range(5):
        chosen = [negatives[row, c] for c in range(4) if valid[row, c]]
        close(found[row], slow_info_nce(positives[row], chosen, torch.tensor(5.0, dtype=DOUBLE)))
    assert found[0] == 0


def test_gradients_are_finite_without_negatives() -> None:
    positives, negatives = torch.zeros(2, requires_grad=True), torch.full((2, 3), -2.0, requires_grad=True)
    scale = torch.tensor(14.0, requires_grad=True)
    hard_info_nce(positives, negatives, torch.zeros(2, 3, dtype=torch.bool), scale).sum().backward()
    for tensor in (positives, negatives, scale):
        assert tensor.grad is not None and not tensor.grad.any()


def test_parts_against_loops() -> None:
    pixels, foreground = unit(3, 6, 10, dim=1), drawn(3, 10, seed=1) > 0
    points = torch.stack([row.nonzero().flatten()[:2] for row in foreground])
    found = part_embeddings(pixels, foreground, points, 0.07)
    for image, region in itertools.product(range(3), range(2)):
        center = pixels[image, :, points[image, region]]
        places = foreground[image].nonzero().flatten().tolist()
        weights = [math.exp(float(center @ pixels[image, :, place]) / 0.07) for place in places]
        part = sum(
            weight / sum(weights) * pixels[image, :, place] for weight, place in zip(weights, places, strict=True)
        )
        close(found[image, region], part / part.norm())  # type: ignore[operator]


def test_parts_of_an_empty_foreground_have_a_gradient() -> None:
    pixels = unit(1, 6, 10, dim=1).requires_grad_()
    parts = part_embeddings(pixels, torch.zeros(1, 10, dtype=torch.bool), torch.tensor([[0, 3]]), 0.07)
    parts[..., 0].sum().backward()
    assert parts.isfinite().all() and pixels.grad is not None and pixels.grad.isfinite().all()


@pytest.mark.parametrize("count", [1, 3, 50])
@pytest.mark.parametrize(("first", "images"), [(0, 5), (2, 2)])
def test_region_loss_against_loops(count: int, first: int, images: int) -> None:
    parts, texts = unit(5, 3, 8).requires_grad_(), unit(5, 8, seed=1)
    apart = ~torch.eye(5, dtype=torch.bool)
    # Two captions that say the same, which are no negatives of each other.
    apart[1, 2] = apart[2, 1] = False
    scale = torch.tensor(7.0, dtype=DOUBLE, requires_grad=True)
    own = slice(first, first + images)
    actual = region_loss(parts[own], texts[own], parts, texts, apart[own], scale, count)
    expected = torch.zeros((), dtype=DOUBLE)
    for image, region in itertools.product(range(own.start, own.stop), range(3)):
        part, text = parts[image, region], texts[image]
        others = [n for n in range(5) if apart[image, n]]
        against_texts = sorted((part @ texts[n] for n in others), key=_value, reverse=True)[:count]
        against_parts = sorted((text @ parts[n, r] for n in others for r in range(3)), key=_value, reverse=True)[:count]
        expected = expected + slow_info_nce(part @ text, against_texts, scale)
        expected = expected + slow_info_nce(part @ text, against_parts, scale)
    expected = expected / (2 * 3 * images)
    close(actual.detach(), expected.detach())
    mine, wanted = (torch.autograd.grad(loss, [parts, scale]) for loss in (actual, expected))
    for got, right in zip(mine, wanted, strict=True):
        close(got, right)


def test_region_loss_of_one_image_is_zero() -> None:
    parts = unit(1, 3, 8).requires_grad_()
    scale = torch.tensor(7.0, dtype=DOUBLE, requires_grad=True)
    loss = region_loss(parts, unit(1, 8), parts, unit(1, 8), torch.zeros(1, 1, dtype=torch.bool), scale, 4)
    loss.backward()
    assert loss == 0 and parts.grad is not None and not parts.grad.any() and scale.grad == 0


def test_pixel_loss_against_loops() -> None:
    values = [unit(4, count, seed=seed).requires_grad_() for seed, count in enumerate((3, 5, 6))]
    positives, negatives, others = values
    positive, negative = drawn(4, 3, seed=7) > -0.5, drawn(4, 5, seed=8) > 0
    positive[1], negative[2] = False, False
    absent = drawn(4, 6, seed=9) > 0.5
    absent[2] = True
    scale = torch.tensor(6.0, dtype=DOUBLE, requires_grad=True)
    actual = pixel_loss(positives, positive, negatives, negative, others.masked_fill(absent, -2), scale)
    images = []
    for b in range(4):
        against = [negatives[b, k] for k in range(5) if negative[b, k]] + [
            others[b, k] for k in range(6) if not absent[b, k]
        ]
        losses = [slow_info_nce(positives[b, k], against, scale) for k in range(3) if positive[b, k]]
        images.append(torch.stack(losses).mean() if losses else torch.zeros((), dtype=DOUBLE))
    expected = torch.stack(images).mean()
    close(actual.detach(), expected.detach())
    # An image without positives adds nothing, nor does one without negatives.
    assert images[1] == 0 and images[2].abs() < 1e-12
    mine, wanted = (torch.autograd.grad(loss, [*values, scale]) for loss in (actual, expected))
    for got, right in zip(mine, wanted, strict=True):
        assert got.isfinite().all()
        close(got, right)


@pytest.mark.parametrize("count", [1, 4, 100])
def test_strongest_against_loops(count: int) -> None:
    nearest, apart = unit(3, 5, 4), drawn(3, 5, seed=1) > -0.2
    apart[:, 2] = False
    found = strongest(nearest, apart, count)
    assert found.shape == (5, count)
    for text in range(5):
        values = [float(v) for image in range(3) if apart[image, text] for v in nearest[image, text]]
        values = sorted(values, reverse=True)[:count]
        close(found[text], torch.tensor(values + [-2.0] * (count - len(values))))


def test_strongest_of_groups_are_the_strongest() -> None:
    """What processes hand on is enough."""
    nearest, apart = unit(6, 4, 3), drawn(6, 4, seed=1) > -0.5
    groups = [strongest(nearest[part], apart[part], 5) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.cat(groups, dim=1).topk(5, dim=1).values, strongest(nearest, apart, 5))


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("part", [1, 2, None])
def test_nearest_pixels_with_the_terms_of_masks(count: int, part: int | None) -> None:
    pixels = drawn(3, 6, 4, 5).float().requires_grad_()
    texts, slope, offset = unit(7, 6).float(), torch.tensor(10.0, requires_grad=True), torch.tensor(-2.5)
    actual = terms_in_parts(nearest_terms(count), pixels, texts, slope, offset, part)
    flat = F.normalize(pixels, dim=1).flatten(2)
    expected = [
        *mask_terms(pixels, texts, slope, offset),
        torch.stack([torch.stack([(t @ image).sort(descending=True).values[:count] for t in texts]) for image in flat]),
    ]
    cotangents = [torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) for x in expected]
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    mine = torch.autograd.grad(actual, [pixels, slope], cotangents)
    for got, wanted in zip(mine, torch.autograd.grad(expected, [pixels, slope], cotangents), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
