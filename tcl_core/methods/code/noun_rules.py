"""Nouns of English captions without a tagger: closed classes of words, endings, and the place in a phrase.

A word is a noun unless a list or an ending says otherwise; a word that could be a verb or an adjective is one where it
ends a phrase that an article began ("the running dog" but "a painting"). Captions are short and plain, so that this
goes far; it does not know verbs outside its list.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import yaml

__all__ = ["nouns_by_rules"]

_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|[^\w\s]|\w+")
_POINTING = frozenset({"this", "that", "these", "those", "which", "what"})


@cache
def _words() -> dict[str, frozenset[str]]:
    text = resources.files("tcl_core.methods.code").joinpath("noun_rules.yaml").read_text(encoding="utf-8")
    return {kind: frozenset(words.split()) for kind, words in yaml.safe_load(text).items()}


def nouns_by_rules(caption: str) -> list[str]:
    """Nouns of a caption, in its order and spelling.

    Example:
        >>> nouns_by_rules("A brown dog runs on the green grass near a wooden fence.")
        ['dog', 'grass', 'fence']
        >>> nouns_by_rules("a painting of two running horses")
        ['painting', 'horses']
    """
    words = _TOKEN.findall(caption)
    kinds = [_kind(word.lower()) for word in words]
    articles, found, in_phrase = _words()["articles"], [], False
    for place, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        ends_phrase = place + 1 == len(words) or kinds[place + 1] in ("function", "sign")
        # "The train stops": a finite verb follows what it is said of.
        ends_phrase = ends_phrase or (kinds[place + 1] == "verb" and words[place + 1].endswith("s"))
        # "This shows": what points to a thing stands for it before a finite verb.
        if kind == "verb" and place and word.endswith("s") and words[place - 1].lower() in _POINTING:
            in_phrase = False
        if kind == "noun" or (kind in ("adjective", "verb") and in_phrase and ends_phrase):
            found.append(word)
        if kind in ("function", "sign"):
            in_phrase = word.lower() in articles
        elif kind == "noun" or ends_phrase:
            in_phrase = False
    return found


def _kind(word: str) -> str:
    """``function``, ``sign``, ``adjective``, ``verb`` or ``noun``, of a lower-case word by itself."""
    if not word[0].isalpha():
        return "adjective" if word[0].isdigit() else "sign"
    lists = _words()
    if word in lists["articles"] or word in lists["function_words"]:
        return "function"
    if word in lists["adjectives"] or word in lists["numbers"]:
        return "adjective"
    if word in lists["nouns"] or word.endswith("ings"):
        return "noun"
    if word in lists["verb_forms"] or _is_verb(word):
        return "verb"
    if word.endswith("ing") and len(word) > 5:
        return "verb"
    if word.endswith("ed") and len(word) > 4:
        return "verb"
    if word.endswith("ly") and len(word) > 4:
        return "function"
    return "noun"


def _is_verb(word: str) -> bool:
    """Whether a word is a listed verb, or its third person."""
    forms = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return any(form in _words()["verbs"] for form in forms)
