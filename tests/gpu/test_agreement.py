"""What a CUDA device computes, against the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu.models import (
    METHODS,
    ON_PLAYGROUND,
    RandomModels,
    class_directions,
    enlarged_scene,
    vocabulary_of,
    with_rows,
)
from tcl_core.devices import autocast
from tcl_core.evaluation.playground import held_out_scene
from tcl_core.methods import method_class
from tcl_core.models import load_model
from tcl_core.playground import CLASS_NAMES
from tcl_core.refinement.pamr import Pamr
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.vocabulary import Label, Vocabulary

WITHIN = 1e-4
EVERYTHING = Vocabulary(tuple(Label(name) for name in CLASS_NAMES), background=False)


def same_but_ties(expected: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether score maps ``[K, h, w]`` have the same winners wherever the first is not within reach of the second."""
    ranked = expected.topk(2, dim=0).values
    clear = ranked[0] - ranked[1] > 2 * WITHIN
    return bool((expected.argmax(dim=0) == found.argmax(dim=0))[clear].all())


def test_tower(models: RandomModels, device: torch.device) -> None:
    """Every block, in float32 without TF32, also in the convolution that makes patches."""
    image = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    after = tuple(range(models.clip.depth + 1))
    with torch.no_grad(), autocast(device, torch.float32):
        found = models.clip_on_device.tokens(image.to(device), after)
        pooled = models.clip_on_device.encode_image(image.to(device))
        for one, other in zip(models.clip.tokens(image, after), found, strict=True):
            torch.testing.assert_close(other.cpu(), one, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pooled.cpu(), models.clip.encode_image(image), rtol=1e-5, atol=1e-5)


def test_convolutions_of_float32_are_exact(cuda: torch.device) -> None:
    """The default of cuDNN rounds factors to ten bits, which is 40 times worse than what is allowed here."""
    generator = torch.Generator().manual_seed(0)
    image, weight = torch.randn(1, 64, 32, 32, generator=generator), torch.randn(64, 64, 3, 3, generator=generator) / 24
    exact = F.conv2d(image.double(), weight.double(), padding=1)
    with autocast(cuda, torch.float32):
        found = F.conv2d(image.to(cuda), weight.to(cuda), padding=1)
    assert float((found.cpu().double() - exact).abs().max()) < 2e-5


