"""Captions in varied natural language that mention only some of what a scene holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcl_core.playground.scenes import Placed, Scene
from tcl_core.playground.world import COLORS, KINDS, PATTERNS, STUFF, STUFF_NAMES, SYNONYMS
from tcl_core.towers.tokenizer import split_words

__all__ = ["caption", "caption_words"]

_FRAMES = (
    "{}",
    "{}.",
    "a picture of {}",
    "a photo of {}",
    "a drawing of {}",
    "there is {}",
    "here we see {}",
    "look at {}",
    "an illustration with {}",
    "this shows {}",
    "i like {}",
    "{} in a scene",
)
_JOINS = ("{} and {}", "{} next to {}", "{} beside {}", "{} with {}", "{} near {}", "{} together with {}")
_STUFF_FRAMES = ("{}", "a photo of {}", "some {}", "a lot of {}", "a background of {}", "{} everywhere", "only {}")
_SMALL, _LARGE = ("small", "little", "tiny"), ("large", "big", "huge")
_SIDES = ("on the left", "on the right")


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _object_phrase(rng: np.random.Generator, thing: Placed, width: int) -> str:
    words: list[str] = []
    # Half the mentions are bare: where colors are always said, they explain a caption and shapes are learned late.
    if rng.random() < 0.5:
        if rng.random() < 0.2:
            words.append(_pick(rng, _SMALL if thing.size < 18 else _LARGE))
        if rng.random() < 0.8:
            words.append(thing.color)
        if thing.pattern != PATTERNS[0] and rng.random() < 0.5:
            words.append(thing.pattern)
    names = (thing.kind, *SYNONYMS.get(thing.kind, ()))
    words.append(_pick(rng, names) if rng.random() < 0.4 else thing.kind)
    phrase = " ".join(words)
    article = "the" if rng.random() < 0.12 else ("an" if phrase[0] in "aeiou" else "a")
    side = f" {_SIDES[int(thing.center[0] > width / 2)]}" if rng.random() < 0.06 else ""
    return f"{article} {phrase}{side}"


def caption(rng: np.random.Generator, scene: Scene, templates: Sequence[str] = (), brief: float = 0.2) -> str:
    """One caption of a scene; it mentions one to three of the objects, or only the background.

    Args:
        rng: source of randomness.
        scene: the scene.
        templates: prompt templates with a ``{}`` that are used now and then around a bare name, so that a model
            trained on the captions knows their words.
        brief: share of captions that name one object and say nothing else ("a cup").

    Returns:
        A caption in lower case words; it never names anything that is not in the scene.
    """
    if not scene.objects or (scene.stuff and rng.random() < 0.2):
        if not scene.stuff:
            return "an empty picture"
        name = scene.stuff[int(rng.integers(len(scene.stuff)))]
        return _pick(rng, templates if len(templates) and rng.random() < 0.3 else _STUFF_FRAMES).format(name)
    order = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    if rng.random() < brief:
        return f"a {order[0].kind}"
    if len(templates) and rng.random() < 0.25:
        thing = order[0]
        words = thing.kind if rng.random() < 0.6 else f"{thing.color} {thing.kind}"
        return _pick(rng, templates).format(words)
    count = min(len(order), int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])))
    width = scene.image.shape[1]
    phrase = _object_phrase(rng, order[count - 1], width)
    if order[count - 1].stuff is not None and rng.random() < 0.35:
        phrase = f"{phrase} {_pick(rng, STUFF[str(order[count - 1].stuff)])}"
    for thing in order[: count - 1]:
        phrase = _pick(rng, _JOINS).format(_object_phrase(rng, thing, width), phrase)
    return _pick(rng, _FRAMES).format(phrase)


def caption_words(templates: Sequence[str] = ()) -> tuple[str, ...]:
    """Every word that a caption can hold, sorted; the vocabulary of the playground's tokenizer.

    Args:
        templates: the templates given to ``caption``.

    Returns:
        Lower-case words of letters, digits and apostrophes.
    """
    texts: list[str] = [*_FRAMES, *_JOINS, *_STUFF_FRAMES, *_SMALL, *_LARGE, *_SIDES, *templates]
    texts += [*KINDS, *COLORS, *PATTERNS, *STUFF_NAMES, "a an the an empty picture"]
    texts += [word for words in SYNONYMS.values() for word in words]
    texts += [phrase for phrases in STUFF.values() for phrase in phrases]
    # "{}s" in a template makes a plural, which is a word of its own.
    plurals = [f"{name}s" for name in (*KINDS, *STUFF_NAMES, *(w for ws in SYNONYMS.values() for w in ws))]
    words = {word for text in [*texts, *plurals] for word in split_words(text.replace("{}", " "))}
    return tuple(sorted(words))
