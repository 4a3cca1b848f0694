"""Training images and captions of the playground, drawn once and kept in memory.

Only images and captions leave this module; the label maps of training scenes are thrown away as soon as a scene is
drawn, and its list of objects is what captions are made from and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tcl_core.playground import Scene, caption, draw_scene, scene_rng
from tcl_core.towers.tokenizer import Tokenizer
from training.playground.negatives import Things, colors_met, negative_weights
from training.playground.words import Reader, Words, find_words
from training.processes import in_order

__all__ = [
    "CAPTION_STREAM",
    "DRAWN_TOGETHER",
    "WORKERS",
    "Batch",
    "Captions",
    "Images",
    "ImageSet",
    "captions_of",
    "draw_image",
    "draw_images",
    "draw_words",
    "normalize",
]

CAPTION_STREAM = 2
"""Of the captions that are read."""

WORKERS = 2
"""Processes that draw."""

DRAWN_TOGETHER = 64
"""Images that are sent to a process, and come back, together."""

_NO_LABELS = np.zeros((0, 0), np.int32)


@dataclass(frozen=True)
class ImageSet:
    """A recipe for one set of training images.

    Attributes:
        count: number of images.
        size: side of the square images in pixels.
        objects: smallest and largest number of objects.
        radius: smallest and largest half side of an object, in pixels.
        plain: probability of a plain studio backdrop.
        seed: first seed; images are the same for the same seed.
        captions: captions of each image that are read to know what it shows, see ``training.playground.words``.
    """

    count: int
    size: int
    objects: tuple[int, int]
    radius: tuple[float, float]
    plain: float
    seed: int
    captions: int = 16


@dataclass(frozen=True)
class Captions:
    """How captions are drawn.

    Attributes:
        templates: prompt templates that captions use now and then.
        per_image: captions per image and step.
        brief: share of captions that name one object and say nothing else.
        balanced: whether negatives are weighted, see ``training.playground.negatives``.
    """

    templates: tuple[str, ...]
    per_image: int = 1
    brief: float = 0.2
    balanced: bool = False


class Batch(NamedTuple):
    """What a step sees.

    Attributes:
        images: float32 ``[B, 3, S, S]``, normalized.
        captions: token ids int64 ``[B, L]``, one tensor for each caption of an image.
        negatives: float32 ``[B, B]`` for each of ``captions``, images by captions: how often each pair counts, from
            0 to 1, and 1 for those that match; ``None`` counts each once.
    """

    images: Tensor
    captions: list[Tensor]
    negatives: list[Tensor] | None


@dataclass
class Images:
    """Drawn images and what captions say about them.

    Attributes:
        pixels: uint8 ``[N, S, S, 3]``.
        scenes: one scene an image, without its label map; captions are made from it.
        things: of each image, the things and colors that its captions name together.
        reader: of captions.
    """

    pixels: NDArray[np.uint8]
    scenes: list[Scene] = field(repr=False)
    things: list[Things] = field(repr=False)
    reader: Reader

    def __len__(self) -> int:
        return len(self.scenes)

    def batch(self, rng: np.random.Generator, size: int, tokenizer: Tokenizer, captions: Captions) -> Batch:
        """Draw a batch with fresh captions.

        Args:
            rng: source of randomness.
            size: batch size B.
            tokenizer: turns captions into ids.
            captions: how captions are drawn.

        Returns:
            Images, captions and, if asked for, the weights of the negatives.
        """
        chosen = rng.choice(len(self), size, replace=False)
        scenes = [self.scenes[int(i)] for i in chosen]
        texts = [
            [caption(rng, scene, captions.templates, captions.brief) for scene in scenes]
            for _ in range(captions.per_image)
        ]
        negatives = None
        if captions.balanced:
            things = [self.things[int(i)] for i in chosen]
            negatives = [negative_weights(things, part, self.met, self.reader) for part in texts]
        return Batch(normalize(self.pixels[chosen]), [tokenizer(part) for part in texts], negatives)

    def first(self, count: int) -> Images:
        """The first images."""
        return Images(self.pixels[:count], self.scenes[:count], self.things[:count], self.reader)

    @cached_property
    def met(self) -> NDArray[np.bool_]:
        """Which things captions name in which colors, bool ``[things, colors]``."""
        return colors_met(self.things, self.reader)


def normalize(images: NDArray[np.uint8]) -> Tensor:
    """uint8 ``[B, H, W, 3]`` to float32 ``[B, 3, H, W]`` in ``[-1, 1]`` (mean and deviation 0.5)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def draw_image(recipe: ImageSet, index: int) -> tuple[NDArray[np.uint8], Scene]:
    """Draw one image of a set; returns its pixels uint8 ``[S, S, 3]`` and its scene without the label map."""
    scene = draw_scene(
        scene_rng(recipe.seed, index),
        (recipe.size, recipe.size),
        recipe.objects,
        recipe.radius,
        combinations="seen",
        plain=recipe.plain,
    )
    return scene.image, Scene(scene.image[:1], _NO_LABELS, scene.objects, scene.stuff)


def captions_of(recipe: ImageSet, index: int, scene: Scene) -> list[str]:
    """The captions of an image that are read."""
    rng = scene_rng(recipe.seed, index, CAPTION_STREAM)
    return [caption(rng, scene, (), 0.1) for _ in range(recipe.captions)]


def _described(recipe: ImageSet, reader: Reader, index: int) -> tuple[NDArray[np.uint8], Scene, Things]:
    pixels, scene = draw_image(recipe, index)
    return pixels, scene, reader.colored(captions_of(recipe, index, scene))


def _said(recipe: ImageSet, index: int) -> list[str]:
    return captions_of(recipe, index, draw_image(recipe, index)[1])


def _in_processes(
    what: Callable[[int], Any], count: int, workers: int, title: str, check: Callable[[], object]
) -> Iterator[Any]:
    """Results of a function for each number, in their order; ``check`` may raise an error between them.

    Without workers they are made in this process.
    """
    with closing(in_order(what, range(count), workers, DRAWN_TOGETHER)) as made:
        for each in tqdm(made, total=count, desc=title, mininterval=5, disable=None if workers else True):
            check()
            yield each


def draw_images(
    recipe: ImageSet, reader: Reader, workers: int = WORKERS, check: Callable[[], object] = lambda: None
) -> Images:
    """Draw a set of training images.

    Args:
        recipe: what to draw.
        reader: of its captions.
        workers: processes; 0 draws in this one.
        check: called after each image; what it raises ends the drawing.

    Returns:
        The images, in the order of their index whatever the number of workers.
    """
    images = np.empty((recipe.count, recipe.size, recipe.size, 3), np.uint8)
    scenes: list[Scene] = []
    things: list[Things] = []
    drawn = _in_processes(partial(_described, recipe, reader), recipe.count, workers, "drawing", check)
    for index, (image, scene, found) in enumerate(drawn):
        images[index] = image
        scenes.append(scene)
        things.append(found)
    return Images(images, scenes, things, reader)


def draw_words(
    sets: tuple[ImageSet, ...], count: int, workers: int = WORKERS, check: Callable[[], object] = lambda: None
) -> Words:
    """Find what captions name, in the captions of the first images of some sets.

    Args:
        sets: of training images.
        count: images of each.
        workers: processes; 0 draws in this one.
        check: called after each image; what it raises ends the drawing.

    Raises:
        ValueError: the captions name nothing.
    """
    captions: list[list[str]] = []
    for recipe in sets:
        captions += _in_processes(partial(_said, recipe), min(count, recipe.count), workers, "reading captions", check)
    return find_words(captions)
