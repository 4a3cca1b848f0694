"""The adaptive semantic unit against loops, and at both of its ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.methods import semantic_unit
from tcl_core.methods.semantic_unit import Parts, UnitOptions, cosines_in_units, in_units, meta_points, semantic_units
from tcl_core.methods.tcl import TCL
from tcl_core.methods.training_free.last_block import NACLIP
from tcl_core.models.loading import options_of
from tests.contract.examples import example_windows, prompts_of


def unit_pixels(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def reference(window: NDArray[np.float64], places: list[int], threshold: float) -> NDArray[np.float64]:
    """One window ``[E, N]``, an affinity at a time."""
    count = window.shape[1]
    gathered, weights = np.zeros_like(window), np.zeros(count)
    for k in places:
        affinity = np.array([max(float(window[:, k] @ window[:, p]) - threshold, 0.0) for p in range(count)])
        if affinity.sum() == 0:
            continue
        affinity /= affinity.sum()
        part = sum(affinity[p] * window[:, p] for p in range(count))
        part /= math.sqrt(float(part @ part))
        for p in range(count):
            gathered[:, p] += affinity[p] * part
            weights[p] += affinity[p]
    return np.stack([gathered[:, p] / weights[p] if weights[p] else window[:, p] for p in range(count)], axis=1)


@pytest.mark.parametrize(("points", "threshold"), [(1, -1.0), (4, -0.2), (9, 0.1), (30, 0.4), (6, 0.9)])
def test_units_against_loops(points: int, threshold: float) -> None:
    pixels = unit_pixels(2, 5, 4, 6)
    found = semantic_units(pixels, points, threshold)
    places = meta_points((4, 6), points).tolist()
    for window, mine in zip(pixels.double().flatten(2).numpy(), found.flatten(2).numpy(), strict=True):
        np.testing.assert_allclose(mine, reference(window, places, threshold), atol=2e-6)


def test_points_are_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = unit_pixels(2, 5, 4, 6)
    expected = semantic_units(pixels, 24, 0.2)
    monkeypatch.setattr(semantic_unit, "_MOST_AFFINITIES", 7 * 24)
    torch.testing.assert_close(semantic_units(pixels, 24, 0.2), expected)


def test_every_pixel_as_a_point_at_a_high_threshold_gives_pixels() -> None:
    """The nearer the threshold comes to one, the nearer units come to pixels; at one they are the same."""
    pixels = unit_pixels(2, 16, 7, 9)
    distances = [float((semantic_units(pixels, 63, threshold) - pixels).abs().max()) for threshold in (0.3, 0.6, 0.95)]
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.01
    for threshold in (0.95, 0.9999, 1.0):
        torch.testing.assert_close(semantic_units(pixels, 10**4, threshold), pixels, rtol=0, atol=1e-6)


def test_one_point_gives_one_segment() -> None:
    pixels = unit_pixels(2, 16, 7, 9)
    whole = semantic_units(pixels, 1, -1.0).flatten(2)
    torch.testing.assert_close(whole, whole[..., :1].expand_as(whole))
    torch.testing.assert_close(whole[..., 0].norm(dim=1), torch.ones(2))
    # At a higher threshold the segment is what resembles the point, and everything else stays as it is.
    some, flat = semantic_units(pixels, 1, 0.1).flatten(2), pixels.flatten(2)
    middle = int(meta_points((7, 9), 1))
    for window, before in zip(some, flat, strict=True):
        near = before[:, middle] @ before > 0.1
        assert 1 < int(near.sum()) < 63
        torch.testing.assert_close(window[:, near], window[:, [middle]].expand(-1, int(near.sum())))
        assert torch.equal(window[:, ~near], before[:, ~near])


def test_small_parts_weigh_as_much_as_large_ones() -> None:
    """A pixel halfway between a large and a small thing belongs to both alike."""
    left, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    between = F.normalize(left + right, dim=0)
    row = torch.stack([*[left] * 90, between, *[right] * 9], dim=1)[None, :, None]
    found = semantic_units(row, 100, 0.5)[0, :, 0, 90]
    # By affinities alone, which are no shares, the large thing would weigh ten times as much.
    assert float(found[0]) == pytest.approx(float(found[1]), rel=0.2)


def test_scores_are_means_of_the_scores_of_parts() -> None:
    """Cosines are linear, so the order of comparing and gathering does not matter."""
    pixels, rows = unit_pixels(1, 8, 4, 4), unit_pixels(3, 8)
    window = pixels[0].flatten(1)
    places = meta_points((4, 4), 9)
    affinity = (window[:, places].T @ window - 0.1).clamp(min=0)
    affinity = affinity / affinity.sum(dim=1, keepdim=True)
    parts = F.normalize(affinity @ window.T, dim=1) @ rows.T
    expected = (affinity / affinity.sum(dim=0)).T @ parts
    covered = affinity.sum(dim=0) > 0
    found = (semantic_units(pixels, 9, 0.1)[0].flatten(1).T @ rows.T)[covered]
    torch.testing.assert_close(found, expected[covered], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (16, 16), (7, 23), (56, 56)])
@pytest.mark.parametrize("points", [1, 2, 5, 14, 196])
def test_points_lie_on_a_grid(size: tuple[int, int], points: int) -> None:
    places = meta_points(size, points)
    assert len(set(places.tolist())) == len(places) <= min(points, size[0] * size[1])
    assert len(places) > 0.6 * min(points, size[0] * size[1])
    rows, columns = set((places // size[1]).tolist()), set((places % size[1]).tolist())
    assert len(places) == len(rows) * len(columns)
    # In the middle of the window, not at an edge of it.
    for coordinates, side in ((rows, size[0]), (columns, size[1])):
        assert abs(sum(coordinates) / len(coordinates) - (side - 1) / 2) <= 0.5


def test_the_default_grid_of_masks() -> None:
    assert len(meta_points((56, 56), 196)) == 196


def test_no_points_leave_the_tensor_alone() -> None:
    pixels = unit_pixels(1, 8, 4, 4)
    assert in_units(pixels, UnitOptions()) is pixels
    assert not torch.equal(in_units(pixels, UnitOptions(unit_points=4, unit_threshold=0.0)), pixels)


def test_units_are_float32_under_autocast() -> None:
    pixels = unit_pixels(1, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = semantic_units(pixels, 9, 0.2)
    assert found.dtype == torch.float32 and torch.equal(found, semantic_units(pixels, 9, 0.2))


@pytest.mark.parametrize("kind", [TCL, NACLIP])
def test_one_segment_has_one_score(kind: type[TCL] | type[NACLIP]) -> None:
    """TCL without CLIP's own dense map, which keeps its pixels."""
    method = kind.example().configured({"unit_points": 1, "unit_threshold": -1.0})
    if isinstance(method, TCL):
        method = method.configured({"kp_weight": 0.0})
    values = method.name_values(method.encode(example_windows()), prompts_of(method))
    torch.testing.assert_close(values, values[..., :1, :1].expand_as(values))
    assert float(values[..., 0, 0].std()) > 1e-4


