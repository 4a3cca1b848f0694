"""Names that compete and are not annotated: which of a long list do, in which images, and what they win."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage.data
import torch

from tcl_core.methods import create_method
from tcl_core.methods.tcl import TCL
from tcl_core.models import Model, load_model
from tcl_core.models.metadata import Preprocess
from tcl_core.playground import CLASS_NAMES, SYNONYMS, draw_scene, scene_rng
from tcl_core.segmentation.background_names import NEAR, strongest_names
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import OpenClipTokenizer
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.common_names import common_names, related
from tests.contract.examples import model_of


@pytest.fixture(scope="module")
def playground() -> Segmenter:
    return Segmenter(load_model("playground", device="cpu"))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw_scene(scene_rng(3, 1), combinations="all").image


@pytest.fixture(scope="module")
def open_model() -> Model:
    """NACLIP on a ViT-B/16 with random weights, which knows every word."""
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    assert config is not None
    with torch.random.fork_rng():
        torch.manual_seed(5)
        clip = FrozenClip(open_clip.CLIP(**config), OpenClipTokenizer())
    preprocess = Preprocess((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 224, 2048, 224, 112)
    method = create_method("naclip", {"clip": clip}).eval().requires_grad_(False)
    return model_of(method, preprocess=preprocess, templates="simple")


# -- which names -------------------------------------------------------------------------------------------------------


def test_the_embedded_models_names_are_its_world(playground: Segmenter) -> None:
    asked = CLASS_NAMES[3:6]
    choice = playground.background_names(Vocabulary.from_options(asked))
    assert (choice.source, choice.pooled) == ("model", True)
    assert set(choice.names) == set(CLASS_NAMES) - set(asked)
    assert {(out.name, out.reason, out.text) for out in choice.left_out} == {(name, "same", name) for name in asked}


@pytest.mark.slow
def test_an_open_vocabulary_has_the_common_names(open_model: Model) -> None:
    """What is left out is recomputed from the list and from the cosines."""
    segmenter = Segmenter(open_model)
    vocabulary = Vocabulary.from_options(["Pets=kitten,red dog", "zebra crossing"])
    choice = segmenter.background_names(vocabulary)
    names = [entry.name for entry in common_names()]
    texts = ("Pets", "kitten", "red dog", "zebra crossing")
    by_words = {entry.name for entry in common_names() if any(related(entry, text) for text in texts)}
    rows = segmenter.embed_prompts(names).tensors()["text"].double().numpy()
    prompts = segmenter.embed_prompts(texts[1:]).tensors()["text"].double().numpy()
    mean = (np.square(rows.sum(axis=0)).sum() - len(names)) / (len(names) * (len(names) - 1))
    nearest = ((rows @ prompts.T - mean) / (1 - mean)).max(axis=1)
    near = {name for name, value in zip(names, nearest, strict=True) if value >= NEAR}
    assert choice.source == "common" and {"cat", "dog"} <= by_words
    assert set(choice.names) == set(names) - by_words - near
    assert {out.name for out in choice.left_out} == by_words | near


@pytest.mark.slow
def test_synonyms_plurals_and_capitals_step_aside(playground: Segmenter) -> None:
    """Every other word for a kind of the world, also where the list has that word and the label the usual one."""
    assert len(SYNONYMS) >= 8
    for name, others in SYNONYMS.items():
        for other in others:
            by_other = playground.background_names(Vocabulary.from_options([other.upper()]))
            assert name not in by_other.names, other
            planted = replace(playground.model, background_names=(*CLASS_NAMES, *others))
            by_name = Segmenter(planted).background_names(Vocabulary.from_options([name]))
            assert not {name, *others} & set(by_name.names), name
            listed = Vocabulary.from_options([name], background_names=(other, *CLASS_NAMES[:3]))
            assert other not in playground.background_names(listed).names


def test_near_names_say_what_they_are_near_to(playground: Segmenter) -> None:
    name, others = next(iter(SYNONYMS.items()))
    choice = playground.background_names(Vocabulary.from_options([f"Mine={others[0]}"]))
    (out,) = choice.left_out
    assert (out.name, out.text) == (name, others[0])
    assert out.reason == "near" and out.nearness is not None and NEAR <= out.nearness <= 1 + 1e-6


def test_different_things_do_not_step_aside(playground: Segmenter) -> None:
    for name in CLASS_NAMES:
        names = playground.background_names(Vocabulary.from_options([name])).names
        # See `tcl_core.evaluation.projects.mistaken_for_synonyms`.
        near = {"snow", "marble"} if name in ("snow", "marble") else {name}
        assert set(names) == set(CLASS_NAMES) - near


# -- which of them in an image -----------------------------------------------------------------------------------------


def test_names_that_are_strongest_somewhere() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 30, 40, 50, generator=generator)
    # Of thirty names five are the strongest almost everywhere, and one of these at few places.
    values[:, :25] *= 0.1
    values[:, 25, :, :49] = 0
    names = [f"name {number}" for number in range(30)]
    groups = [names[:16], names[16:]]
    winners = [
        torch.stack([part.amax(dim=1), part.argmax(dim=1).float()], dim=1) for part in values.split([16, 14], dim=1)
    ]
    shares = np.bincount(values.argmax(dim=1).flatten().numpy(), minlength=30) / (2 * 40 * 50)
    expected = tuple(name for name, share in zip(names, shares, strict=True) if share >= 0.01)
    assert strongest_names(groups, winners) == expected and 4 <= len(expected) <= 5


def test_names_that_share_an_image_evenly() -> None:
    values = torch.eye(400).view(1, 400, 20, 20)
    names = [str(number) for number in range(400)]
    winners = torch.stack([values.amax(dim=1), values.argmax(dim=1).float()], dim=1)
    assert len(strongest_names([names], [winners])) == 1


def test_few_names_are_what_all_would_be(playground: Segmenter, image: np.ndarray) -> None:
    """Against the maximum over the refined planes of all names."""
    vocabulary = Vocabulary.from_options(CLASS_NAMES[:3])
    features = playground.encode(image)
    scores = playground.score_maps(features, vocabulary)
    every = playground.similarities(features, playground.embed_prompts(CLASS_NAMES[3:])).amax(dim=0)
    assert scores.shape[0] == 4
    assert bool((scores[3] <= every + 1e-5).all())
    assert float((every - scores[3]).quantile(0.95)) < 0.02


@pytest.mark.parametrize("kp_weight", [0.0, 0.3])
def test_values_of_names_are_unrefined_similarities(kp_weight: float) -> None:
    method = TCL.example().configured({"kp_weight": kp_weight})
    features = method.encode(torch.rand(2, 3, 48, 48))
    names = method.embed_prompts(["cat", "dog"], ["{}"])
    values = method.name_values(features, names)
    expected = method.similarities(features, names)
    enlarged = torch.nn.functional.interpolate(values, size=features.padded, mode="bilinear")
    (top, left), (height, width) = features.offset, features.size
    torch.testing.assert_close(enlarged[..., top : top + height, left : left + width], expected)


# -- what they do ------------------------------------------------------------------------------------------------------


def test_all_labels_of_the_world_leave_no_names(playground: Segmenter, image: np.ndarray) -> None:
    features = playground.encode(image)
    every = Vocabulary.from_options(CLASS_NAMES)
    assert playground.background_names(every).names == ()
    found = playground.segment(features, every)
    expected = playground.segment(features, replace(every, background_names=()))
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    np.testing.assert_array_equal(found.score_map, expected.score_map)


def test_planted_synonyms_cost_nothing(playground: Segmenter, image: np.ndarray) -> None:
    name, others = next(iter(SYNONYMS.items()))
    planted = Segmenter(replace(playground.model, background_names=(*CLASS_NAMES, *others)))
    for text in (name, others[0], name.upper(), others[0].title()):
        vocabulary = Vocabulary.from_options([text])
        features = playground.encode(image)
        found = planted.segment(features, vocabulary).label_map
        np.testing.assert_array_equal(found, playground.segment(features, vocabulary).label_map)


def test_sessions_and_one_label_know_the_same_names(playground: Segmenter, image: np.ndarray) -> None:
    features = playground.encode(image)
    session = ImageSession(playground, features)
    for labels in (CLASS_NAMES[:2], CLASS_NAMES[:4], CLASS_NAMES[1:3], [*CLASS_NAMES[1:3], CLASS_NAMES[50]]):
        vocabulary = Vocabulary.from_options(labels)
        expected = playground.segment(features, vocabulary)
        found = session.segment(vocabulary)
        assert np.mean(found.label_map != expected.label_map) < 1e-3
        for place in range(len(labels)):
            one = session.segment_label(vocabulary, place).label_map
            np.testing.assert_array_equal(one, np.where(found.label_map == place + 1, found.label_map, 0))
            alone = session.segment_label(vocabulary, place, rivals=False).label_map
            # Without the other labels as rivals the names are the same, so that it can only win more.
            assert not ((one > 0) & (alone == 0)).any()


def test_a_name_that_competed_is_there_when_it_is_asked_for(playground: Segmenter, image: np.ndarray) -> None:
    session = ImageSession(playground, image)
    session.segment(Vocabulary.from_options(CLASS_NAMES[:1]))
    _, unlabeled = playground.explain(session.encode(), Vocabulary.from_options(CLASS_NAMES[:1]))
    steps: list[str] = []
    session.segment(Vocabulary.from_options([CLASS_NAMES[0], unlabeled.names[0]]), lambda step: steps.append(step.step))
    assert "encode" not in steps


def test_what_each_name_won(playground: Segmenter, image: np.ndarray) -> None:
    """Against the decision in which every name is a label."""
    features = playground.encode(image)
    vocabulary = Vocabulary.from_options(CLASS_NAMES[:2])
    found, unlabeled = playground.explain(features, vocabulary)
    np.testing.assert_array_equal(found.label_map, playground.segment(features, vocabulary).label_map)
    every = playground.segment(features, Vocabulary.from_options(CLASS_NAMES)).label_map
    assert not unlabeled.winner[found.label_map > 0].any()
    won = unlabeled.winner > 0
    assert won.mean() > 0.5
    numbers = np.array([0, *(CLASS_NAMES.index(name) + 1 for name in unlabeled.names)])
    assert np.mean(numbers[unlabeled.winner][won] == every[won]) > 0.95
    assert set(unlabeled.shares()) == set(unlabeled.names)


def test_an_explicit_list_explains_itself_too() -> None:
    from tcl_core.methods.training_free import NACLIP

    segmenter = Segmenter(model_of(NACLIP.example()))
    features = segmenter.encode(np.ascontiguousarray(skimage.data.astronaut()[:60, :80]))
    vocabulary = Vocabulary((Label("cat"),), background_threshold=0.0, background_names=("dog", "sky"))
    found, unlabeled = segmenter.explain(features, vocabulary)
    labeled = Vocabulary.from_options(["cat", "dog", "sky"], background_threshold=0.0, background_names=())
    every = segmenter.segment(features, labeled).label_map
    numbers = np.array([0, *({"dog": 2, "sky": 3}[name] for name in unlabeled.names)])
    assert np.mean(np.where(found.label_map > 0, 1, numbers[unlabeled.winner]) == every) > 0.95


# -- between runs ------------------------------------------------------------------------------------------------------


def embedded(model: Model, templates: str = "simple") -> tuple[Segmenter, list[tuple[int, int]]]:
    """A segmenter that has chosen names, and the progress that was reported."""
    segmenter = Segmenter(model)
    told: list[tuple[int, int]] = []
    vocabulary = Vocabulary.from_options(["unicorn"], templates=templates)
    segmenter.background_names(vocabulary, lambda done, total: told.append((done, total)))
    return segmenter, told


def lists(folder: Path) -> list[Path]:
    """The files of whole lists; single prompts have folders."""
    return [path for path in folder.iterdir() if path.is_file()]


@pytest.mark.slow
def test_embedded_names_are_kept(open_model: Model, tmp_path: Path) -> None:
    model = replace(open_model, text_folder=tmp_path / "texts")
    first, told = embedded(model)
    assert told[0] == (0, len(common_names())) and len(told) > 10
    (file,) = lists(tmp_path / "texts")
    second, again = embedded(model)
    assert again == []
    names = [entry.name for entry in common_names()]
    kept = second.embed_prompts(names).tensors()["text"]
    torch.testing.assert_close(kept, first.embed_prompts(names).tensors()["text"], rtol=0, atol=0)
    # Other weights or templates have other files; a damaged one is made anew.
    assert embedded(replace(model, weights_sha256="1" * 64))[1]
    assert embedded(model, "identity")[1]
    file.write_bytes(file.read_bytes()[:-8])
    assert embedded(model)[1] and not embedded(model)[1]
    assert len(lists(tmp_path / "texts")) == 3


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_time_only(open_model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = replace(open_model, text_folder=tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot be cached"):
        segmenter, _ = embedded(model)
    assert segmenter.background_names(Vocabulary.from_options(["unicorn"])).names


def test_cancelled_embedding_is_passed_on(open_model: Model) -> None:
    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done:
            raise Stopped

    segmenter = Segmenter(open_model)
    with pytest.raises(Stopped):
        segmenter.background_names(Vocabulary.from_options(["unicorn"]), stop)
    assert not segmenter.knows_background_names(Vocabulary.from_options(["unicorn"]))
