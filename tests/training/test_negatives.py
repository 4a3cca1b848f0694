"""Colors are spread among the negatives of a bare name as among the images that it fits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tcl_core.playground import COLORS, KINDS, Placed, Scene, is_held_out
from training.playground.negatives import bare_kinds, colors_met, negative_weights


def _scene(*things: str) -> Scene:
    pairs = [thing.split() for thing in things]
    placed = tuple(Placed(kind, color, "plain", 8.0, (8.0, 8.0), None, 1.0) for color, kind in pairs)
    return Scene(np.zeros((1, 1, 3), np.uint8), np.zeros((0, 0), np.int32), placed, ())


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
    assert [KINDS[number] for number in bare_kinds(caption)] == expected


def test_what_was_met_is_what_is_not_held_out() -> None:
    scenes = [_scene(f"{color} {kind}") for kind in KINDS for color in COLORS if not is_held_out(kind, color)]
    met = colors_met(scenes)
    expected = [[not is_held_out(kind, color) for color in COLORS] for kind in KINDS]
    assert np.array_equal(met, expected)


def test_an_image_counts_by_the_share_of_its_things_in_a_known_color() -> None:
    scenes = [_scene("red cup"), _scene("blue cat"), _scene("red sofa", "blue cat"), _scene()]
    met = colors_met([_scene("red cup", "red sofa", "blue sofa", "blue cat")])
    captions = ["a cup", "a blue cat", "a sofa and a cat", "grass"]
    weights = negative_weights(scenes, captions, met)
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
    met = colors_met(scenes)
    weighted, plain = [], []
    for kind in KINDS[::3]:
        fits = [any(thing.kind == kind for thing in scene.objects) for scene in scenes]
        captions = [f"a {kind}", *["grass"] * (len(scenes) - 1)]
        column = negative_weights(scenes, captions, met)[:, 0].numpy()
        there = _spread(scenes, [float(fit) for fit in fits])
        for values, weights in ((weighted, column), (plain, np.ones(len(scenes)))):
            elsewhere = _spread(scenes, [weight * (not fit) for weight, fit in zip(weights, fits, strict=True)])
            held = [color for color in COLORS if is_held_out(kind, color)]
            values.append(np.mean([elsewhere[color] / there[color] for color in held]))
    assert np.mean(weighted) == pytest.approx(1, abs=0.15)
    assert np.mean(plain) > 1.4


def _spread(scenes: list[Scene], weights: list[float]) -> Counter[str]:
    counted: Counter[str] = Counter()
    total = sum(weights)
    for scene, weight in zip(scenes, weights, strict=True):
        for thing in scene.objects:
            counted[thing.color] += weight / total
    return counted
