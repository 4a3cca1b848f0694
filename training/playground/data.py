"""Training images and captions of the playground, drawn once and kept in memory.

Only images and captions leave this module towards the losses; the label maps of training scenes are thrown
away as soon as a scene is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tcl_core.playground import Scene, caption, draw_scene, scene_rng
from tcl_core.towers.tokenizer import Tokenizer
from training.playground.negatives import colors_met, negative_weights

__all__ = ["WORKERS", "Batch", "Captions", "Images", "ImageSet", "draw_image", "draw_images", "normalize"]

WORKERS = 2
"""Processes that draw."""

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
    """

    count: int
    size: int
    objects: tuple[int, int]
    radius: tuple[float, float]
    plain: float
    seed: int


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
    """Drawn images and what captions may say about them.

    Attributes:
        pixels: uint8 ``[N, S, S, 3]``.
        scenes: one scene an image, without its label map.
    """

    pixels: NDArray[np.uint8]
    scenes: list[Scene] = field(repr=False)

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
        negatives = [negative_weights(scenes, part, self.met) for part in texts] if captions.balanced else None
        return Batch(normalize(self.pixels[chosen]), [tokenizer(part) for part in texts], negatives)

    @cached_property
    def met(self) -> NDArray[np.bool_]:
        """Which kinds captions can name in which colors, bool ``[kinds, colors]``."""
        return colors_met(self.scenes)


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


@lru_cache(maxsize=2)
def draw_images(recipe: ImageSet, workers: int = WORKERS) -> Images:
    """Draw a set of training images.

    Args:
        recipe: what to draw.
        workers: processes.

    Returns:
        The images, in the order of their index whatever the number of workers; the last two sets are kept, because
        steps and stages share them.
    """
    images = np.empty((recipe.count, recipe.size, recipe.size, 3), np.uint8)
    scenes: list[Scene] = []
    with get_context("spawn").Pool(workers) as pool:
        drawn = pool.imap(partial(draw_image, recipe), range(recipe.count), chunksize=64)
        for index, (image, scene) in enumerate(tqdm(drawn, total=recipe.count, desc="drawing", mininterval=5)):
            images[index] = image
            scenes.append(scene)
    return Images(images, scenes)
