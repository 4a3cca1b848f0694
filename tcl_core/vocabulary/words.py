"""Names compared as words: grammatical number, letter case, hyphens and white space make no difference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect

__all__ = ["contains_singular", "contains_words", "same_words", "singular_contains", "word_forms"]

_SEPARATORS = re.compile(r"[\s_,;:/()&\u002d\u2010-\u2015]+")
_POSSESSIVE = re.compile(r"['\u2019]s?(?!\w)")

_SINGULAR_IN_S = frozenset(
    """
    abacus aegis albatross alias apparatus arthritis asbestos asparagus atlas axis basis bias bonus bus cactus campus
    canvas census chaos chassis chorus chrysalis circus citrus clematis corpus cosmos crisis crocus cumulus
    debris discus emphasis eucalyptus focus fungus gas genius genus gladiolus haggis hibiscus hippopotamus hummus ibis
    iris isthmus lens lotus marquis mantis minibus mucus narcissus nautilus news nexus oasis octopus omnibus
    opus pancreas papyrus pelvis penis platypus plus polis portcullis prospectus pus rhinoceros
    rhombus sassafras sarcophagus sinus status stimulus stylus surplus syllabus synopsis syphilis tennis terminus
    tetanus thermos thesis thesaurus torus trellis trolleybus tyrannosaurus uterus venus versus virus walrus
    """.split()
)
"""Singular words that end in one s. `inflect` takes some of them for plurals ("bus" for that of "bu")."""

_PLURAL_ONLY = frozenset(
    """
    binoculars clothes eyeglasses glasses goggles headphones jeans leggings overalls pajamas pants pliers scissors
    shears shorts stairs sunglasses tights trousers tweezers
    """.split()
)
"""Plurals that name one thing, so that templates make another plural of them ("pantss")."""


_SINGULAR_ENDINGS = {
    "s": ("",),
    "es": ("", "is"),
    "ies": ("y", "ey"),
    "ves": ("f", "fe"),
    "zes": ("", "ze"),
    "sses": ("s",),
    "zzes": ("z",),
    "ices": ("ex", "ix"),
    "men": ("man",),
    "feet": ("foot",),
    "teeth": ("tooth",),
    "geese": ("goose",),
    "ice": ("ouse", "ie"),
    "people": ("person",),
    "n": ("",),
    "en": ("",),
    "ren": ("",),
    "a": ("um", "on", "o", "us", ""),
    "ta": ("",),
    "as": ("an",),
    "ina": ("en",),
    "ita": ("ut",),
    "era": ("us",),
    "ora": ("us",),
    "odes": ("us",),
    "ntes": ("s",),
    "ethren": ("other",),
    "ia": ("e", "ium", "ion"),
    "i": ("us", "o", ""),
    "ae": ("a",),
    "e": ("",),
    "im": ("",),
    "x": ("",),
}
"""Endings of plurals, and those of their singulars: more than English has, so that no pair is missed."""


def same_words(first: str, second: str) -> bool:
    """Whether two names are the same words.

    Letter case, Unicode form, white space, hyphens and grammatical number make no difference, nor does the possessive.

    Examples:
        >>> same_words("Traffic-Lights", "traffic light"), same_words("mice", "mouse"), same_words("skys", "sky")
        (True, True, True)
        >>> same_words("bus", "bu"), same_words("news", "new"), same_words("carpet", "car")
        (False, False, False)
    """
    one, other = _words(first), _words(second)
    return len(one) == len(other) and all(map(_same_word, one, other)) and bool(one or first == second)


def contains_words(text: str, part: str) -> bool:
    """Whether the words of one name are found side by side among those of another, compared as by `same_words`.

    Examples:
        >>> contains_words("red sports cars", "sports car"), contains_words("red sports cars", "red car")
        (True, False)
        >>> contains_words("carpet", "car")
        False
    """
    return _holds_run(_words(text), _words(part), _same_word)


def contains_singular(text: str, part: str) -> bool:
    """`contains_words` for a part whose words are singular, which spares their plurals: quick for many parts.

    Examples:
        >>> contains_singular("red sports cars", "sports car"), contains_singular("red sports cars", "red car")
        (True, False)
    """
    return _holds_run(_words(text), _words(part), _is_form_of)


def singular_contains(text: str, part: str) -> bool:
    """`contains_words` for a text whose words are singular, which spares their plurals: quick for many texts.

    Examples:
        >>> singular_contains("traffic light", "lights"), singular_contains("traffic light", "cars")
        (True, False)
    """
    return _holds_run(_words(text), _words(part), lambda word, other: _is_form_of(other, word))


def _holds_run(words: tuple[str, ...], run: tuple[str, ...], same: Callable[[str, str], bool]) -> bool:
    if not run:
        return False
    for start in range(len(words) - len(run) + 1):
        # Most pairs of words differ in their first letter, and then nothing else has to be asked.
        if words[start][0] == run[0][0] and all(map(same, words[start:], run)):
            return True
    return False


@lru_cache(maxsize=16384)
def word_forms(word: str) -> frozenset[str]:
    """A word, its singular and its plurals, also the plural that a template makes by adding an s.

    Args:
        word: one word in lower case.

    Example:
        >>> sorted(word_forms("knives"))
        ['knife', 'knifes', 'knives']
    """
    singular = _singular(word)
    plurals = {singular + "s"}
    if singular.isascii() and singular.isalpha():
        plurals.add(_engine().plural_noun(singular))
    return frozenset({word, singular, *(plural for plural in plurals if _is_plural(plural, singular))})


def _singular(word: str) -> str:
    """The singular of a word, or the word where it is none's plural."""
    if word in _SINGULAR_IN_S or not (word.isascii() and word.isalpha()):
        return word
    if word.endswith("ss"):
        if word[:-1] in _PLURAL_ONLY:
            return _singular(word[:-1])
        # "grasss" and "lenss" are what templates make of "grass" and "lens"; "glass" and "class" are no plurals.
        return word[:-1] if word.endswith("sss") or word[:-1] in _SINGULAR_IN_S else word
    return _engine().singular_noun(word) or word


