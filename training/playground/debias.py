"""After training: which directions say colors, so that prompts without one can do without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.losses import pool_by_masks
from tcl_core.playground import COLORS
from tcl_core.segmentation.text_debiasing import attribute_axes
from tcl_core.towers.tokenizer import Tokenizer
from training.playground.data import Images, ImageSet, draw_images, normalize

__all__ = ["color_axes", "grounded"]

_BATCH = 64


@torch.no_grad()
def grounded(tcl: TCL, tokenizer: Tokenizer, images: Images) -> Iterator[tuple[str, str, Tensor]]:
    """What the grounder makes of the things that captions name, each within the mask that the model draws itself.

    Args:
        tcl: the trained model.
        tokenizer: of its CLIP.
        images: with what their captions may say.

    Yields:
        Color, kind, and float32 ``[E]``: the mean of the unit embeddings where the mask of "a red cup" reaches half of
        its height.
    """
    for first in range(0, len(images), _BATCH):
        scenes = images.scenes[first : first + _BATCH]
        embedded = tcl.encode(normalize(images.pixels[first : first + _BATCH])).image_emb
        for scene, image_emb in zip(scenes, embedded, strict=True):
            if not scene.objects:
                continue
            text = tcl.clip.encode_text(tokenizer([f"a {thing.color} {thing.kind}" for thing in scene.objects]))
            masks = tcl.masker.sim2mask(image_emb[None], F.normalize(text, dim=-1)).sigmoid()
            inside = (masks >= masks.amax(dim=(2, 3), keepdim=True) / 2).float()
            means = pool_by_masks(image_emb[None], inside)[0]
            for thing, mean in zip(scene.objects, means, strict=True):
                yield thing.color, thing.kind, mean


def color_axes(tcl: TCL, tokenizer: Tokenizer, images: ImageSet, examples: int, count: int) -> Tensor:
    """The strongest directions in which things of one kind differ with their color, as the grounder sees them.

    Held-out combinations take no part, because they are not among the training images.

    Args:
        tcl: the trained model.
        tokenizer: of its CLIP.
        images: training images.
        examples: how many of them to look at.
        count: number of directions A, fewer than there are colors.

    Returns:
        float32 ``[A, E]``, orthonormal rows, see :func:`tcl_core.segmentation.text_debiasing.attribute_axes`.

    Raises:
        ValueError: a color is in none of the images, or ``count`` is too large.
    """
    found: dict[str, dict[str, list[Tensor]]] = {color: defaultdict(list) for color in COLORS}
    for color, kind, embedding in grounded(tcl, tokenizer, draw_images(replace(images, count=examples))):
        found[color][kind].append(embedding)
    if missing := [color for color, kinds in found.items() if not kinds]:
        raise ValueError(f"none of the {examples} training images shows a thing in {', '.join(missing)}")
    colored = {
        color: {kind: torch.stack(each).mean(dim=0) for kind, each in kinds.items()} for color, kinds in found.items()
    }
    of_kind: dict[str, list[Tensor]] = defaultdict(list)
    for kinds in colored.values():
        for kind, mean in kinds.items():
            of_kind[kind].append(mean)
    plain = {kind: torch.stack(means).mean(dim=0) for kind, means in of_kind.items()}
    return attribute_axes(colored, plain, count)
