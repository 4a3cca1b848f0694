"""What every method promises, checked on its own `example`: ``pytest tests/contract -k NAME`` for one of them.

What a segmenter and a session make of these promises is in ``test_segmentation.py``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tcl_core.errors import SettingsError, VocabularyError, WeightsError
from tcl_core.methods import Method, method_class
from tcl_core.methods.capabilities import DenseEmbedding, Fitted, Segments
from tcl_core.methods.semantic_unit import UnitOptions
from tcl_core.methods.trainable import Trainable
from tcl_core.refinement.pamr import Pamr
from tcl_core.tensors import TensorBundle
from tests.contract.examples import (
    TEMPLATES,
    example_windows,
    model_of,
    other_values,
    prompts_of,
    similarities,
    window_refiner,
)

# Products of matrices of other sizes may differ in the last digits.
ROUNDING = 2e-5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def merged_of(method: Method) -> Tensor:
    """Similarities ``[P, h, w]`` of an image that is one window."""
    return similarities(method, method.encode(example_windows(1)), prompts_of(method))[0]


def bundles_of(method: Method) -> dict[str, TensorBundle]:
    """Everything of the method that caches keep."""
    windows = example_windows(3)
    guide, _ = window_refiner(method, windows)
    found = {"features": method.encode(windows), "prompts": prompts_of(method), "window guide": guide}
    found["image guide"] = method.image_guide(Pamr(), example_windows(1), (40, 50))
    return {name: bundle for name, bundle in found.items() if bundle is not None}


def rebuilt(method: Method) -> Method:
    """A new instance from the plain settings, on the same towers, with nothing learned."""
    config = json.loads(json.dumps(method.config_to_dict(), allow_nan=False))
    return type(method).from_config(method.towers, config).eval().requires_grad_(False)


def closeness(first: Tensor, second: Tensor) -> float:
    """Mean difference as a share of the range of values."""
    return float((first - second).abs().mean() / max(1.0, float(second.abs().max())))


# -- what it is ------------------------------------------------------------------------------------------------------


def test_example_is_frozen_and_known(method: Method) -> None:
    assert method_class(method.name) is type(method)
    assert not method.training or not any(True for _ in method.parameters())
    assert not any(parameter.requires_grad for parameter in method.parameters())
    prompts = method.example_prompts()
    assert len(set(prompts)) == len(prompts) >= 4
    assert not any(method.unknown_words(prompt) for prompt in prompts)


def test_examples_are_equal(method: Method) -> None:
    first, second = merged_of(method), merged_of(type(method).example())
    assert torch.equal(first, second)


def test_background_heights(method: Method) -> None:
    background = method.background
    for refiner in (None, "pamr", "another"):
        height = background.height(refiner)
        assert height is None if background.kind == "none" else 0 <= float(height or 0) <= 1


def test_config_round_trip(method: Method) -> None:
    other = rebuilt(method)
    assert other.config_to_dict() == method.config_to_dict()
    assert other.options == method.options
    with pytest.raises(SettingsError, match="no_such_setting"):
        type(method).from_config(method.towers, {**method.config_to_dict(), "no_such_setting": 1})


def test_learned_tensors_round_trip(method: Method) -> None:
    state = method.learned_state_dict()
    assert not [name for name in state if name.split(".")[0] in method.tower_names]
    other = rebuilt(method)
    other.load_learned_state_dict({name: tensor.clone() for name, tensor in state.items()})
    found = other.learned_state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert torch.equal(merged_of(other), merged_of(method))


def test_learned_tensors_that_do_not_fit(method: Method) -> None:
    state, other = method.learned_state_dict(), rebuilt(method)
    with pytest.raises(WeightsError, match="no_such_tensor"):
        other.load_learned_state_dict({**state, "no_such_tensor": torch.zeros(1)})
    for name in state:
        fewer = {key: tensor for key, tensor in state.items() if key != name}
        if name in method.optional_keys:
            other.load_learned_state_dict(fewer)
            continue
        with pytest.raises(WeightsError, match="missing"):
            other.load_learned_state_dict(fewer)
    assert set(method.optional_keys) <= set(state)


# -- options ---------------------------------------------------------------------------------------------------------


def test_configured_shares_weights(method: Method) -> None:
    before = method.options
    for name, value in other_values(before).items():
        other = method.configured({name: value})
        assert getattr(other.options, name) == value
        assert method.options == before
        own, shared = method.state_dict(), other.state_dict()
        assert all(own[key].data_ptr() == shared[key].data_ptr() for key in own)
    assert method.configured({}).options == before


def test_options_that_cannot_be(method: Method) -> None:
    wrong: list[dict[str, Any]] = [{"no_such_option": 1}]
    for name, field in type(method.options).model_fields.items():
        if field.annotation in (int, float, bool):
            wrong.append({name: "nonsense"})
        for limit in field.metadata:
            beyond = {"ge": -1, "gt": 0, "le": 1, "lt": 0}
            wrong += [{name: getattr(limit, sign) + step} for sign, step in beyond.items() if hasattr(limit, sign)]
    for values in wrong:
        with pytest.raises(SettingsError) as caught:
            method.configured(values)
        sentence = str(caught.value)
        assert next(iter(values)) in sentence and "\n" not in sentence and sentence.endswith(".")


def test_options_are_described(method: Method) -> None:
    for row in method.options.rows():
        assert row.description and "\n" not in row.description
        assert row.affects in ("features", "scores")
        assert json.loads(row.model_dump_json())["name"] == row.name


def test_options_of_scores_leave_features_alone(method: Method) -> None:
    """What is kept only to score faster may differ, but not what it gives."""
    windows = example_windows()
    features = method.encode(windows)
    for name in method.options.affecting("scores"):
        other = method.configured({name: other_values(method.options)[name]})
        prompts = prompts_of(other)
        expected, found = (
            similarities(other, each, other.prompts_for_image(each, prompts))
            for each in (other.encode(windows), features)
        )
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


# -- features and prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (8, 8), (40, 50)])
def test_window_sizes(method: Method, size: tuple[int, int]) -> None:
    windows = example_windows(2, size)
    features, (_, refine) = method.encode(windows), window_refiner(method, windows)
    for chosen in (None, refine):
        assert similarities(method, features, prompts_of(method), chosen).shape[2:] == size


def test_windows_do_not_depend_on_their_company(method: Method) -> None:
    windows = example_windows()
    together = similarities(method, method.encode(windows), prompts_of(method))
    for place in range(len(windows)):
        alone = similarities(method, method.encode(windows[place : place + 1]), prompts_of(method))
        assert torch.allclose(alone[0], together[place], atol=1e-4)


@pytest.mark.parametrize("refined", [False, True])
def test_slices_of_windows(method: Method, refined: bool) -> None:
    windows = example_windows()
    features, prompts, refiner = method.encode(windows), prompts_of(method), Pamr()
    guide = method.window_guide(refiner, windows) if refined else None
    bound = None if guide is None else lambda maps: refiner.refine(guide, maps)
    together = similarities(method, features, prompts, bound)
    for part in (slice(0, 1), slice(1, 3)):
        piece = None if guide is None else guide[part]
        bound = None if piece is None else lambda maps, piece=piece: refiner.refine(piece, maps)
        assert torch.allclose(similarities(method, features[part], prompts, bound), together[part], atol=ROUNDING)


@pytest.mark.parametrize("refined", [False, True])
def test_prompts_together_alone_and_permuted(method: Method, refined: bool) -> None:
    if not method.independent_prompts:
        pytest.skip("prompts of this method depend on each other")
    windows, texts = example_windows(), method.example_prompts()
    features = method.encode(windows)
    refine = window_refiner(method, windows)[1] if refined else None
    prompts = prompts_of(method)
    together = similarities(method, features, prompts, refine)
    alone = [similarities(method, features, prompts[p : p + 1], refine) for p in range(len(prompts))]
    assert torch.allclose(torch.cat(alone, dim=1), together, atol=ROUNDING)
    one_by_one = [prompts_of(method, [text]) for text in texts]
    joined = similarities(method, features, type(prompts).join(one_by_one), refine)
    assert torch.allclose(joined, together, atol=ROUNDING)
    order = [*range(1, len(texts)), 0]
    permuted = similarities(method, features, prompts_of(method, [texts[place] for place in order]), refine)
    assert torch.allclose(permuted, together[:, order], atol=ROUNDING)


def test_a_prompt_is_read_to_its_end_or_refused(method: Method) -> None:
    """The longest prompt depends on its last word; a longer one, which would be cut, is refused."""
    if method.refusal("cat dog") is not None:
        pytest.skip("prompts of this method are a closed list")
    words = list(dict.fromkeys(word for text in method.example_prompts() for word in text.split()))
    first, other, model = words[0], words[1], model_of(method)
    most = max(tokenizer.context_length for tokenizer in method.tokenizers()) - method.reserved_tokens - 2
    longest = [" ".join([first] * (most - 1) + [last]) for last in (first, other)]
    model.check_prompts(longest)
    one, two = (prompts_of(method, [text]).tensors() for text in longest)
    assert all(not torch.equal(one[name], two[name]) for name in one if one[name].is_floating_point())
    with pytest.raises(VocabularyError, match=r"^prompt '.*': is too long by 1 token .* use a shorter prompt"):
        model.check_prompts([" ".join([first] * (most + 1))])


def test_bundles_are_cut_and_joined(method: Method) -> None:
    for name, bundle in bundles_of(method).items():
        kind, tensors = type(bundle), bundle.tensors()
        assert len(bundle) == len(next(iter(tensors.values()))), name
        assert {len(tensor) for tensor in tensors.values()} == {len(bundle)}, name
        joined = kind.join([bundle[:1], bundle[1:]]) if len(bundle) > 1 else kind.join([bundle])
        for field, tensor in joined.tensors().items():
            assert torch.equal(tensor, tensors[field]), name
            own = tensor.untyped_storage().data_ptr()
            assert not tensor.numel() or own != tensors[field].untyped_storage().data_ptr(), name
        assert len(bundle[0:0]) == 0
        with pytest.raises(ValueError):
            kind.join([])


def test_bytes_are_those_of_the_tensors(method: Method) -> None:
    for bundle in bundles_of(method).values():
        assert bundle.nbytes == sum(t.numel() * t.element_size() for t in bundle.tensors().values()) > 0
        half = bundle[: len(bundle) // 2]
        assert half.nbytes * len(bundle) == bundle.nbytes * len(half)


def test_tensors_round_trip(method: Method) -> None:
    windows = example_windows()
    features, prompts = method.encode(windows), prompts_of(method)
    expected = similarities(method, features, prompts)
    again = [type(bundle).from_tensors(bundle.to_tensors()) for bundle in (features, prompts)]
    assert torch.equal(similarities(method, *again), expected)  # type: ignore[arg-type]
    for name, bundle in bundles_of(method).items():
        tensors = bundle.to_tensors()
        assert all(isinstance(tensor, Tensor) for tensor in tensors.values()), name
        found = type(bundle).from_tensors(tensors)
        assert all(
            getattr(found, field.name) == getattr(bundle, field.name)
            for field in dataclasses.fields(bundle)
            if field.name not in bundle.tensors()
        ), name
        with pytest.raises(ValueError):
            type(bundle).from_tensors({**tensors, "no_such_field": torch.zeros(1)})


def test_half_precision_stays_near(method: Method) -> None:
    features, prompts = method.encode(example_windows()), prompts_of(method)
    expected = similarities(method, features, prompts)
    halves = features.to(dtype=torch.float16), prompts.to(dtype=torch.float16)
    for half, whole in zip(halves, (features, prompts), strict=True):
        assert half.nbytes < whole.nbytes
        for name, tensor in whole.tensors().items():
            kept = half.tensors()[name].dtype
            assert kept == (torch.float16 if tensor.is_floating_point() else tensor.dtype)
    assert closeness(similarities(method, halves[0], prompts), expected) < 0.01
    assert closeness(similarities(method, *halves), expected) < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_device(method: Method, device: str) -> None:
    expected = merged_of(method)
    moved = copy.deepcopy(method).to(device)
    features, prompts = moved.encode(example_windows(1).to(device)), prompts_of(moved)
    for bundle in (features, prompts):
        assert {tensor.device.type for tensor in bundle.tensors().values()} == {device}
    found = similarities(moved, features, prompts)
    scores = moved.finish(found[0], range(len(prompts)))
    assert found.device.type == scores.device.type == device
    assert closeness(found[0].cpu(), expected) < 1e-3
    # What comes from a cache on the CPU is computed with as well.
    assert closeness(similarities(moved, features.to("cpu").to(device), prompts.to("cpu")).cpu()[0], expected) < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_stays_near(method: Method, device: str) -> None:
    moved = copy.deepcopy(method).to(device)
    windows, labels = example_windows().to(device), range(len(method.example_prompts()))
    expected = similarities(moved, moved.encode(windows), prompts_of(moved))
    with torch.autocast(device, torch.bfloat16):
        found = similarities(moved, moved.encode(windows), prompts_of(moved))
        scores = moved.finish(found[0], labels)
    assert scores.dtype == torch.float32
    assert closeness(found, expected) < 0.05
    assert float((scores - moved.finish(expected[0], labels)).abs().mean()) < 0.1


def test_deterministic(method: Method) -> None:
    assert torch.equal(merged_of(method), merged_of(method))


def test_prompt_similarity(method: Method) -> None:
    prompts = prompts_of(method)
    square = method.prompt_similarity(prompts, prompts)
    assert square.shape == (len(prompts), len(prompts))
    assert torch.allclose(square, square.T, atol=ROUNDING)
    assert torch.allclose(square.diagonal(), torch.ones(len(prompts)), atol=1e-3)
    assert (square <= square.diagonal()[:, None] + ROUNDING).all()
    assert (square.abs() <= 1 + ROUNDING).all()
    assert torch.allclose(method.prompt_similarity(prompts[:1], prompts[1:]), square[:1, 1:], atol=ROUNDING)


# -- no prompts, and scores ------------------------------------------------------------------------------------------


def test_no_prompts(method: Method) -> None:
    none, some = method.embed_prompts([], TEMPLATES), prompts_of(method)
    windows = example_windows()
    assert type(none) is type(some) and len(none) == none.nbytes == 0
    assert len(type(some).join([none, some])) == len(some)
    for refine in (None, window_refiner(method, windows)[1]):
        assert similarities(method, method.encode(windows), none, refine).shape == (3, 0, 40, 50)
    assert method.finish(torch.zeros(0, 4, 5), []).shape == (0, 4, 5)


@pytest.mark.parametrize("labels", [(0, 0, 1, 2), (0, 0, 0, 0), (0, 1, 2, 3)])
@pytest.mark.parametrize("refined", [False, True])
def test_finished_scores(method: Method, labels: Sequence[int], refined: bool) -> None:
    merged, refiner, image = merged_of(method)[:4], Pamr(), example_windows(1)
    guide = method.image_guide(refiner, image, (40, 50)) if refined else None
    refine = None if guide is None else lambda maps: refiner.refine(guide, maps)
    before = merged.clone()
    scores = method.finish(merged, labels, refine)
    assert scores.dtype == torch.float32 and scores.shape == (max(labels) + 1, *merged.shape[1:])
    assert scores.isfinite().all() and scores.min() >= 0 and scores.max() <= 1
    assert torch.equal(merged, before), "finish changed its input"
    assert scores.untyped_storage().data_ptr() != merged.untyped_storage().data_ptr()
    assert scores.untyped_storage().nbytes() == scores.numel() * scores.element_size()
    assert torch.equal(scores, method.finish(merged, labels, refine))


@pytest.mark.parametrize("refined", [False, True])
def test_labels_are_as_independent_as_they_say(method: Method, refined: bool) -> None:
    merged, labels, refiner = merged_of(method)[:4], (0, 0, 1, 2), Pamr()
    guide = method.image_guide(refiner, example_windows(1), (40, 50)) if refined else None
    refine = None if guide is None else lambda maps: refiner.refine(guide, maps)
    whole = method.finish(merged, labels, refine)
    parts = [method.finish(merged[:2], (0, 0), refine), method.finish(merged[2:], (0, 1), refine)]
    same = torch.allclose(torch.cat(parts), whole, atol=ROUNDING)
    assert same == method.independent_labels


# -- capabilities ------------------------------------------------------------------------------------------------------


def test_dense_embedding(method: Method) -> None:
    if not isinstance(method, DenseEmbedding):
        pytest.skip("not a dense embedding")
    features, prompts = method.encode(example_windows()), prompts_of(method)
    pixels, rows = method.pixels(features), method.rows(prompts)
    assert pixels.dtype == rows.dtype == torch.float32
    assert pixels.ndim == 4 and len(pixels) == 3 and rows.shape == (len(prompts), pixels.shape[1])
    assert torch.allclose(pixels.norm(dim=1), torch.ones(()), atol=1e-4)
    assert torch.allclose(rows.norm(dim=1), torch.ones(()), atol=1e-4)
    scores = method.score(pixels, rows)
    assert scores.shape == (3, len(prompts), *pixels.shape[2:])
    assert scores.min() >= 0 and scores.max() <= 1
    # Pixels can stand in the place of prompts.
    examples = pixels[0, :, 0].T
    assert method.score(pixels, examples).shape == (3, len(examples), *pixels.shape[2:])
    half = features.to(dtype=torch.float16)
    assert method.pixels(half).dtype == torch.float32


def similarities_in_units(method: Method, points: int, threshold: float) -> Tensor:
    other = method.configured({"unit_points": points, "unit_threshold": threshold})
    features, prompts = other.encode(example_windows()), prompts_of(other)
    return similarities(other, features, other.prompts_for_image(features, prompts))


def test_units_are_an_option_of_every_dense_embedding(method: Method) -> None:
    assert isinstance(method, DenseEmbedding) == isinstance(method.options, UnitOptions)
    if not isinstance(method, DenseEmbedding):
        pytest.skip("not a dense embedding")
    assert {"unit_points", "unit_threshold"} <= set(method.options.affecting("scores"))
    pixels = similarities_in_units(method, 0, 0.6)
    everywhere = 2**16
    assert torch.allclose(similarities_in_units(method, everywhere, 1.0), pixels, rtol=0, atol=1e-6)
    assert not torch.allclose(similarities_in_units(method, everywhere, 0.2), pixels, atol=1e-3)


def test_names_are_guessed_in_units_too(method: Method) -> None:
    """Names of the background compete with labels, so both are of the same unit."""
    if not isinstance(method, DenseEmbedding) or not method.independent_prompts:
        pytest.skip("not a dense embedding, or prompts depend on each other")
    windows, prompts = example_windows(), prompts_of(method)
    own, grouped = (
        other.name_values(other.encode(windows), prompts)
        for other in (method, method.configured({"unit_points": 9, "unit_threshold": -1.0}))
    )
    assert not torch.allclose(own, grouped, atol=1e-3)


def test_segments(method: Method) -> None:
    if not isinstance(method, Segments):
        pytest.skip("windows do not fall into groups")
    windows = example_windows(3, (37, 50))
    features = method.encode(windows)
    maps = method.segments(features)
    assert maps.dtype == torch.float32 and maps.shape[0] == 3 and maps.shape[2:] == (37, 50) and maps.shape[1] > 1
    assert torch.allclose(maps.sum(dim=1), torch.ones(()), atol=1e-4) and maps.min() >= 0
    assert len(maps.argmax(dim=1).unique()) > 1
    assert torch.allclose(method.segments(features[1:2])[0], maps[1], atol=ROUNDING)


def test_fitted(method: Method) -> None:
    """References are learned tensors that belong to words; the same archive gives the same ones."""
    if not isinstance(method, Fitted):
        pytest.skip("not fitted to an archive")
    other = type(method).example()
    state = method.learned_state_dict()
    assert state and all(torch.equal(x, state[name]) for name, x in other.learned_state_dict().items())
    assert method.fitted_by and all(method.refusal(prompt) is None for prompt in method.example_prompts())
    reason = method.refusal("a word that nobody asked for")
    assert reason and method.fitted_by in reason


def trainer(method: Method) -> Any:
    """A copy to train."""
    if not isinstance(method, Trainable):
        pytest.skip("not trainable")
    return copy.deepcopy(method)


def samples(model: Any) -> list[dict[str, Any]]:
    """Four prepared samples."""
    images = example_windows(4, (32, 32))
    texts = type(model).example_prompts()[:4]
    return [
        model.prepare({"image": image, "caption": text}, np.random.default_rng(seed))
        for seed, (image, text) in enumerate(zip(images, texts, strict=True))
    ]


def embedded(model: Any, batch: Any, seed: int | None = None) -> dict[str, Tensor]:
    """Embeddings by name; noise is that of a seed, or goes on."""
    if seed is not None:
        torch.manual_seed(seed)
    found = model.embed(batch)
    named = found if isinstance(found, Mapping) else {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def test_stages(method: Method) -> None:
    model = trainer(method)
    towers = {id(parameter) for tower in model.towers.values() for parameter in tower.parameters()}
    assert model.stages
    for stage in model.stages:
        parameters = model.trainable(stage)
        assert parameters and all(parameter.requires_grad for parameter in parameters)
        assert not towers & {id(parameter) for parameter in parameters}
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}
    with pytest.raises(SettingsError, match="no such stage"):
        model.trainable("no such stage")


def test_embeddings_are_of_one_sample_each(method: Method) -> None:
    model = trainer(method)
    model.trainable(model.stages[-1])
    prepared = samples(model)
    with torch.random.fork_rng(), torch.no_grad():
        whole = embedded(model, model.collate(prepared), seed=7)
        first = embedded(model, model.collate(prepared[:2]), seed=7)
        second = embedded(model, model.collate(prepared[2:]))
    for name, value in whole.items():
        assert torch.allclose(torch.cat([first[name], second[name]]), value, atol=1e-4), name


def test_batches_may_be_worked_through_in_parts(method: Method) -> None:
    """What the objective needs of a part does not depend on the other parts, and gives the loss of the whole."""
    model = trainer(method)
    model.trainable(model.stages[-1])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        shared = model.share(model.collate(samples(model)), torch.Generator().manual_seed(5))
        whole = model.compare(model.embed(shared), shared)
        parts = [model.compare(model.embed(part), part) for part in model.split(shared, 2)]
        expected = model.loss(model.embed(shared), shared)
    names = list(whole) if isinstance(whole, Mapping) else [field.name for field in dataclasses.fields(whole)]
    get = (lambda x, name: x[name]) if isinstance(whole, Mapping) else getattr
    joined = {name: torch.cat([get(part, name) for part in parts]) for name in names}
    for name, value in joined.items():
        assert torch.allclose(value, get(whole, name), atol=1e-5), name
    with torch.no_grad():
        found = model.objective(joined if isinstance(whole, Mapping) else type(whole)(**joined), shared)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def test_loss_has_a_gradient(method: Method) -> None:
    model = trainer(method)
    for stage in model.stages:
        parameters = model.trainable(stage)
        model.zero_grad()
        batch = model.collate(samples(model))
        with torch.random.fork_rng():
            torch.manual_seed(3)
            losses = model.loss(model.embed(batch), batch)
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
        losses["total"].backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert gradients and all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients)
        assert all(tower.grad is None for t in model.towers.values() for tower in t.parameters())
