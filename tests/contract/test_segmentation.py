"""What segmenters and sessions make of each method: nothing depends on groups, caches or the order of questions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods import Method
from tcl_core.refinement.pamr import Pamr
from tcl_core.segmentation import scoring
from tcl_core.segmentation.features import FeatureCache, ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession, SimilarityCache
from tcl_core.types import Segmentation
from tcl_core.vocabulary import Label, Vocabulary
from tests.contract.examples import example_image, model_of, other_values, vocabulary_of

ROUNDING = 2e-5
IMAGE = example_image()


@pytest.fixture(scope="module")
def segmenter(method: Method) -> Segmenter:
    return Segmenter(model_of(method), refiner=Pamr(dilations=(1, 4), iterations=2), cache=FeatureCache())


@pytest.fixture(scope="module")
def features(segmenter: Segmenter) -> ImageFeatures:
    return segmenter.encode(IMAGE)


def floor_between(segmenter: Segmenter, features: ImageFeatures, vocabulary: Vocabulary) -> float:
    """A background that some pixels exceed and others do not."""
    return float(segmenter.score_maps(features, vocabulary).amax(dim=0).quantile(0.3))


def assert_equal(found: Segmentation, expected: Segmentation) -> None:
    assert (
        np.abs(found.score_map - expected.score_map).max() < 1e-4
        or np.mean(np.abs(found.score_map - expected.score_map) > 1e-4) < 2e-3
    )
    assert np.mean(found.label_map != expected.label_map) < 2e-3


# -- groups ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("refine", [True, False])
def test_scores_do_not_depend_on_groups(
    method: Method, monkeypatch: pytest.MonkeyPatch, planes: int, refine: bool
) -> None:
    segmenter = Segmenter(model_of(method), refine=refine)
    features, vocabulary = segmenter.encode(IMAGE), vocabulary_of(method)
    expected = segmenter.score_maps(features, vocabulary)
    planes_expected = len(vocabulary.labels) + bool(segmenter.background_names(vocabulary).names)
    assert expected.shape == (planes_expected, *features.score_size) and expected.dtype == torch.float32
    assert expected.isfinite().all() and expected.min() >= 0 and expected.max() <= 1
    height, width = features.score_size
    monkeypatch.setattr(scoring, "_SCORE_BYTES", {"cpu": 4 * height * width * planes})
    monkeypatch.setattr(scoring, "_MAPS_TOGETHER", planes)
    assert torch.allclose(segmenter.score_maps(features, vocabulary), expected, atol=ROUNDING)


def test_batches_of_windows(method: Method) -> None:
    vocabulary, segmenters = vocabulary_of(method), [Segmenter(model_of(method), batch_size=n) for n in (1, 3, 8)]
    found = [segmenter.score_maps(segmenter.encode(IMAGE), vocabulary) for segmenter in segmenters]
    assert all(torch.allclose(scores, found[0], atol=1e-4) for scores in found[1:])


class Calls:
    """Notes the labels of each call of `finish`."""

    def __init__(self, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[int] = []
        finish: Callable[..., Tensor] = method.finish

        def noted(merged: Tensor, labels: Sequence[int], *rest: Any, **more: Any) -> Tensor:
            assert len(merged) == len(labels)
            self.names.append(len(labels))
            return finish(merged, labels, *rest, **more)

        monkeypatch.setattr(method, "finish", noted, raising=False)


def test_dependent_labels_are_finished_together(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    if method.independent_labels:
        pytest.skip("labels of this method do not depend on each other")
    segmenter = Segmenter(model_of(copy.copy(method)))
    features, vocabulary = segmenter.encode(IMAGE), vocabulary_of(method)
    monkeypatch.setattr(scoring, "_SCORE_BYTES", {"cpu": 1})
    calls, names = Calls(segmenter.method, monkeypatch), count_names(segmenter, vocabulary)
    segmenter.segment(features, vocabulary)
    session = ImageSession(segmenter, features)
    for rivals in (True, False):
        session.segment_label(vocabulary, 1, rivals=rivals)
    session.segment(vocabulary)
    assert set(calls.names) == {names}
    fewer = vocabulary_of(method, (0, 1), (2,))
    session.segment(fewer)
    assert calls.names[-1] == count_names(segmenter, fewer)


def count_names(segmenter: Segmenter, vocabulary: Vocabulary) -> int:
    choice = segmenter.background_names(vocabulary)
    return len(vocabulary.prompts) + (bool(choice.names) if choice.pooled else len(choice.names))


# -- names of the background -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(method: Method) -> Segmenter:
    """A model whose world holds the example's prompts."""
    model = replace(model_of(method), background_names=method.example_prompts())
    return Segmenter(model, refiner=Pamr(dilations=(1, 4), iterations=2))