@pytest.mark.parametrize("dilations", [(1, 2, 4, 8, 12, 24), (8, 16)])
def test_pamr(device: torch.device, dilations: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    refiner = Pamr(dilations=dilations)
    images, maps = torch.rand(3, 3, 60, 70, generator=generator), torch.rand(3, 5, 30, 35, generator=generator)
    expected = refiner.prepare(images, (60, 70))
    found = refiner.prepare(images.to(device), (60, 70))
    torch.testing.assert_close(found.weights.cpu(), expected.weights, rtol=1e-4, atol=1e-6)
    refined = refiner.refine(found, maps.to(device))
    assert refined.device == device and refined.dtype == torch.float32
    torch.testing.assert_close(refined.cpu(), refiner.refine(expected, maps), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_texts(name: str, models: RandomModels) -> None:
    """Many texts that begin alike, which go through the tower as a tree, and few, which do not."""
    methods = models.method(name, on_device=False), models.method(name, on_device=True)
    for prompts, templates in ((["cat", "red sofa", "sky"] * 3, ["{}", "a photo of a {}."]), (["cat"], ["{}"])):
        expected, found = (method.embed_prompts(prompts, templates).tensors() for method in methods)
        for key, tensor in expected.items():
            assert found[key].device == models.device
            torch.testing.assert_close(found[key].cpu(), tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("refine", [False, True], ids=["plain", "PAMR"])
@pytest.mark.parametrize("name", METHODS)
def test_random_weights(name: str, refine: bool, models: RandomModels) -> None:
    """Encoding, similarities and finished scores, for directions in which the features of scenes differ."""
    scenes = [enlarged_scene(index, (90, 110)) for index in range(2)]
    vocabulary = vocabulary_of([label_map for _, label_map in scenes], most=4)
    first, second = (Segmenter(models.model(name, on_device=on), refine=refine) for on in (False, True))
    expected = first.encode_batch([image for image, _ in scenes])
    found = second.encode_batch([image for image, _ in scenes])
    # The scenes' label maps stand for those of windows; any directions will do that tell features apart.
    rows = class_directions(expected[0].windows[:1], [scenes[0][1]], vocabulary)
    for one, other in zip(expected, found, strict=True):
        maps = []
        for segmenter, features in ((first, one), (second, other)):
            prompts = with_rows(segmenter.embed_prompts(vocabulary.names), rows)
            merged = segmenter.similarities(features, prompts)
            maps.append(segmenter.finish(features, merged, range(len(vocabulary.labels))).cpu())
        assert float((maps[0] - maps[1]).abs().max()) <= WITHIN
        assert same_but_ties(*maps)


@pytest.mark.parametrize("refine", [False, True], ids=["plain", "PAMR"])
@pytest.mark.parametrize("name", ON_PLAYGROUND)
def test_the_embedded_model_on_its_scenes(name: str, refine: bool, device: torch.device) -> None:
    model = "playground" if name == "tcl" else f"{name}:playground"
    images = [held_out_scene("seen", index).image for index in range(4)]
    first, second = (
        Segmenter(load_model(model, device=where, precision="float32"), refine=refine) for where in ("cpu", str(device))
    )
    assert set(first.method.towers) == {"clip"} and method_class(name).name == first.method.name
    # Three labels leave most of an image to the names that compete.
    for vocabulary in (EVERYTHING, Vocabulary.from_options(list(CLASS_NAMES[:3]))):
        for one, other in zip(first.encode_batch(images), second.encode_batch(images), strict=True):
            expected, found = first.score_maps(one, vocabulary), second.score_maps(other, vocabulary)
            assert found.device == device
            assert float((expected - found.cpu()).abs().max()) <= WITHIN
            assert same_but_ties(expected, found.cpu())


def test_bfloat16_decides_alike(device: torch.device) -> None:
    images = [held_out_scene("seen", index).image for index in range(12)]
    first = Segmenter(load_model("playground", device="cpu", precision="float32"))
    second = Segmenter(load_model("playground", device=str(device), precision="bfloat16"))
    equal = [
        (first.segment_image(image, EVERYTHING).label_map == second.segment_image(image, EVERYTHING).label_map).mean()
        for image in images
    ]
    assert np.mean(equal) >= 0.99


@pytest.mark.parametrize("name", METHODS)
def test_batches_of_any_size(name: str, models: RandomModels) -> None:
    """Windows do not depend on their company beyond rounding."""
    images = [enlarged_scene(index, (80, 100))[0] for index in range(3)]
    model = models.model(name, on_device=True)
    alone = [Segmenter(model, batch_size=1).encode(image) for image in images]
    for batch_size in (2, 5, 64):
        together = Segmenter(model, batch_size=batch_size).encode_batch(images)
        for one, other in zip(alone, together, strict=True):
            for key, tensor in one.windows.tensors().items():
                torch.testing.assert_close(other.windows.tensors()[key], tensor, rtol=1e-3, atol=1e-4)


def test_a_session_answers_as_a_segmenter_does(device: torch.device) -> None:
    """A second prompt, a threshold, a new label and one label alone, on kept features."""
    image = held_out_scene("seen", 3).image
    segmenter = Segmenter(load_model("playground", device=str(device), precision="float32"))
    session = ImageSession(segmenter, image)
    words = list(CLASS_NAMES[:4])
    vocabularies = [
        Vocabulary.from_options(words[:2]),
        Vocabulary.from_options(words[:2], background_threshold=0.35),
        Vocabulary.from_options(words),
        Vocabulary.from_options(words[1:], background_names=()),
    ]
    for vocabulary in vocabularies:
        found, expected = session.segment(vocabulary), segmenter.segment_image(image, vocabulary)
        assert (found.label_map != expected.label_map).mean() < 1e-3
        np.testing.assert_allclose(found.score_map, expected.score_map, atol=1e-3)
        alone = session.segment_label(vocabulary, 0)
        assert ((alone.label_map == 1) != (expected.label_map == 1)).mean() < 1e-3


def test_features_move_between_devices(models: RandomModels, device: torch.device) -> None:
    features = models.method("tcl", on_device=True).encode(torch.rand(2, 3, 40, 40, device=device))
    back = copy.copy(features).to("cpu").to(device)
    for key, tensor in features.tensors().items():
        assert torch.equal(back.tensors()[key], tensor)
