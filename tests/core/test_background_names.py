"""Names of the background: they compete with the labels, win pixels, and leave them without a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import skimage.data
import torch
import yaml

from tcl_core.errors import VocabularyError
from tcl_core.methods import create_method
from tcl_core.methods.training_free import NACLIP, MaskCLIPRefined
from tcl_core.models.loading import Model
from tcl_core.models.metadata import Preprocess
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.session import ImageSession
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import OpenClipTokenizer
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.common_names import common_names
from tests.contract.examples import example_image, model_of


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(model_of(NACLIP.example()))


def names_of(segmenter: Segmenter, vocabulary: Vocabulary) -> tuple[str, ...]:
    return segmenter.background_names(vocabulary).names


# -- which names compete -----------------------------------------------------------------------------------------------


def test_names_that_the_model_does_not_know_are_left_out(segmenter: Segmenter) -> None:
    assert names_of(segmenter, Vocabulary.from_options(["sky"])) == ("dog", "cat", "sofa")
    left_out = segmenter.background_names(Vocabulary.from_options(["sky"])).left_out
    assert {(out.name, out.reason) for out in left_out} >= {("person", "unknown"), ("sky", "same")}
    assert len(left_out) + 3 == len(common_names())


def test_names_whose_templates_the_model_does_not_know_are_left_out(segmenter: Segmenter) -> None:
    """A template can make another word of a name, such as its plural."""
    assert names_of(segmenter, Vocabulary.from_options(["dog"], templates="identity")) == ("cat", "sky", "sofa")
    assert names_of(segmenter, Vocabulary.from_options(["dog"], templates="plural")) == ()


@pytest.mark.slow
@pytest.mark.parametrize(("own", "left"), [("sky", "SKY"), ("Skies", "SKY"), ("skys", "SKY"), ("cloud", "cloud")])
def test_names_that_a_label_has_too_are_left_out(segmenter: Segmenter, own: str, left: str) -> None:
    vocabulary = Vocabulary.from_options([f"Above={own}", "cat"], background_names=("SKY", "cloud", "dog"))
    assert set(names_of(segmenter, vocabulary)) == {"SKY", "cloud", "dog"} - {left}


def test_the_name_of_a_label_counts_as_its_prompts_do(segmenter: Segmenter) -> None:
    vocabulary = Vocabulary.from_options(["Mice=rodent", "cat"], background_names=("mouse", "dog"))
    assert names_of(segmenter, vocabulary) == ("dog",)


def test_switched_off(segmenter: Segmenter) -> None:
    assert names_of(segmenter, Vocabulary.from_options(["cat"], background_names=())) == ()
    assert names_of(segmenter, Vocabulary.from_options(["cat"], background=False)) == ()


def test_an_unknown_word_of_the_user_is_an_error(segmenter: Segmenter) -> None:
    vocabulary = Vocabulary.from_options(["cat"], background_names=("zeppelin",))
    with pytest.raises(VocabularyError, match="zeppelin"):
        segmenter.segment_image(example_image(), vocabulary)


# -- what they do ------------------------------------------------------------------------------------------------------


def test_what_they_win_has_no_label(segmenter: Segmenter) -> None:
    """The decision of a vocabulary in which the name is a label, that label taken away."""
    features = segmenter.encode(example_image())
    options = {"background_threshold": 0.0}
    labeled = segmenter.segment(
        features, Vocabulary.from_options(["cat", "dog", "sky"], background_names=(), **options)
    )
    named = Vocabulary.from_options(["cat", "dog"], background_names=("sky",), **options)
    assert {1, 2, 3} & set(np.unique(labeled.label_map)) >= {3}
    expected = np.where(labeled.label_map == 3, 0, labeled.label_map)
    for found in (segmenter.segment(features, named), ImageSession(segmenter, features).segment(named)):
        np.testing.assert_array_equal(found.label_map, expected)
        np.testing.assert_allclose(found.score_map, np.where(expected > 0, labeled.score_map, 0), atol=1e-6)


def test_thresholds_that_move(segmenter: Segmenter) -> None:
    """Incremental decisions of a session know the plane of names too."""
    features = segmenter.encode(example_image())
    session = ImageSession(segmenter, features)
    for threshold in (None, 0.9, 0.3, 0.0, None):
        labels = (Label("cat", threshold=threshold), Label("dog"))
        for names in (("sky", "sofa"), ("sky",), ()):
            vocabulary = Vocabulary(labels, background_threshold=0.1, background_names=names)
            expected = segmenter.segment(features, vocabulary)
            np.testing.assert_array_equal(session.segment(vocabulary).label_map, expected.label_map)


def test_many_labels_and_names(segmenter: Segmenter) -> None:
    """More labels than a byte can number."""
    features = segmenter.encode(example_image())
    labels = tuple(Label(f"label {number}", ("cat",)) for number in range(255)) + (Label("dog", ("dog",)),)
    vocabulary = Vocabulary(labels, background_threshold=0.0, background_names=("sky",))
    found = ImageSession(segmenter, features).segment(vocabulary)
    assert set(np.unique(found.label_map)) <= {0, 1, 256}
    np.testing.assert_array_equal(found.label_map, segmenter.segment(features, vocabulary).label_map)


def test_any_method_can_have_names() -> None:
    """A vocabulary may give some."""
    from tcl_core.methods.tcl import TCL

    segmenter = Segmenter(model_of(TCL.example()))
    features = segmenter.encode(example_image())
    plain = Vocabulary.from_options(["cat", "dog", "sky"], background_threshold=0.0, background_names=())
    named = Vocabulary.from_options(["cat", "dog"], background_threshold=0.0, background_names=("sky",))
    expected = segmenter.segment(features, plain).label_map
    found = segmenter.segment(features, named).label_map
    np.testing.assert_array_equal(found, np.where(expected == 3, 0, expected))


# -- one label ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photograph_model() -> Model:
    """NACLIP on a ViT-B/16 with random weights."""
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    assert config is not None
    with torch.random.fork_rng():
        torch.manual_seed(5)
        clip = FrozenClip(open_clip.CLIP(**config), OpenClipTokenizer())
    preprocess = Preprocess((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 336, 2048, 224, 112)
    method = create_method("naclip", {"clip": clip}).eval().requires_grad_(False)
    return model_of(method, preprocess=preprocess, templates="simple")


@pytest.mark.slow
def test_one_label_does_not_cover_a_photograph(photograph_model: Model) -> None:
    one = Vocabulary.from_options(["astronaut"])
    features = Segmenter(photograph_model).encode(skimage.data.astronaut()[:240, :320])
    # Random texts are so alike that a steeper softmax is needed for the label to win anywhere at all.
    for scale in (40, 1000):
        segmenter = Segmenter(photograph_model, options={"scale": scale})
        assert (segmenter.segment(features, one).label_map == 0).any()
        session = ImageSession(segmenter, features)
        for rivals in (True, False):
            assert (session.segment_label(one, 0, rivals=rivals).label_map == 0).any()
        # A softmax over the one name alone is 1 everywhere.
        alone = Vocabulary.from_options(["astronaut"], background_names=())
        assert (segmenter.segment(features, alone).label_map == 1).all()


# -- files and options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("background", "threshold", "names"),
    [
        ({"names": ["sky", "wall"]}, None, ("sky", "wall")),
        ({"names": "none", "threshold": 0.3}, 0.3, ()),
        ({"names": "auto"}, None, None),
        ({"names": "sky"}, None, ("sky",)),
        ({"names": []}, None, ()),
        ({}, None, None),
    ],
)
def test_label_files(
    tmp_path: Path, background: dict[str, object], threshold: float | None, names: tuple[str, ...] | None
) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump({"labels": ["cat"], "background": background}))
    vocabulary = Vocabulary.from_file(path)
    assert (vocabulary.background, vocabulary.background_threshold) == (True, threshold)
    assert vocabulary.background_names == names
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


@pytest.mark.parametrize(
    ("background", "message"),
    [
        ({"names": 3}, "background.names: expected auto, none, or a list"),
        ({"names": ["sky", "sky"]}, "background names: prompts.1.: the prompt 'sky' is listed twice"),
        ({"names": [""]}, "background names: prompts.0.: the prompt is empty"),
        ({"names": ["auto", "floods"]}, "background names: 'auto' cannot be combined with other names"),
        ({"threshold": True}, "background.threshold: expected a number"),
        ({"threshold": 2.0}, "background threshold: 2.0 is out of range"),
        ({"heights": 1}, "background.heights: unknown key"),
    ],
)
def test_mistakes_in_label_files(tmp_path: Path, background: dict[str, object], message: str) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump({"labels": ["cat"], "background": background}))
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.from_file(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_softmax_in_strips_is_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    from tcl_core.methods.training_free import base

    method = NACLIP.example()
    # In double precision, because the last digit of a float32 exponential depends on the length of a row.
    merged = torch.rand(4, 9, 7, dtype=torch.float64)
    for softmax_over in ("names", "labels"):
        chosen = method.configured({"softmax_over": softmax_over})
        whole = chosen.finish(merged, [0, 0, 1, -1])
        for values in (1, 60, 100):
            monkeypatch.setattr(base, "_STRIP_VALUES", values)
            torch.testing.assert_close(chosen.finish(merged, [0, 0, 1, -1]), whole, rtol=0, atol=1e-7)
        monkeypatch.undo()
    expected = torch.softmax(40 * merged, dim=0)
    torch.testing.assert_close(method.finish(merged, [0, 0, 1, -1])[0], expected[:2].amax(dim=0))


# -- labels that share prompts, and images that show none of them ------------------------------------------------------


def test_a_session_tells_labels_of_equal_prompts_apart() -> None:
    """The first of the two wins everything, so that the second is a small label and is left out."""
    segmenter = Segmenter(model_of(NACLIP.example()), options={"area_threshold": 0.1})
    vocabulary = Vocabulary.from_options(["first=cat", "second=cat"], background_threshold=0.0, background_names=())
    features = segmenter.encode(example_image())
    expected = segmenter.segment(features, vocabulary)
    assert set(np.unique(expected.label_map)) == {1}
    np.testing.assert_array_equal(ImageSession(segmenter, features).segment(vocabulary).label_map, expected.label_map)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_an_image_that_shows_no_prompt_has_no_label(smoothing: float) -> None:
    method = MaskCLIPRefined.example().configured({"key_smoothing": smoothing})
    features = method.encode(torch.rand(1, 3, 40, 50))
    prompts = replace(method.embed_prompts(["cat", "dog"], ["{}"]), kept=torch.zeros(2, dtype=torch.bool))
    merged = method.similarities(features, prompts)[0]
    assert not method.finish(merged, [0, 1]).any()