def asked(method: Method, count: int, **settings: Any) -> Vocabulary:
    return Vocabulary(tuple(Label(text) for text in method.example_prompts()[:count]), **settings)


def test_the_world_competes(method: Method, named: Segmenter) -> None:
    choice = named.background_names(asked(method, 2))
    assert set(choice.names) == set(method.example_prompts()[2:])
    assert named.background_names(asked(method, len(method.example_prompts()))).names == ()


def test_names_score_as_a_label_would(method: Method, named: Segmenter) -> None:
    """The plane of the only name is that of a label with this prompt."""
    features, count = named.encode(IMAGE), len(method.example_prompts())
    labels = named.score_maps(features, asked(method, count, background_names=()))
    names = named.score_maps(features, asked(method, count - 1))
    assert torch.allclose(names, labels, atol=ROUNDING)


def test_sessions_know_the_names(method: Method, named: Segmenter) -> None:
    features = named.encode(IMAGE)
    session = ImageSession(named, features)
    for count in (1, 2, 3, 1):
        vocabulary = asked(method, count, background_threshold=0.0)
        assert_equal(session.segment(vocabulary), named.segment(features, vocabulary))
        for place in range(count):
            one = session.segment_label(vocabulary, place)
            wanted = np.where(session.segment(vocabulary).label_map == place + 1, place + 1, 0)
            assert np.mean(one.label_map != wanted) < 2e-3


def test_what_names_win_is_explained(method: Method, named: Segmenter) -> None:
    features, texts = named.encode(IMAGE), method.example_prompts()
    vocabulary = asked(method, 1, background_threshold=0.0)
    found, unlabeled = named.explain(features, vocabulary)
    assert_equal(found, named.segment(features, vocabulary))
    assert set(unlabeled.names) <= set(texts[1:]) and not unlabeled.winner[found.label_map > 0].any()
    assert set(np.unique(unlabeled.winner)) - {0} == set(range(1, len(unlabeled.names) + 1))


def test_guesses_of_names_are_of_any_resolution(method: Method, named: Segmenter) -> None:
    if not method.independent_prompts:
        pytest.skip("prompts of this method depend on each other")
    features = named.encode(IMAGE)
    names = method.example_prompts()[1:]
    winners = named.name_winners(features, names)
    assert winners.shape[:2] == (len(features.origins), 2) and winners.isfinite().all()
    places = winners[:, 1]
    assert bool(((places >= 0) & (places < len(names)) & (places == places.round())).all())
    for place, name in enumerate(names):
        alone = named.name_winners(features, [name])
        assert bool((alone[:, 0] <= winners[:, 0] + ROUNDING).all())
        assert torch.allclose(alone[:, 0][places == place], winners[:, 0][places == place], atol=ROUNDING)


# -- identity ----------------------------------------------------------------------------------------------------------


def test_options_change_the_identity_of_what_they_affect(method: Method, segmenter: Segmenter) -> None:
    key, identity = segmenter.encode(IMAGE).key, segmenter.score_identity(None)
    vocabulary = vocabulary_of(method)
    for name, value in other_values(method.options).items():
        other = Segmenter(segmenter.model, refiner=segmenter.refiner, options={name: value})
        features = other.encode(IMAGE)
        if name in method.options.affecting("features"):
            assert features.key != key
            with pytest.raises(SettingsError, match="other settings"):
                other.score_maps(segmenter.encode(IMAGE), vocabulary)
        else:
            assert features.key == key and other.score_identity(None) != identity
            shared = other.score_maps(segmenter.encode(IMAGE), vocabulary)
            assert torch.equal(shared, other.score_maps(features, vocabulary))
        assert other.settings()["options"][name] != segmenter.settings()["options"][name]


