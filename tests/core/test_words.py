"""Names are compared as words: number, letter case and hyphens make no difference, other letters do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl_core.vocabulary.common_names import CommonName, common_names
from tcl_core.vocabulary.words import _may_be_forms, contains_words, same_words, word_forms


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sofa", "sofas"),
        ("mouse", "mice"),
        ("person", "people"),
        ("sky", "skies"),
        ("sky", "skys"),
        ("skies", "skys"),
        ("knife", "knives"),
        ("leaf", "leaves"),
        ("grass", "grasss"),
        ("grass", "grasses"),
        ("glass", "glasses"),
        ("bus", "buses"),
        ("bus", "buss"),
        ("lens", "lenses"),
        ("lens", "lenss"),
        ("axe", "axes"),
        ("ski", "skis"),
        ("menu", "menus"),
        ("child", "children"),
        ("sheep", "sheep"),
        ("scissors", "scissorss"),
        ("Traffic-Light", "traffic  lights"),
        ("traffic_light", "traffic light"),
        ("  CAR\n", "car"),
        ("\uff43\uff41\uff52", "car"),
        ("cafe\u0301", "caf\u00e9s"),
        ("stra\u00dfe", "STRASSE"),
        ("teddy bears", "teddy bear"),
        ("\u732b", "\u732b"),
        ("", ""),
    ],
)
def test_the_same(first: str, second: str) -> None:
    assert same_words(first, second) and same_words(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("bus", "bu"),
        ("grass", "gras"),
        ("class", "clas"),
        ("glass", "glas"),
        ("gas", "ga"),
        ("lens", "len"),
        ("news", "new"),
        ("princess", "princes"),
        ("needless", "needles"),
        ("tennis", "tenni"),
        ("cactus", "cactu"),
        ("car", "carpet"),
        ("car", "cart"),
        ("car", "red car"),
        ("teddy bear", "bear teddy"),
        ("sea", "seat"),
        ("pan", "pant"),
        ("leaf", "leave"),
        ("", "car"),
        ("-", ""),
        ("\u732b", "\u72ac"),
    ],
)
def test_not_the_same(first: str, second: str) -> None:
    assert not same_words(first, second) and not same_words(second, first)


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("red sports cars", "car", True),
        ("red sports cars", "sport car", True),
        ("red sports cars", "red car", False),
        ("carpet", "car", False),
        ("car", "red car", False),
        ("my dog's ear", "dog", True),
        ("the dogs' ears", "dog", True),
        ("cars, trucks", "car", True),
        ("fire-trucks", "fire truck", True),
        ("car", "", False),
        ("", "", False),
    ],
)
def test_contained_words(text: str, part: str, expected: bool) -> None:
    assert contains_words(text, part) is expected


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_can_be_compared(first: str, second: str) -> None:
    assert same_words(first, first)
    assert same_words(first, second) == same_words(second, first)
    if same_words(first, second) and contains_words(first, first):
        assert contains_words(first, second)


@pytest.mark.parametrize("name", common_names(), ids=lambda name: name.name)
def test_common_names_equal_their_plurals(name: CommonName) -> None:
    words = name.name
    last = words.split()[-1]
    for form in word_forms(last):
        assert same_words(words, words.removesuffix(last) + form)
    assert same_words(words, words + "s")


def words_with_irregular_plurals() -> set[str]:
    """Those of inflect's tables, which hold what English has of them, and those of the common names."""
    # Here, so that collecting tests does not wait for it.
    import inflect

    tables = [table for name, table in vars(inflect).items() if name.startswith(("pl_sb", "si_sb"))]
    pairs = [word for table in tables if isinstance(table, dict) for pair in table.items() for word in pair]
    lists = [word for table in tables if isinstance(table, list | tuple | set) for word in table]
    known = {word for name in common_names() for word in name.name.split()}
    texts = [text for text in (*pairs, *lists) if isinstance(text, str)]
    parts = known.union(*(text.lower().split("|") for text in texts))
    return {word for word in parts if word.isascii() and word.isalpha() and len(word) > 1}


def test_a_word_that_may_not_be_a_form_is_none() -> None:
    """What is told without inflect must be what inflect would say."""
    words = words_with_irregular_plurals()
    assert len(words) > 1000
    for word in words:
        forms = [form for form in word_forms(word) if form[0] == word[0]]
        assert all(_may_be_forms(one, other) for one in forms for other in forms), word


def test_inflect_is_imported_only_when_a_word_may_be_a_plural() -> None:
    code = (
        "import sys; from tcl_core.vocabulary.common_names import common_names, related; "
        "[related(name, label) for name in common_names() for label in ('cat', 'sofa', 'traffic light')]; "
        "print('inflect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
