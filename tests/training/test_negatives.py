"""Colors are spread among the negatives of a bare name as among the images that it fits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tcl_core.playground import COLORS, KINDS, is_held_out
from tests.training.tiny_playground import READER
from training.playground.negatives import Things, colors_met, negative_weights

NAMES, HUES = list(READER.words.things), list(READER.words.colors)


def _scene(*things: str) -> Things:
    pairs = [thing.split() for thing in things]
    return tuple((NAMES.index(kind), HUES.index(color)) for color, kind in pairs)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cup", ["cup"]),
        ("a red cup", []),
        ("a small red striped cup on the left and a mug.", ["cup"]),
        ("the couch beside a blue cat", ["sofa"]),
        ("the couch beside a spotted cat", ["sofa", "cat"]),
        ("a photo of many airplanes.", ["plane"]),
        ("a lot of grass", []),
        ("an empty image", []),
    ],
)
def test_what_a_caption_names_without_a_color(caption: str, expected: list[str]) -> None:
    assert [NAMES[number] for number in READER.bare(caption)] == expected


def test_what_was_met_is_what_is_not_held_out() -> None:
    scenes = [_scene(f"{color} {kind}") for kind in KINDS for color in COLORS if not is_held_out(kind, color)]
    met = colors_met(scenes, READER)
    expected = [[not is_held_out(kind, color) for color in HUES] for kind in NAMES]
    assert np.array_equal(met, expected)


def test_an_image_counts_by_the_share_of_its_things_in_a_known_color() -> None:
    scenes = [_scene("red cup"), _scene("blue cat"), _scene("red sofa", "blue cat"), _scene()]
    met = colors_met([_scene("red cup", "red sofa", "blue sofa", "blue cat")], READER)
    captions = ["a cup", "a blue cat", "a sofa and a cat", "grass"]
    weights = negative_weights(scenes, captions, met, READER)
    assert weights.tolist() == [
        [1, 1, 0, 1],
        [0, 1, 1, 1],
        [0.5, 1, 1, 1],
        [1, 1, 1, 1],
    ]


def test_colors_say_nothing_of_a_bare_name_any_more() -> None:
    """Among scenes of two things: how often a color occurs where a kind does, and where it does not."""
    rng = np.random.default_rng(0)
    pairs = [f"{color} {kind}" for kind in KINDS for color in COLORS if not is_held_out(kind, color)]
    scenes = [_scene(*rng.choice(pairs, 2)) for _ in range(3000)]
    met = colors_met(scenes, READER)
    weighted, plain = [], []
    for kind in KINDS[::3]:
        fits = [any(NAMES[thing] == kind for thing, _ in scene) for scene in scenes]
        captions = [f"a {kind}", *["grass"] * (len(scenes) - 1)]
        column = negative_weights(scenes, captions, met, READER)[:, 0].numpy()
        there = _spread(scenes, [float(fit) for fit in fits])
        for values, weights in ((weighted, column), (plain, np.ones(len(scenes)))):
            elsewhere = _spread(scenes, [weight * (not fit) for weight, fit in zip(weights, fits, strict=True)])
            held = [color for color in COLORS if is_held_out(kind, color)]
            values.append(np.mean([elsewhere[color] / there[color] for color in held]))
    assert np.mean(weighted) == pytest.approx(1, abs=0.15)
    assert np.mean(plain) > 1.4


def _spread(scenes: list[Things], weights: list[float]) -> Counter[str]:
    counted: Counter[str] = Counter()
    total = sum(weights)
    for scene, weight in zip(scenes, weights, strict=True):
        for _, color in scene:
            counted[HUES[color]] += weight / total
    return counted
