"""Fitting and asking a ReCo-style method, on images that are known pixel by pixel."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.methods.reco import CONTEXTS, MemoryArchive, ReCo, ReCoConfig
from tcl_core.methods.reco import cosegmentation as cosegmentation_module
from tcl_core.methods.reco.cosegmentation import cosegment, pixel_scores, pixel_weights
from tcl_core.methods.reco.fitting import images_per_word
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.timm_vit import IMAGENET_MEAN, IMAGENET_STD, TimmVit, build_timm_vit
from tcl_core.towers.tokenizer import WordTokenizer


def random_maps(k: int = 5, size: tuple[int, int] = (3, 4)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(k, 6, *size, generator=generator), torch.rand(k, *size, generator=generator)


def scores_of_the_definition(features: Tensor, weights: Tensor) -> Tensor:
    """Pixel by pixel, from the whole matrix."""
    k, pixels = len(features), features.shape[2] * features.shape[3]
    unit = F.normalize(features, dim=1).permute(0, 2, 3, 1).reshape(k * pixels, -1).double()
    matrix = (unit @ unit.T) * weights.reshape(1, -1).double()
    found = torch.zeros(k * pixels, dtype=torch.float64)
    for pixel in range(k * pixels):
        best = [matrix[pixel, image * pixels : (image + 1) * pixels].max() for image in range(k)]
        found[pixel] = sum(best) / k
    return found.view(k, pixels).float()


@pytest.mark.parametrize("block_bytes", [1, 4 * 60 * 7, 1 << 30])
@pytest.mark.parametrize("upstream_slice", [False, True])
def test_blocks_give_what_the_whole_matrix_gives(block_bytes: int, upstream_slice: bool) -> None:
    features, weights = random_maps()
    found = pixel_scores(features, weights, upstream_slice=upstream_slice, block_bytes=block_bytes)
    whole = pixel_scores(features, weights, upstream_slice=upstream_slice)
    assert torch.allclose(found, whole, atol=1e-6)
    same = torch.allclose(found, scores_of_the_definition(features, weights), atol=1e-6)
    assert same is not upstream_slice


def test_products_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product is larger than a block, whatever k and the images are."""
    largest, plain = [], torch.mm

    def noted(first: Tensor, second: Tensor, *, out: Tensor) -> Tensor:
        largest.append(out.untyped_storage().nbytes())
        return plain(first, second, out=out)

    monkeypatch.setattr(cosegmentation_module.torch, "mm", noted)
    features, weights = random_maps(k=12, size=(14, 14))
    columns = 4 * 12 * 14 * 14
    cosegment(features, weights, block_bytes=5 * columns)
    assert max(largest) == 5 * columns and len(largest) == -(-12 * 14 * 14 // 5)


def test_the_common_object_is_found() -> None:
    """The same vector in every image, at places that are known, among others that no two images share."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(6, 32, 4, 5, generator=generator)
    common, places = torch.randn(32, generator=generator), [3, 19, 0, 7, 11, 12]
    for image, place in enumerate(places):
        features[image].flatten(1)[:, place] = common * (1 + image)
    found = cosegment(features, torch.ones(6, 4, 5))
    assert found.seeds.tolist() == places
    assert torch.allclose(found.reference, F.normalize(common, dim=0), atol=1e-6)
    assert torch.allclose(found.scores, torch.ones(6), atol=1e-6)


def test_contexts_take_their_pixels_away() -> None:
    """Two objects are in every image; the weight of one falls where it is a context."""
    features, dense = torch.zeros(3, 4, 1, 4), torch.zeros(3, 2, 1, 4)
    features[:, 0, 0, 1] = features[:, 1, 0, 2] = 1
    text, context = torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    plain, less = (pixel_weights(features, dense, text, rows) for rows in (context[:0], context))
    assert torch.allclose(plain, torch.full((3, 1, 4), 0.5))
    assert float(less[0, 0, 1]) < float(less[0, 0, 2])
    assert cosegment(features, less).seeds.tolist() == [2, 2, 2]


# -- the method ------------------------------------------------------------------------------------------------------


def test_contexts_are_fitted_first_and_never_targets() -> None:
    method = ReCo.example()
    archive = archive_of(method)
    fitting = method.fit(archive, ["cat", "sky", "cat"], ("{}",), contexts=("dog", "sky", "unheard"))
    assert fitting.names == ("dog", "cat", "sky")
    assert [word.context for word in fitting.words] == [True, False, False]
    alone = method.fit(archive, ["cat", "sky"], ("{}",), contexts=())
    assert not torch.allclose(alone.references[0], fitting.references[1])
    assert {word.name: len(word.images) for word in fitting.words} == {"dog": 5, "cat": 5, "sky": 5}
    assert set(CONTEXTS) >= {"tree", "sky", "road"}


def archive_of(method: ReCo, count: int = 9) -> MemoryArchive:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return MemoryArchive.of(method, {f"{place}.png": image for place, image in enumerate(images)})


def test_images_that_are_struck_out_are_not_used() -> None:
    method = ReCo.example()
    archive = archive_of(method)
    first = method.fit(archive, ["cat"], ("{}",), images=4).words[-1]
    struck = [image.name for image in first.images[:2]]
    again = method.fit(archive, ["cat"], ("{}",), images=4, without={"cat": struck}).words[-1]
    names = [image.name for image in again.images]
    assert len(names) == 4 and not set(names) & set(struck)
    assert names[:2] == [image.name for image in first.images[2:]]
    with pytest.raises(SettingsError, match="'cat': no image of the archive is left"):
        method.fit(archive, ["cat"], ("{}",), without={"cat": list(archive.images)})


def test_similarities_fall_and_seeds_lie_in_the_image() -> None:
    method = ReCo.example()
    for word in method.fit(archive_of(method), ["cat", "dog"], ("{}",)).words:
        values = [image.similarity for image in word.images]
        assert values == sorted(values, reverse=True) and word.last_similarity == values[-1]
        assert all(0 < share < 1 for image in word.images for share in image.seed)


def test_number_of_images() -> None:
    assert [images_per_word(n) for n in (1, 5, 49, 50, 99, 500, 10**6)] == [1, 5, 5, 5, 9, 50, 50]


def test_a_word_without_a_reference_is_refused() -> None:
    method = ReCo.example()
    assert method.refusal("cat") is None
    reason = str(method.refusal("red dog"))
    assert "no reference" in reason and "'cat'" in reason and "archive fit" in reason
    with pytest.raises(SettingsError, match="'red dog'.*no reference"):
        method.embed_prompts(["cat", "red dog"], ("{}",))


def test_names_that_are_given_twice() -> None:
    with pytest.raises(SettingsError, match="names must differ"):
        ReCoConfig(("cat", "cat"))
    with pytest.raises(SettingsError, match=r"names\.1 must be text that is not empty"):
        ReCoConfig.from_dict({"names": ["cat", ""]})


# -- another encoder -------------------------------------------------------------------------------------------------

ARCHITECTURE = "vit_tiny_patch16_224"


def timm_tensors() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return timm.create_model(ARCHITECTURE, num_classes=10).state_dict()


@pytest.mark.slow
def test_features_are_those_of_timm() -> None:
    """At the trained size, against timm's own features of ImageNet-normalized images; the classifier is left out."""
    tensors, mean, std = timm_tensors(), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    tower = build_timm_vit(ARCHITECTURE, tensors, "file", mean, std)
    plain = timm.create_model(ARCHITECTURE, num_classes=10).eval()
    plain.load_state_dict(tensors)
    colors = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))

    def normalized(means: tuple[float, ...], deviations: tuple[float, ...]) -> Tensor:
        return (colors - torch.tensor(means).view(3, 1, 1)) / torch.tensor(deviations).view(3, 1, 1)

    with torch.no_grad():
        expected = plain.forward_features(normalized(IMAGENET_MEAN, IMAGENET_STD))[:, 1:]
        found = tower(normalized(mean, std))
        assert torch.allclose(found.flatten(2).transpose(1, 2), expected, atol=1e-4)
        assert tower(torch.zeros(1, 3, 48, 80)).shape == (1, 192, 3, 5)
    method = ReCo(tiny_clip(), tower)
    assert method.reference_width == 192 and not [name for name in method.learned_state_dict() if "image" in name]
    archive = MemoryArchive.of(method, dict(enumerate(torch.randn(3, 3, 48, 48))))  # type: ignore[arg-type]
    fitted = method.with_references(method.fit(archive, ["cat"], ("{}",)))
    features = fitted.encode(torch.randn(1, 3, 40, 50))
    assert features.image.shape == (1, 192, 3, 4) and features.dense.shape[2:] == (5, 7)
    assert fitted.similarities(features, fitted.embed_prompts(["cat"], ("{}",))).shape == (1, 1, 40, 50)