@pytest.mark.parametrize(
    ("model", "points"),
    [("playground", 64), ("maskclip:ViT-B-16-quickgelu/openai", 64), ("naclip:ViT-B-16-quickgelu/openai", 0)],
)
def test_models_list_the_options(model: str, points: int) -> None:
    rows = {row.name: row for row in options_of(model)[1].rows()}
    assert rows["unit_points"].value == points and rows["unit_threshold"].value == 0.7


@pytest.mark.parametrize("points", [0, 1, 9, 64, 2**16])
@pytest.mark.parametrize("threshold", [-1.0, 0.1, 0.5, 0.95])
def test_cosines_are_those_with_units(points: int, threshold: float) -> None:
    """Whatever was kept: nothing, the same parts, in half precision, or those of other options."""
    pixels, rows = unit_pixels(2, 8, 11, 9), F.normalize(torch.randn(5, 8), dim=1)
    options = UnitOptions(unit_points=points, unit_threshold=threshold)
    expected = torch.einsum("behw,pe->bphw", in_units(pixels, options), rows)
    torch.testing.assert_close(cosines_in_units(pixels, rows, options), expected, atol=1e-6, rtol=1e-5)
    same = Parts.of(pixels, options)
    assert same.fit(options) == (points > 0)
    torch.testing.assert_close(cosines_in_units(pixels, rows, options, same), expected, atol=1e-6, rtol=1e-5)
    for other in (
        UnitOptions(),
        options.changed({"unit_points": 3}),
        options.changed({"unit_threshold": 0.3}),
    ):
        kept = Parts.of(pixels, other)
        assert not kept.fit(options)
        torch.testing.assert_close(cosines_in_units(pixels, rows, options, kept), expected, atol=1e-6, rtol=1e-5)
    half = same.to(dtype=torch.float16)
    assert half.fit(options) == same.fit(options)
    torch.testing.assert_close(cosines_in_units(pixels, rows, options, half), expected, atol=5e-3, rtol=0)


def test_kept_parts_are_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, options = unit_pixels(1, 8, 6, 5), UnitOptions(unit_points=4, unit_threshold=0.1)
    parts = Parts.of(pixels, options)
    monkeypatch.setattr("tcl_core.methods.semantic_unit._parts", None)
    with pytest.raises(TypeError):
        cosines_in_units(pixels, torch.eye(8), options)
    assert cosines_in_units(pixels, torch.eye(8), options, parts).isfinite().all()


def test_parts_that_take_much_memory_are_not_kept() -> None:
    pixels, options = unit_pixels(1, 8, 4, 4), UnitOptions(unit_points=64, unit_threshold=0.1)
    assert Parts.of(pixels, options).units.shape[1] == 16
    # 64 x 65,536 affinities are the most.
    largest = Parts.of(unit_pixels(1, 2, 256, 256), options)
    assert largest.fit(options) and largest.affinity.nbytes == 2**24
    larger = Parts.of(unit_pixels(1, 2, 256, 257), options)
    assert larger.nbytes == 0 and not larger.fit(options)


def test_changed_options_do_not_need_the_image_again() -> None:
    """Features that were made with other options give the same scores."""
    method = TCL.example()
    windows, prompts = example_windows(), prompts_of(method)
    for values in ({"unit_points": 0}, {"unit_points": 9, "unit_threshold": 0.2}, {}):
        own = method.configured(values)
        expected = own.similarities(own.encode(windows), prompts)
        torch.testing.assert_close(own.similarities(method.encode(windows), prompts), expected, atol=1e-6, rtol=1e-5)
        off = method.configured({"unit_points": 0})
        torch.testing.assert_close(own.similarities(off.encode(windows), prompts), expected, atol=1e-6, rtol=1e-5)
