"""Everyday names that can compete with the labels of a user, and the words for which each of them steps aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import yaml

from tcl_core.vocabulary.words import contains_singular, same_words, singular_contains

__all__ = ["CommonName", "common_names", "common_names_version", "related"]


@dataclass(frozen=True)
class CommonName:
    """An everyday name of a thing or of stuff.

    Attributes:
        name: a noun in the singular, such as "traffic light".
        yields_to: synonyms, wider and narrower terms, parts and wholes, for which the name steps aside.
    """

    name: str
    yields_to: frozenset[str]


@cache
def common_names() -> tuple[CommonName, ...]:
    """The common names of the package, in the order of their file.

    >>> [name.name for name in common_names()][:4]
    ['person', 'child', 'dog', 'cat']
    """
    contents = _contents()
    return tuple(
        CommonName(name, frozenset(_flat([contents["yields_to"], group["yields_to"], words])))
        for group in contents["groups"].values()
        for name, words in group["names"].items()
    )


def common_names_version() -> int:
    """The version of the list; it changes with every change that can change a result."""
    return int(_contents()["version"])


def related(name: CommonName, prompt: str) -> bool:
    """Whether a common name has to step aside for the prompt of a user, whose pixels it could take otherwise.

    It does if one of the two contains the words of the other ("red cars" and "car", "tree" and "palm tree"), or if the
    prompt contains one of the words to which the name yields. Words of a set phrase do not count alone: no dog steps
    aside for "hot dog".

    Args:
        name: the common name.
        prompt: what the user asks for.

    Example:
        >>> sofa = CommonName("sofa", frozenset({"couch", "furniture"}))
        >>> [related(sofa, prompt) for prompt in ("sofas", "red couch", "chair")]
        [True, True, False]
    """
    if singular_contains(name.name, prompt):
        return True
    phrases = _compounds_in(prompt)
    return any(
        contains_singular(prompt, words)
        and not any(contains_singular(phrase, words) and not same_words(phrase, words) for phrase in phrases)
        for words in (name.name, *name.yields_to)
    )


@lru_cache(maxsize=4096)
def _compounds_in(prompt: str) -> tuple[str, ...]:
    return tuple(phrase for phrase in _contents()["compounds"] if contains_singular(prompt, phrase))


def _flat(words: list[Any]) -> Iterator[str]:
    """The words of a list that may hold lists: a list of the file is used again under its YAML anchor."""
    for word in words:
        if isinstance(word, list):
            yield from _flat(word)
        else:
            yield word


@cache
def _contents() -> dict[str, Any]:
    text = resources.files("tcl_core.vocabulary").joinpath("common_names.yaml").read_text(encoding="utf-8")
    contents: dict[str, Any] = yaml.safe_load(text)
    return contents
