"""What captions name, found in the captions: things, background stuff, colors, and words for the same thing.

Nothing here knows a word of the world. It reads which words take which place:

* a word that makes a whole caption with an indefinite article ("a cup") is the name of a thing that can be counted;
* a word that is a whole caption by itself ("grass") is the name of stuff that cannot;
* words between an article and the name of a thing ("a small red striped cup") modify it, and what follows an article
  and such words ("a small red mug") is the name of a thing too, however rarely it is said alone;
* two modifiers that are never said of one thing together, though both are said often, exclude each other as red and
  blue do, and are of one class. The class that captions mention most is what is called colors here;
* two names of things are words for the same thing if most images that one of them is said of have captions with the
  other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

from tcl_core.towers.tokenizer import split_words

__all__ = ["Reader", "Words", "find_words"]

_INDEFINITE, _ARTICLES = ("a", "an"), ("a", "an", "the")
# A word that is met less often is left out: nothing can be said of it.
_LEAST = 5
# Said together less often than this, as a share of what chance would give: they exclude each other.
_APART = 0.05
# Chance must promise as many pairs before their absence means something.
_EXPECTED = 5.0
# Images of one word whose captions hold another, above which both are words for the same thing.
_SAME = 0.5


@dataclass(frozen=True)
class Words:
    """What captions name.

    Attributes:
        things: other words of each thing by its most frequent one, both sorted.
        stuff: names of background stuff, sorted.
        colors: the modifiers that captions mention most, sorted.
        modifiers: all other words in front of a thing's name, sorted.
    """

    things: Mapping[str, tuple[str, ...]]
    stuff: tuple[str, ...]
    colors: tuple[str, ...]
    modifiers: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One for each thing, and all stuff."""
        return (*self.things, *self.stuff)


def find_words(captions: Iterable[Sequence[str]]) -> Words:
    """Read captions.

    Args:
        captions: those of each image.

    Returns:
        What they name.

    Raises:
        ValueError: they name nothing.
    """
    images = [[tuple(split_words(text)) for text in texts] for texts in captions]
    whole = Counter(words for texts in images for words in texts if len(words) <= 2)
    counted = {
        words[-1]: sum(whole[article, words[-1]] for article in _INDEFINITE)
        for words in whole
        if len(words) == 2 and words[0] in _INDEFINITE
    }
    nouns = {word for word, times in counted.items() if times >= _LEAST}
    nouns |= _behind_modifiers(images, nouns)
    stuff = {words[0] for words, times in whole.items() if len(words) == 1 and times >= _LEAST} - nouns
    phrases = [phrase for texts in images for words in texts for phrase in _phrases(words, nouns)]
    if not nouns or not any(phrases):
        raise ValueError("the captions name no thing with a modifier, so that no colors can be found in them")
    said = Counter(word for phrase in phrases for word in set(phrase))
    classes = _classes(phrases, {word for word, times in said.items() if times >= _LEAST})
    colors = max(classes, key=lambda words: (sum(said[word] for word in words), sorted(words)))
    return Words(
        things=_things(images, nouns),
        stuff=tuple(sorted(stuff)),
        colors=tuple(sorted(colors)),
        modifiers=tuple(sorted(set().union(*classes) - colors)),
    )


def _phrases(words: Sequence[str], nouns: set[str]) -> Iterator[tuple[str, ...]]:
    """What stands between an article and the name of a thing."""
    between: list[str] | None = None
    for word in words:
        if word in _ARTICLES:
            between = []
        elif between is not None and word in nouns:
            yield tuple(between)
            between = None
        elif between is not None:
            between.append(word)


def _behind_modifiers(images: Iterable[Iterable[Sequence[str]]], nouns: set[str]) -> set[str]:
    """What often follows an article and words that modify things elsewhere."""
    texts = [words for captions in images for words in captions]
    said = Counter(word for words in texts for phrase in _phrases(words, nouns) for word in phrase)
    modifiers = {word for word, times in said.items() if times >= _LEAST} - nouns
    found: Counter[str] = Counter()
    for words in texts:
        inside = False
        for before, word in pairwise(words):
            if word in modifiers:
                inside = inside or before in _ARTICLES
            elif inside:
                found[word] += 1
                inside = False
    return {word for word, times in found.items() if times >= _LEAST}


