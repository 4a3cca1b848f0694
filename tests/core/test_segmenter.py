from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl_core.errors import ImageError, SettingsError, VocabularyError
from tcl_core.images import ResizedImage, content_hash, resize_bilinear
from tcl_core.methods import create_method
from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.models import Model
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.segmentation import scoring
from tcl_core.segmentation.argmax import label_map_from_scores
from tcl_core.segmentation.features import FeatureCache
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import WordTokenizer
from tcl_core.vocabulary import Label, Vocabulary
from tests.core.tcl_models import pamr_guide, score_maps

WORDS = ["a", "photo", "of", "red", "blue", "sofa", "couch", "cat", "sky", "lamp"]
PREPROCESS = Preprocess((0.48, 0.45, 0.40), (0.22, 0.23, 0.24), short_side=40, max_long_side=144, window=32, stride=16)


@pytest.fixture(scope="module")
def model() -> Model:
    """A small random TCL, pooled by averaging, with every gate open so that no part is an identity."""
    torch.manual_seed(5)
    tokenizer = WordTokenizer(WORDS, context_length=10)
    clip = FrozenClip(
        open_clip.CLIP(
            embed_dim=16,
            vision_cfg={
                "image_size": 32,
                "patch_size": 8,
                "width": 64,
                "head_width": 32,
                "layers": 3,
                "pool_type": "avg",
            },
            text_cfg={
                "context_length": 10,
                "vocab_size": tokenizer.vocab_size,
                "width": 32,
                "heads": 2,
                "layers": 1,
            },
        ),
        tokenizer,
    )
    method = create_method("tcl", {"clip": clip})
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if "gate" in name:
                parameter.fill_(0.6)
        method.masker.sim2mask.b.fill_(-0.3)  # type: ignore[union-attr, operator]
    return Model(
        name="small",
        method=method,
        preprocess=PREPROCESS,
        templates="simple",
        background_threshold={"pamr": 0.45, "plain": 0.5},
        weights_sha256="0" * 64,
        device=torch.device("cpu"),
        precision=torch.float32,
        metadata=ModelMetadata(name="small", preprocess=PREPROCESS),
    )