def test_options_take_effect_through_a_shared_cache(method: Method) -> None:
    """Two segmenters that share all caches give what each gives alone."""
    cache, similarities, vocabulary = FeatureCache(), SimilarityCache(), vocabulary_of(method)
    model, refiner = model_of(method), Pamr(dilations=(1, 4), iterations=2)
    plain = Segmenter(model, refiner=refiner)
    expected = plain.score_maps(plain.encode(IMAGE), vocabulary)
    for name, value in other_values(method.options).items():
        other = Segmenter(model, refiner=refiner, options={name: value})
        alone = {None: expected, name: other.score_maps(other.encode(IMAGE), vocabulary)}
        for key, scores in alone.items():
            options = {} if key is None else {key: value}
            sharing = Segmenter(model, refiner=refiner, options=options, cache=cache)
            found = ImageSession(sharing, IMAGE, similarities).scores(vocabulary)
            assert torch.allclose(found, scores, atol=ROUNDING)


def test_refiners_never_share(method: Method) -> None:
    refiners = [None, Pamr(iterations=1), Pamr(iterations=4), Pamr(dilations=(1,))]
    cache, similarities, vocabulary = FeatureCache(), SimilarityCache(), vocabulary_of(method)
    for refiner in refiners:
        segmenter = Segmenter(model_of(method), refine=refiner is not None, refiner=refiner, cache=cache)
        alone = Segmenter(model_of(method), refine=refiner is not None, refiner=refiner)
        found = ImageSession(segmenter, IMAGE, similarities).scores(vocabulary)
        assert torch.allclose(found, alone.score_maps(alone.encode(IMAGE), vocabulary), atol=ROUNDING)


def test_methods_never_share_features(method: Method, segmenter: Segmenter, features: ImageFeatures) -> None:
    other = copy.copy(method)
    other.__class__ = type("Other", (type(method),), {"name": "another"})
    impostor = Segmenter(model_of(other), refiner=segmenter.refiner, cache=segmenter.cache)
    assert impostor.encode(IMAGE).key != features.key
    with pytest.raises(SettingsError, match="another model"):
        impostor.score_maps(features, vocabulary_of(method))
    with pytest.raises(SettingsError, match="another model"):
        Segmenter(model_of(method, sha256="1" * 64), refiner=segmenter.refiner).score_maps(
            features, vocabulary_of(method)
        )


def test_cache_counts_the_bytes_of_the_tensors(method: Method) -> None:
    cache = FeatureCache()
    features = Segmenter(model_of(method), cache=cache).encode(IMAGE)
    parts = (features.windows, features.guide, features.image_guide)
    tensors = [tensor for part in parts if part is not None for tensor in part.tensors().values()]
    assert cache.nbytes == features.nbytes == sum(t.numel() * t.element_size() for t in tensors)
    # A view would hold more than is counted.
    assert cache.nbytes == sum(t.untyped_storage().nbytes() for t in tensors)


def test_bfloat16_stays_near(method: Method) -> None:
    vocabulary = vocabulary_of(method)
    half = Segmenter(model_of(method, precision=torch.bfloat16))
    whole = Segmenter(model_of(method))
    found = half.score_maps(half.encode(IMAGE), vocabulary)
    assert found.dtype == torch.float32
    assert float((found - whole.score_maps(whole.encode(IMAGE), vocabulary)).abs().mean()) < 0.1


def test_no_prompts(segmenter: Segmenter, features: ImageFeatures) -> None:
    none = segmenter.embed_prompts([])
    assert len(none) == 0
    assert segmenter.similarities(features, none).shape == (0, *features.score_size)


