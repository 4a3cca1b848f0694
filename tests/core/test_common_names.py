"""The list of everyday names is consistent, and names step aside for what they could take pixels from."""

from __future__ import annotations

from itertools import combinations

import pytest
import yaml

from tcl_core.vocabulary import common_names as module
from tcl_core.vocabulary.common_names import CommonName, common_names, common_names_version, related
from tcl_core.vocabulary.words import same_words

NAMES = {name.name: name for name in common_names()}
MOST_THAT_STEP_ASIDE = 14
"""Names that step aside for one that is of the list: for most it is one or two, for "door" what has doors."""

ONE_WAY = {("bear", "teddy bear"), ("fire", "fire hydrant")}
"""A name that contains the prompt steps aside, although the words of a set phrase ask for nothing else."""


def aside(prompt: str) -> set[str]:
    return {name.name for name in common_names() if related(name, prompt)}


def group(title: str) -> set[str]:
    return set(module._contents()["groups"][title]["names"])


# -- the list ----------------------------------------------------------------------------------------------------------


def test_size_and_version() -> None:
    assert 140 <= len(common_names()) <= 160
    assert common_names_version() >= 1
    assert common_names() is common_names()


def test_no_two_names_are_the_same_words() -> None:
    assert [pair for pair in combinations(NAMES, 2) if same_words(*pair)] == []


def test_no_key_is_written_twice() -> None:
    """The YAML loader would let the last one win in silence."""
    text = module.resources.files("tcl_core.vocabulary").joinpath("common_names.yaml").read_text(encoding="utf-8")

    def keys(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value]
            assert len(names) == len(set(names)), names
            for _, value in node.value:
                keys(value)

    keys(yaml.compose(text))


def test_every_word_is_plain_text() -> None:
    for name in common_names():
        for words in (name.name, *name.yields_to):
            assert isinstance(words, str) and words == words.strip().lower() and words


def test_every_name_steps_aside_for_itself_and_its_plural() -> None:
    for name in common_names():
        assert related(name, name.name) and related(name, name.name + "s")


@pytest.mark.parametrize("prompt", NAMES)
def test_few_other_names_step_aside_for_a_name(prompt: str) -> None:
    others = aside(prompt) - {prompt}
    assert len(others) <= MOST_THAT_STEP_ASIDE, sorted(others)


def test_names_step_aside_for_each_other() -> None:
    pairs = {(one, other) for one in NAMES for other in aside(one)}
    assert {pair for pair in pairs if pair[::-1] not in pairs} == ONE_WAY


def test_colors_and_adjectives_push_nothing_aside() -> None:
    for prompt in ("red", "blue", "green", "black", "white", "big", "small", "old", "wooden", "left", "broken"):
        assert aside(prompt) == set()


# -- cases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "gone", "kept"),
    [
        ("cat", {"cat"}, {"dog", "sofa", "person", "grass"}),
        ("sofa", {"sofa", "pillow"}, {"chair", "bed", "table"}),
        ("couch", {"sofa"}, {"chair"}),
        ("red cars", {"car", "van"}, {"bus", "road", "bicycle"}),
        ("wheel", {"car", "bus", "truck", "bicycle", "motorcycle"}, {"road", "person"}),
        ("license plate", {"car", "truck"}, {"bicycle", "person"}),
        # A cloud is a part of the sky, and the sky may be labeled with its clouds or without.
        ("sky", {"sky", "cloud"}, {"smoke", "sea"}),
        ("cloud", {"sky", "cloud"}, {"sea"}),
        ("ocean waves", {"sea", "water"}, {"sand", "sky"}),
        ("palm tree", {"tree"}, {"grass", "flower"}),
        ("trees", {"tree", "bush"}, {"grass"}),
        ("lawn", {"grass"}, {"tree", "road"}),
        ("football player", {"person", "child", "shirt"}, {"grass", "dog"}),
        ("skier", {"person", "jacket", "helmet"}, {"snow", "ski"}),
        ("face", {"person", "dog", "sunglasses"}, {"car"}),
        ("office chairs", {"chair"}, {"table", "sofa"}),
        ("house", {"house", "building", "roof"}, {"tree", "sky"}),
        ("building facade", {"building", "wall"}, {"tree"}),
        ("plants", {"grass", "tree", "bush", "flower", "potted plant"}, {"soil"}),
        ("carpet", {"rug", "floor"}, {"car"}),
        ("hot dog", {"sandwich"}, {"dog"}),
        ("traffic light", {"traffic light", "pole"}, {"car", "bus", "road"}),
        ("traffic cone", {"traffic cone"}, {"car"}),
        ("fire hydrant", {"fire hydrant"}, {"fire"}),
        ("teddy bear", {"teddy bear"}, {"bear"}),
        ("hair dryer", set(), {"person", "dog"}),
        ("body of water", {"water", "sea", "river", "lake"}, {"person", "dog"}),
    ],
)
def test_who_steps_aside(prompt: str, gone: set[str], kept: set[str]) -> None:
    assert gone | kept <= set(NAMES)
    assert gone <= aside(prompt)
    assert not kept & aside(prompt)


@pytest.mark.parametrize(
    ("prompt", "title"),
    [
        ("animal", "animals"),
        ("my animals", "animals"),
        ("wildlife", "animals"),
        ("vehicle", "vehicles"),
        ("parked vehicles", "vehicles"),
        ("furniture", "furniture"),
        ("food", "food"),
        ("people", "people"),
        ("workers", "clothing"),
        ("clothes", "clothing"),
        ("tools", "tools"),
    ],
)
def test_a_wider_term_pushes_a_whole_group_aside(prompt: str, title: str) -> None:
    assert group(title) <= aside(prompt)


def test_objects_are_everything() -> None:
    assert aside("objects") == set(NAMES)


def test_words_of_a_phrase_count_where_they_are_asked_for_themselves() -> None:
    sofa = CommonName("sofa", frozenset({"couch"}))
    assert related(sofa, "red couches") and not related(sofa, "red chairs")
    assert not related(sofa, "")