VOCABULARY = Vocabulary(
    (Label("Sofa", ("sofa", "couch", "red sofa")), Label("Cat", ("cat",)), Label("Sky", ("sky", "blue sky"))),
    background=False,
)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs with hard edges, so that refinement has something to do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(2, height // 9), max(2, width // 9), 3)).astype(np.uint8)
    rows = np.arange(height) * len(coarse) // height
    columns = np.arange(width) * coarse.shape[1] // width
    noise = rng.integers(0, 20, (height, width, 3), dtype=np.uint8)
    return np.clip(coarse[rows][:, columns].astype(int) + noise, 0, 255).astype(np.uint8)


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """Batch sizes of every call of a module."""
    calls: list[int] = []
    hook = module.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    try:
        yield calls
    finally:
        hook.remove()


def bilinear(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel-center bilinear interpolation of the last two axes, written out in float64."""
    for axis, length in ((-2, size[0]), (-1, size[1])):
        old = plane.shape[axis]
        center = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = np.floor(center).astype(int)
        high = np.minimum(low + 1, old - 1)
        share = (center - low).reshape((-1, 1) if axis == -2 else (1, -1))
        plane = np.take(plane, low, axis) * (1 - share) + np.take(plane, high, axis) * share
    return plane


def starts(length: int) -> list[int]:
    window, stride = PREPROCESS.window, PREPROCESS.stride
    if length <= window:
        return [0]
    count = -(-(length - window) // stride) + 1
    return [min(step * stride, length - window) for step in range(count)]


def reference_scores(model: Model, image: np.ndarray, vocabulary: Vocabulary, refine: bool, kp: float) -> np.ndarray:
    """The evaluation protocol, one window and one prompt at a time, in float64 outside the network."""
    height, width = image.shape[:2]
    scale = min(PREPROCESS.max_long_side / max(height, width), PREPROCESS.short_side / min(height, width))
    size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    # Which is compared with OpenCV's in test_resize.py.
    resized = resize_bilinear(image, size).transpose(2, 0, 1)
    normalized = (resized / 255 - np.reshape(PREPROCESS.mean, (3, 1, 1))) / np.reshape(PREPROCESS.std, (3, 1, 1))
    tensor = torch.from_numpy(normalized).float()
    result = np.zeros((len(vocabulary.labels), *size))
    for label, entry in enumerate(vocabulary.labels):
        for prompt in entry.prompts:
            tokens = model.method.clip.tokenizer([f"a photo of a {prompt}."])
            text = torch.nn.functional.normalize(model.method.clip.encode_text(tokens), dim=-1)
            total, count = np.zeros(size), np.zeros(size)
            for y in starts(size[0]):
                for x in starts(size[1]):
                    window = tensor[None, :, y : y + PREPROCESS.window, x : x + PREPROCESS.window]
                    embedded = model.method.encode(window)
                    affinity = pamr_guide(model.method, window) if refine else None
                    scores = score_maps(model.method, embedded, text, affinity, kp)[0, 0].numpy()
                    total[y : y + scores.shape[0], x : x + scores.shape[1]] += scores
                    count[y : y + scores.shape[0], x : x + scores.shape[1]] += 1
            result[label] = np.maximum(result[label], total / count)
    return result


@pytest.mark.parametrize(
    ("size", "refine", "kp"),
    [
        ((50, 70), True, 0.3),
        ((50, 70), False, 0.0),
        ((90, 45), True, 0.0),
        ((20, 16), False, 0.3),
        ((32, 32), True, 0.3),
        ((1, 1), False, 0.3),
        ((1, 500), True, 0.3),
        ((300, 2), False, 0.3),
    ],
)
def test_agrees_with_a_plain_sliding_window(model: Model, size: tuple[int, int], refine: bool, kp: float) -> None:
    image = random_image(*size)
    segmenter = Segmenter(model, refine=refine, options={"kp_weight": kp, **PIXELS}, batch_size=3)
    features = segmenter.encode(image)
    scores = segmenter.score_maps(features, VOCABULARY).numpy()
    expected = reference_scores(model, image, VOCABULARY, refine, kp)
    assert scores.dtype == np.float32 and scores.shape == expected.shape == (3, *features.working_size)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    result = segmenter.segment(features, VOCABULARY)
    upsampled = bilinear(expected, size)
    assert result.size == size and result.label_map.dtype == np.int32 and result.score_map.dtype == np.float32
    np.testing.assert_allclose(result.score_map, upsampled.max(0), atol=1e-5)
    ordered = np.sort(upsampled, axis=0)
    clear = ordered[-1] - ordered[-2] > 1e-5
    np.testing.assert_array_equal(result.label_map[clear], upsampled.argmax(0)[clear] + 1)
    if min(size) > 10:
        assert len(np.unique(result.label_map)) > 1, "a test image in which one label wins everywhere shows little"


def test_one_pixel_with_refinement(model: Model) -> None:
    # PAMR divides by the local spread, so that on one flat color its weights are rounding noise: no exact reference.
    image = np.full((1, 1, 3), 77, np.uint8)
    result = Segmenter(model).segment_image(image, VOCABULARY)
    expected = reference_scores(model, image, VOCABULARY, refine=True, kp=0.3).max(0).mean()
    assert result.label_map.shape == (1, 1) and abs(result.score_map[0, 0] - expected) < 0.02


def test_batch_and_one_by_one_agree(model: Model) -> None:
    images = [
        random_image(50, 70, 1),
        random_image(90, 45, 2),
        random_image(50, 70, 3),
        random_image(40, 56, 4),
        random_image(3, 900, 5),
    ]
    alone = [Segmenter(model, batch_size=1).encode(image) for image in images]
    segmenter = Segmenter(model, batch_size=7)
    with counted(model.method.clip.visual.conv1) as calls:
        together = segmenter.encode_batch(images)
    windows = [len(features.origins) for features in alone]
    assert sum(calls) == sum(windows) and max(calls) == 7 and len(calls) < sum(windows) / 3
    for one, other in zip(alone, together, strict=True):
        assert (one.origins, one.size, one.working_size, one.key) == (
            other.origins,
            other.size,
            other.working_size,
            other.key,
        )
        np.testing.assert_allclose(
            segmenter.score_maps(other, VOCABULARY), segmenter.score_maps(one, VOCABULARY), atol=1e-5
        )


def test_features_own_their_memory(model: Model) -> None:
    for features in Segmenter(model, batch_size=5).encode_batch([random_image(50, 70, 1), random_image(50, 70, 3)]):
        assert features.guide is not None
        tensors = [*features.windows.tensors().values(), *features.guide.tensors().values()]
        assert features.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_equal_images_of_a_batch_are_computed_once(model: Model) -> None:
    image = random_image(32, 32)
    with counted(model.method.clip.visual.conv1) as calls:
        first, second = Segmenter(model).encode_batch([image, image.copy()])
    assert first is second and sum(calls) == len(first.origins)


def test_no_images(model: Model) -> None:
    assert Segmenter(model).encode_batch([]) == []


def test_a_second_prompt_on_a_cached_image_leaves_the_image_tower_alone(model: Model) -> None:
    cache = FeatureCache()
    segmenter = Segmenter(model, cache=cache)
    image = random_image(50, 70)
    plain = Segmenter(model).segment_image(image, VOCABULARY)
    text_tower = model.method.clip.model.get_submodule("token_embedding")
    with counted(model.method.clip.visual.conv1) as images, counted(text_tower) as texts:
        first = segmenter.segment_image(image, VOCABULARY)
        assert images and texts
        images.clear()
        texts.clear()
        lamp = segmenter.segment_image(image.copy(), Vocabulary.from_options(["lamp", "cat"]))
        assert images == [] and len(texts) == 1
        second = segmenter.segment_image(image, VOCABULARY)
        assert images == [] and len(texts) == 1
    assert (cache.hits, cache.misses, len(cache)) == (2, 1, 1)
    for result in (first, second):
        np.testing.assert_array_equal(result.label_map, plain.label_map)
        np.testing.assert_array_equal(result.score_map, plain.score_map)
    assert lamp.vocabulary.names == ("lamp", "cat")


def test_an_image_larger_than_the_cache_still_works(model: Model) -> None:
    cache = FeatureCache(max_bytes=10)
    image = random_image(50, 70)
    result = Segmenter(model, cache=cache).segment_image(image, VOCABULARY)
    assert len(cache) == 0
    np.testing.assert_array_equal(result.label_map, Segmenter(model).segment_image(image, VOCABULARY).label_map)


def test_other_pixels_weights_and_settings_are_other_features(model: Model) -> None:
    cache = FeatureCache()
    image = random_image(32, 40)
    others = [
        Segmenter(model, cache=cache, refine=False),
        Segmenter(replace(model, weights_sha256="1" * 64), cache=cache),
        Segmenter(replace(model, preprocess=replace(PREPROCESS, stride=8)), cache=cache),
        Segmenter(replace(model, preprocess=replace(PREPROCESS, mean=(0.5, 0.5, 0.5))), cache=cache),
        Segmenter(replace(model, precision=torch.bfloat16), cache=cache),
    ]
    segmenter = Segmenter(model, cache=cache)
    features = segmenter.encode(image)
    for count, other in enumerate(others, start=2):
        other.encode(image)
        assert len(cache) == count and cache.hits == 0
        with pytest.raises(SettingsError, match="another model or other settings"):
            other.segment(features, VOCABULARY)
    changed = image.copy()
    changed[0, 0, 0] ^= 1
    segmenter.encode(changed)
    segmenter.encode(image.reshape(40, 32, 3))
    assert cache.hits == 0
    assert Segmenter(model, cache=cache, options={"kp_weight": 0.9}, batch_size=1).encode(image) is features


def test_content_hash_sees_size_and_every_pixel() -> None:
    image = random_image(6, 4)
    assert content_hash(image) == content_hash(np.asfortranarray(image))
    assert content_hash(image) != content_hash(image.reshape(4, 6, 3))
    assert content_hash(image) != content_hash(image[:, ::-1])


def test_bfloat16_stays_near_float32(model: Model) -> None:
    images = [random_image(60, 80, seed) for seed in range(4)]
    exact, fast = Segmenter(model), Segmenter(replace(model, precision=torch.bfloat16))
    agreed, seen = 0, 0
    for image in images:
        a, b = exact.segment_image(image, VOCABULARY), fast.segment_image(image, VOCABULARY)
        np.testing.assert_allclose(a.score_map, b.score_map, atol=0.02)
        assert not np.array_equal(a.score_map, b.score_map)
        agreed += int((a.label_map == b.label_map).sum())
        seen += a.label_map.size
    assert agreed / seen > 0.97


def test_prompts_in_groups_give_the_same_scores(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = Segmenter(model)
    features = segmenter.encode(random_image(50, 70))
    expected = segmenter.score_maps(features, VOCABULARY)
    height, width = features.working_size
    monkeypatch.setattr(scoring, "_SCORE_BYTES", {"cpu": 4 * height * width * 2})
    np.testing.assert_allclose(segmenter.score_maps(features, VOCABULARY), expected, atol=1e-6)


def test_prompt_embeddings_average_the_templates(model: Model) -> None:
    segmenter = Segmenter(model)
    embedded = segmenter.embed_prompts(["red sofa", "cat", "red sofa"]).tensors()["text"]
    assert embedded.shape == (3, 16) and torch.equal(embedded[0], embedded[2])
    np.testing.assert_allclose(embedded.norm(dim=-1), 1, atol=1e-6)
    identity = segmenter.embed_prompts(["cat"], "identity").tensors()["text"]
    expected = model.method.clip.encode_text(model.method.clip.tokenizer(["cat"]))
    np.testing.assert_allclose(identity, torch.nn.functional.normalize(expected, dim=-1), atol=1e-6)
    assert not torch.allclose(identity[0], embedded[1], atol=1e-3)
    assert segmenter.embed_prompts([]).tensors()["text"].shape == (0, 16)


def test_unknown_words_name_prompt_word_and_model(model: Model) -> None:
    segmenter = Segmenter(model)
    with counted(model.method.clip.visual.conv1) as calls, pytest.raises(VocabularyError) as caught:
        segmenter.segment_image(random_image(8, 8), Vocabulary.from_options(["Thing=green zebra"]))
    assert calls == [] and str(caught.value).startswith("prompt ")
    assert all(word in str(caught.value) for word in ("'green zebra'", "'green', 'zebra'", "small"))
    with pytest.raises(VocabularyError, match="templates 'plural'.*'sofas'.*'simple'"):
        segmenter.embed_prompts(["sofa"], "plural")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        "room.jpg",
    ],
)
def test_what_is_no_image(model: Model, image: object) -> None:
    with pytest.raises(ImageError, match="the image"):
        Segmenter(model).encode(image)  # type: ignore[arg-type]


def test_views_and_read_only_arrays_are_images(model: Model) -> None:
    image = random_image(60, 80)
    flipped = image[:, ::-1]
    flipped.flags.writeable = False
    segmenter = Segmenter(model)
    a = segmenter.segment_image(flipped, VOCABULARY)
    b = segmenter.segment_image(np.ascontiguousarray(flipped), VOCABULARY)
    np.testing.assert_array_equal(a.label_map, b.label_map)


@pytest.mark.parametrize("options", [{"kp_weight": 1.5}, {"kp_weight": "x"}, {"kp_weight": float("nan")}, {"sigma": 1}])
def test_options_that_cannot_be(model: Model, options: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        Segmenter(model, options=options)


def test_batch_size_out_of_range(model: Model) -> None:
    with pytest.raises(SettingsError, match="batch_size"):
        Segmenter(model, batch_size=0)


def test_settings_are_json(model: Model) -> None:
    found = json.loads(json.dumps(Segmenter(model, refine=False).settings()))
    assert found["model"] == "small" and found["weights_sha256"] == "0" * 64
    assert found["refine"] is False and found["options"]["kp_weight"] == 0.3 and found["background_threshold"] == 0.5
    assert Segmenter(model).settings()["background_threshold"] == 0.45


def test_background_threshold_of_model_and_vocabulary(model: Model) -> None:
    segmenter = Segmenter(model)
    features = segmenter.encode(random_image(50, 70))
    scores = segmenter.score_maps(features, VOCABULARY)
    middle = float(scores.max(0).values.median())
    for own, used in ((None, middle), (0.0, 0.0), (1.0, 1.0)):
        vocabulary = Vocabulary(VOCABULARY.labels, background=True, background_threshold=own, background_names=())
        chosen = Segmenter(replace(model, background_threshold={"pamr": middle, "plain": 0.99}))
        result = chosen.segment(features, vocabulary)
        expected, _ = label_map_from_scores(scores, vocabulary, used, (50, 70))
        np.testing.assert_array_equal(result.label_map, expected)
    assert (result.label_map == 0).all() and (result.score_map == 0).all()


def test_threads_share_a_segmenter(model: Model) -> None:
    segmenter = Segmenter(model, cache=FeatureCache())
    images = [random_image(40, 50, seed) for seed in range(3)]
    expected = [Segmenter(model).segment_image(image, VOCABULARY).label_map for image in images]
    wrong: list[object] = []

    def work(shift: int) -> None:
        for step in range(6):
            index = (step + shift) % 3
            try:
                result = segmenter.segment_image(images[index], VOCABULARY)
                if not np.array_equal(result.label_map, expected[index]):
                    wrong.append(index)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(shift,)) for shift in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# -- label maps ------------------------------------------------------------------------------------------------------

LEVELS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_label_map_agrees_with_a_loop_over_pixels(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4))
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    values = data.draw(st.lists(LEVELS, min_size=count * height * width, max_size=count * height * width))
    scores = np.array(values, dtype=np.float32).reshape(count, height, width)
    thresholds = data.draw(st.lists(st.none() | LEVELS, min_size=count, max_size=count))
    background = data.draw(st.none() | LEVELS)
    labels = tuple(Label(f"label {k}", threshold=t) for k, t in enumerate(thresholds))
    vocabulary = Vocabulary(labels, background=background is not None)
    label_map, score_map = label_map_from_scores(scores, vocabulary, background or 0.0, (height, width))
    for y in range(height):
        for x in range(width):
            competing = [] if background is None else [(background, 0)]
            for k, threshold in enumerate(thresholds):
                if threshold is None or scores[k, y, x] >= threshold:
                    competing.append((float(scores[k, y, x]), k + 1))
            best, winner = max(competing, key=lambda pair: (pair[0], -pair[1]), default=(0.0, 0))
            assert label_map[y, x] == winner
            assert score_map[y, x] == (best if winner else 0.0)


def test_label_map_is_resized_bilinearly() -> None:
    scores = np.random.default_rng(3).random((3, 5, 7)).astype(np.float32)
    vocabulary = Vocabulary.from_options(["a", "b", "c"], background=False)
    label_map, score_map = label_map_from_scores(torch.from_numpy(scores), vocabulary, 0.5, (17, 11))
    expected = bilinear(scores.astype(np.float64), (17, 11))
    np.testing.assert_array_equal(label_map, expected.argmax(0) + 1)
    np.testing.assert_allclose(score_map, expected.max(0), atol=1e-6)
    assert scores.max() <= 1 and (label_map.dtype, score_map.dtype) == (np.int32, np.float32)


def test_label_map_leaves_the_scores_alone() -> None:
    scores = np.random.default_rng(3).random((2, 4, 4)).astype(np.float32)
    before = scores.copy()
    label_map_from_scores(scores, Vocabulary((Label("a", threshold=0.9), Label("b"))), 0.5, (4, 4))
    np.testing.assert_array_equal(scores, before)


def test_label_map_wants_one_plane_per_label() -> None:
    with pytest.raises(ValueError, match=r"\[2, h, w\]"):
        label_map_from_scores(np.zeros((4, 2, 2), np.float32), Vocabulary.from_options(["a", "b"]), 0.5, (2, 2))


def test_progress_counts_windows_and_can_end_the_work(model: Model) -> None:
    segmenter = Segmenter(model, batch_size=2, cache=FeatureCache())
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    steps: list[tuple[int, int]] = []
    features = segmenter.encode(image, lambda done, total: steps.append((done, total)))
    total = len(features.origins)
    assert steps[0] == (0, total) and steps[-1] == (total, total)
    assert [done for done, _ in steps] == [*range(0, total, 2), total]
    steps.clear()
    segmenter.encode(image, lambda done, total: steps.append((done, total)))
    assert steps == []

    def stop(done: int, total: int) -> None:
        if done:
            raise InterruptedError

    segmenter = Segmenter(model, batch_size=2, cache=FeatureCache())
    with pytest.raises(InterruptedError):
        segmenter.encode(image, stop)
    assert segmenter.cache is not None and len(segmenter.cache) == 0


@pytest.mark.parametrize("refine", [True, False])
def test_a_resized_image_gives_the_same_features(model: Model, refine: bool) -> None:
    images = [random_image(50, 70, 1), random_image(33, 90, 2), random_image(40, 56, 3)]
    segmenter = Segmenter(model, refine=refine, batch_size=2)
    resized = [segmenter.resized(image) for image in images]
    assert [small.size for small in resized] == [image.shape[:2] for image in images]
    assert all(min(small.pixels.shape[:2]) <= PREPROCESS.short_side for small in resized)
    whole, small = segmenter.encode_batch(images), segmenter.encode_batch(resized)
    for one, other, image in zip(whole, small, images, strict=True):
        assert one.key == other.key == segmenter.feature_key(image)
        assert (one.size, one.origins, one.score_size) == (other.size, other.origins, other.score_size)
        for name, tensor in one.windows.tensors().items():
            assert torch.equal(tensor, other.windows.tensors()[name])
        label_map, again = segmenter.segment(one, VOCABULARY), segmenter.segment(other, VOCABULARY)
        assert np.array_equal(label_map.label_map, again.label_map)
        assert np.array_equal(label_map.score_map, again.score_map)


def test_an_image_resized_for_another_model_is_refused(model: Model) -> None:
    other = ResizedImage.of(random_image(50, 70), short_side=20, max_long_side=144)
    with pytest.raises(ImageError, match="resized to 28 x 20 pixels, but the model small works at 56 x 40"):
        Segmenter(model).encode(other)
    assert other.content == content_hash(random_image(50, 70))