def _is_plural(plural: str, singular: str) -> bool:
    """Whether a plural that was made by rule can be one: "buses" of "bus", but neither "bus" of "bu" nor "glass"."""
    if plural in _SINGULAR_IN_S:
        return plural == singular
    return not plural.endswith("ss") or singular.endswith("ss") or singular in _SINGULAR_IN_S


@lru_cache(maxsize=65536)
def _same_word(first: str, second: str) -> bool:
    if first == second:
        return True
    return _may_be_forms(first, second) and (second in word_forms(first) or first in word_forms(second))


def _is_form_of(word: str, singular: str) -> bool:
    return word == singular or (_may_be_forms(word, singular) and singular in word_forms(word))


def _may_be_forms(first: str, second: str) -> bool:
    """Whether two words can have one singular: nearly no pair can, and inflect takes two seconds to import."""
    return first[0] == second[0] and not _possible_singulars(first).isdisjoint(_possible_singulars(second))


@lru_cache(maxsize=16384)
def _possible_singulars(word: str) -> frozenset[str]:
    """The word, and what it can be the plural of by its ending."""
    return frozenset({word}).union(
        word[: -len(ending)] + singular
        for ending, singulars in _SINGULAR_ENDINGS.items()
        if word.endswith(ending)
        for singular in singulars
    )


@lru_cache(maxsize=16384)
def _words(text: str) -> tuple[str, ...]:
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple(filter(None, _SEPARATORS.split(_POSSESSIVE.sub("", plain))))


@cache
def _engine() -> inflect.engine:
    # Imported where it is needed: it takes longer than all the rest of this package's vocabulary.
    import inflect

    return inflect.engine()