def tiny_clip() -> FrozenClip:
    return FrozenClip.example(WordTokenizer(("cat",), context_length=10), layers=3)


def test_encoders_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    devices: list[torch.device] = []
    create = timm.create_model

    def noted(*names: Any, **settings: Any) -> Any:
        devices.append(torch.get_default_device())
        return create(*names, **settings)

    monkeypatch.setattr(timm, "create_model", noted)
    with pytest.raises(WeightsError, match="file: timm has no vision transformer 'no_such'"):
        build_timm_vit("no_such", {}, "file", mean, std)
    with pytest.raises(WeightsError, match="do not fit vit_tiny_patch16_224.*missing: "):
        build_timm_vit(ARCHITECTURE, {"pos_embed": torch.zeros(1)}, "file", mean, std)
    # No memory is taken for an architecture that the tensors are not of.
    assert devices == [torch.device("meta")]
    with pytest.raises(WeightsError, match="no plain vision transformer"):
        TimmVit(torch.nn.Linear(1, 1), mean, std)


@pytest.mark.parametrize("name", ["hf-hub:somebody/model", "local-dir:/tmp", "hf_hub:somebody/model"])
def test_an_encoder_is_never_looked_for_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("timm was asked for it")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match="file: timm has no vision transformer"):
        build_timm_vit(name, {}, "file", IMAGENET_MEAN, IMAGENET_STD)
