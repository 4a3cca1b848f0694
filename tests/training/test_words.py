"""What captions name, found in them, is what the program that makes them knows."""

from __future__ import annotations

import pytest

from tests.training.tiny_playground import TRUTH
from training.playground.data import captions_of, draw_image
from training.playground.recipe import RECIPE
from training.playground.words import Reader, find_words


def test_a_small_language() -> None:
    """Words of no world: which is what follows from their places alone."""
    captions = []
    for number in range(600):
        thing, other = (("blick", "blicket"), ("dax", "daxen"), ("fep", "fepp"))[number % 3]
        color, size = ("gorm", "snarp")[number // 3 % 2], ("wug", "zib")[number // 6 % 2]
        # Colors are said twice as often as sizes.
        captions.append(
            [f"a {thing}", f"a {size} {color} {thing}", f"look at a {color} {other}", "murk", "a lot of murk"]
        )
    words = find_words(captions)
    assert words.things == {"blick": ("blicket",), "dax": ("daxen",), "fep": ("fepp",)}
    assert (words.stuff, words.colors, words.modifiers) == (("murk",), ("gorm", "snarp"), ("wug", "zib"))
    assert words.names == ("blick", "dax", "fep", "murk")


def test_captions_that_name_nothing() -> None:
    with pytest.raises(ValueError, match="name no thing with a modifier"):
        find_words([["grass"] * 10])


@pytest.mark.slow
def test_found_words_are_the_truth_on_the_recipes_captions() -> None:
    """On half the images that the recipe reads."""
    captions = []
    for images in RECIPE.image_sets():
        for index in range(RECIPE.read_images // 2):
            captions.append(captions_of(images, index, draw_image(images, index)[1]))
    assert find_words(captions) == TRUTH


@pytest.mark.slow
def test_what_is_read_of_an_image_is_what_it_shows() -> None:
    """Nothing that is not there, and most of what is: captions need not say the color of everything."""
    reader, names, colors = Reader(TRUTH), list(TRUTH.things), TRUTH.colors
    for images in RECIPE.image_sets():
        read = shown = 0
        for index in range(150):
            scene = draw_image(images, index)[1]
            found = {
                (names[thing], colors[color]) for thing, color in reader.colored(captions_of(images, index, scene))
            }
            there = {(thing.kind, thing.color) for thing in scene.objects}
            assert found <= there
            read, shown = read + len(found), shown + len(there)
        assert read > 0.85 * shown