def _classes(phrases: Iterable[Sequence[str]], words: set[str]) -> list[set[str]]:
    """Modifiers that exclude each other, put together: first those of whose exclusion there is most evidence.

    Counts of what is together already are added up, so that one pair that is missing by chance joins no classes.
    """
    modified = [set(phrase) & words for phrase in phrases if phrase]
    alone = Counter(word for phrase in modified for word in phrase)
    together = Counter(frozenset(pair) for phrase in modified for pair in combinations(phrase, 2))
    classes = [{word} for word in sorted(words)]

    def exclusion(one: set[str], other: set[str]) -> tuple[float, float]:
        pairs = [(first, second) for first in one for second in other]
        expected = sum(alone[first] * alone[second] for first, second in pairs) / len(modified)
        met = sum(together[frozenset(pair)] for pair in pairs)
        return (met / expected if expected >= _EXPECTED else 1.0), -expected

    while len(classes) > 1:
        one, other = min(combinations(classes, 2), key=lambda pair: exclusion(*pair))
        if exclusion(one, other)[0] >= _APART:
            break
        classes = [found for found in classes if found not in (one, other)] + [one | other]
    return classes


def _things(images: Iterable[Iterable[Sequence[str]]], nouns: set[str]) -> dict[str, tuple[str, ...]]:
    """Names of things with their other words, by the company that they keep."""
    said: Counter[str] = Counter()
    of: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    for texts in images:
        found = Counter(word for words in texts for word in words if word in nouns)
        said.update(found)
        of.update(found.keys())
        both.update(combinations(sorted(found), 2))
    links = [pair for pair, times in both.items() if times > _SAME * min(of[pair[0]], of[pair[1]])]
    groups = [sorted(group, key=lambda word: (-said[word], word)) for group in _groups(nouns, links)]
    return {group[0]: tuple(sorted(group[1:])) for group in sorted(groups)}


def _groups(members: Iterable[str], links: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Connected components."""
    group = {member: {member} for member in members}
    for one, other in links:
        if group[one] is not group[other]:
            group[one] |= group[other]
            for member in group[other]:
                group[member] = group[one]
    return list({id(found): found for found in group.values()}.values())


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads in a caption what it says of which thing.

    Attributes:
        words: what captions name.
    """

    words: Words
    _things: Mapping[str, int] = field(init=False, repr=False)
    _colors: Mapping[str, int] = field(init=False, repr=False)
    _others: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Make the tables in which words are looked up."""
        things = {}
        for number, (name, others) in enumerate(self.words.things.items()):
            for word in (name, *others):
                things[word] = number
                # Templates have plurals.
                things.setdefault(f"{word}s", number)
        object.__setattr__(self, "_things", things)
        object.__setattr__(self, "_colors", {color: number for number, color in enumerate(self.words.colors)})
        object.__setattr__(self, "_others", frozenset(self.words.modifiers))

    def mentions(self, caption: str) -> list[tuple[int, int | None]]:
        """Things in their order, each with its color or, where the caption does not say it, nothing.

        Example:
            >>> words = Words({"cup": ("mug",), "sofa": ()}, ("grass",), ("blue", "red"), ("little", "striped"))
            >>> Reader(words).mentions("a red striped mug next to a little sofa on grass")
            [(0, 1), (1, None)]
        """
        found: list[tuple[int, int | None]] = []
        color: int | None = None
        for word in split_words(caption):
            if word in self._colors:
                color = self._colors[word]
            elif word in self._things:
                found.append((self._things[word], color))
                color = None
            elif word not in self._others:
                color = None
        return found

    def colored(self, captions: Iterable[str]) -> tuple[tuple[int, int], ...]:
        """Things with their colors that any of an image's captions says, each once, sorted."""
        return tuple(
            sorted({(thing, color) for text in captions for thing, color in self.mentions(text) if color is not None})
        )

    def bare(self, caption: str) -> tuple[int, ...]:
        """Things that a caption names without a color.

        Example:
            >>> words = Words({"cup": (), "sofa": ()}, (), ("red",), ("little", "striped"))
            >>> Reader(words).bare("a red striped cup next to a little sofa")
            (1,)
        """
        return tuple(thing for thing, color in self.mentions(caption) if color is None)
