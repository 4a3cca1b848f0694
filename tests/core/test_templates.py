"""Template sets: sizes and sentences as in the TCL paper's code; ``full`` against open_clip's own list."""

from __future__ import annotations

import pytest

from tcl_core.errors import VocabularyError
from tcl_core.vocabulary.templates import TEMPLATE_SETS, apply_templates, get_templates


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("custom", 9),
        ("simple", 1),
        ("subset", 7),
        ("full", 80),
        ("maskclip", 5),
        ("maskclip85", 85),
        ("plural", 1),
        ("identity", 1),
    ],
)
def test_every_set_has_its_size_and_one_placeholder_each(name: str, size: int) -> None:
    templates = get_templates(name)
    assert len(templates) == len(set(templates)) == size
    assert all(template.count("{}") == 1 for template in templates)


def test_sets_listed_are_the_sets_there_are() -> None:
    assert len(TEMPLATE_SETS) == 8
    for name in TEMPLATE_SETS:
        get_templates(name)


def test_custom_is_the_papers_list() -> None:
    assert apply_templates("cat", "custom") == [
        "itap of a cat.",
        "a bad photo of a cat.",
        "a origami cat.",
        "a photo of the large cat.",
        "a cat in a video game.",
        "art of the cat.",
        "a photo of the small cat.",
        "a photo of many cat.",
        "a photo of cats.",
    ]


def test_full_equals_open_clips_sentences() -> None:
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    expected = [template("red {0} sofa {}") for template in metadata.OPENAI_IMAGENET_TEMPLATES]
    assert apply_templates("red {0} sofa {}", "full") == expected


def test_identity_returns_the_prompt_itself() -> None:
    assert apply_templates("a {brace}", "identity") == ["a {brace}"]


def test_unknown_set_lists_the_known_ones_and_the_near_one() -> None:
    with pytest.raises(VocabularyError, match=r"no template set 'simpel' \(did you mean 'simple'\?\).*custom, simple"):
        get_templates("simpel")