# -- sessions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cache_bytes", "plane_bytes"), [(0, 0), (1 << 30, 1 << 30)])
def test_session_follows_a_changing_vocabulary(
    method: Method, segmenter: Segmenter, features: ImageFeatures, cache_bytes: int, plane_bytes: int
) -> None:
    first = vocabulary_of(method, (0, 1), (2,))
    floor = floor_between(segmenter, features, first)
    threshold = float(segmenter.score_maps(features, first)[0].quantile(0.5))
    session = ImageSession(segmenter, features, SimilarityCache(cache_bytes), plane_bytes)
    steps = [
        first,
        vocabulary_of(method, (0, 1), (2,), background_threshold=floor),
        # A label more, one less, another order, the same prompts in other groups, one prompt with two labels.
        vocabulary_of(method, (0, 1), (2,), (3,), background_threshold=floor),
        vocabulary_of(method, (2,), (3,), background_threshold=floor),
        vocabulary_of(method, (3,), (2,), (0, 1), background=False),
        vocabulary_of(method, (3,), (2,), (0,), (1,), background=False),
        vocabulary_of(method, (0,), (1, 2), (3,), background=False),
        vocabulary_of(method, (0,), (1,), (2, 3), background=False),
        vocabulary_of(method, (0, 1), (1, 2), background_threshold=floor),
        vocabulary_of(method, (1,), (1,), (0,), background=False),
        vocabulary_of(method, (0,)),
    ]
    moved = [
        Vocabulary((Label(first.labels[0].name, first.labels[0].prompts, limit), *first.labels[1:]), background=False)
        for limit in (threshold, 0.0, 1.0, None)
    ]
    seen = set()
    for vocabulary in [*steps, *moved]:
        expected = segmenter.segment(features, vocabulary)
        assert_equal(session.segment(vocabulary), expected)
        assert torch.allclose(session.scores(vocabulary), segmenter.score_maps(features, vocabulary), atol=ROUNDING)
        seen |= set(np.unique(expected.label_map).tolist())
    assert {0, 1, 2} <= seen


def expected_alone(
    segmenter: Segmenter, features: ImageFeatures, vocabulary: Vocabulary, place: int
) -> NDArray[np.bool_]:
    """Where a label exceeds the background and its names, its score being that among all names."""
    scores = segmenter.score_maps(features, vocabulary)[None]
    scores = torch.nn.functional.interpolate(scores, size=features.size, mode="bilinear", align_corners=False)[0]
    floor = torch.full_like(scores[0], vocabulary.floor(segmenter.background_threshold))
    for named in scores[len(vocabulary.labels) :]:
        floor = torch.maximum(floor, named)
    return (scores[place] > floor).numpy()


def test_one_label_of_several(method: Method, segmenter: Segmenter, features: ImageFeatures) -> None:
    floor = floor_between(segmenter, features, vocabulary_of(method))
    vocabulary = vocabulary_of(method, background_threshold=floor)
    everything = segmenter.segment(features, vocabulary).label_map
    for place in range(len(vocabulary.labels)):
        session = ImageSession(segmenter, features)
        found = session.segment_label(vocabulary, place).label_map
        assert np.mean(found != np.where(everything == place + 1, place + 1, 0)) < 2e-3
        for asked in (session, ImageSession(segmenter, features, SimilarityCache(0))):
            alone = asked.segment_label(vocabulary, place, rivals=False)
            expected = expected_alone(segmenter, features, vocabulary, place)
            assert np.mean((alone.label_map == place + 1) != expected) < 2e-3
            assert set(np.unique(alone.label_map)) <= {0, place + 1}
            assert (alone.score_map[alone.label_map > 0] > floor - 1e-5).all()


def test_a_single_label(method: Method, segmenter: Segmenter, features: ImageFeatures) -> None:
    floor = min(floor_between(segmenter, features, vocabulary_of(method, (0,))), 0.99)
    vocabulary = vocabulary_of(method, (0,), background_threshold=floor)
    expected = segmenter.segment(features, vocabulary)
    session = ImageSession(segmenter, IMAGE)
    for found in (
        session.segment(vocabulary),
        session.segment_label(vocabulary, 0, rivals=True),
        session.segment_label(vocabulary, 0, rivals=False),
    ):
        assert_equal(found, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (31, 33)])
def test_image_sizes(method: Method, segmenter: Segmenter, size: tuple[int, int]) -> None:
    image, vocabulary = example_image(*size), vocabulary_of(method)
    found = segmenter.segment_image(image, vocabulary)
    assert found.label_map.shape == found.score_map.shape == size
    assert_equal(ImageSession(segmenter, image).segment(vocabulary), found)
