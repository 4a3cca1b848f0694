"""After training: which directions say colours, so that prompts without one can do without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.debiasing import attribute_axes
from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.losses import pool_by_masks
from tcl_core.playground import COLOURS
from tcl_core.tokenizer import Tokenizer
from training.playground.data import Pictures, PictureSet, draw_pictures, normalise

__all__ = ["colour_axes", "grounded"]

_BATCH = 64


@torch.no_grad()
def grounded(tcl: TCL, tokenizer: Tokenizer, pictures: Pictures) -> Iterator[tuple[str, str, Tensor]]:
    """What the grounder makes of the things that captions name, each within the mask that the model draws itself.

    Args:
        tcl: the trained model.
        tokenizer: of its CLIP.
        pictures: with what their captions may say.

    Yields:
        Colour, kind, and float32 ``[E]``: the mean of the unit embeddings where the mask of "a red cup" reaches half of
        its height.
    """
    for first in range(0, len(pictures), _BATCH):
        scenes = pictures.scenes[first : first + _BATCH]
        embedded = tcl.embed_windows(normalise(pictures.images[first : first + _BATCH])).image_emb
        for scene, image_emb in zip(scenes, embedded, strict=True):
            if not scene.objects:
                continue
            text = tcl.clip.encode_text(tokenizer([f"a {thing.colour} {thing.kind}" for thing in scene.objects]))
            masks = tcl.masker.sim2mask(image_emb[None], F.normalize(text, dim=-1)).sigmoid()
            inside = (masks >= masks.amax(dim=(2, 3), keepdim=True) / 2).float()
            means = pool_by_masks(image_emb[None], inside)[0]
            for thing, mean in zip(scene.objects, means, strict=True):
                yield thing.colour, thing.kind, mean


def colour_axes(tcl: TCL, tokenizer: Tokenizer, pictures: PictureSet, examples: int, count: int) -> Tensor:
    """The strongest directions in which things of one kind differ with their colour, as the grounder sees them.

    Held-out combinations take no part, because they are not among the training pictures.

    Args:
        tcl: the trained model.
        tokenizer: of its CLIP.
        pictures: training pictures.
        examples: how many of them to look at.
        count: number of directions A, fewer than there are colours.

    Returns:
        float32 ``[A, E]``, orthonormal rows, see :func:`tcl_core.debiasing.attribute_axes`.

    Raises:
        ValueError: a colour is in none of the pictures, or ``count`` is too large.
    """
    found: dict[str, dict[str, list[Tensor]]] = {colour: defaultdict(list) for colour in COLOURS}
    for colour, kind, embedding in grounded(tcl, tokenizer, draw_pictures(replace(pictures, count=examples))):
        found[colour][kind].append(embedding)
    if missing := [colour for colour, kinds in found.items() if not kinds]:
        raise ValueError(f"none of the {examples} training pictures shows a thing in {', '.join(missing)}")
    coloured = {
        colour: {kind: torch.stack(each).mean(dim=0) for kind, each in kinds.items()} for colour, kinds in found.items()
    }
    of_kind: dict[str, list[Tensor]] = defaultdict(list)
    for kinds in coloured.values():
        for kind, mean in kinds.items():
            of_kind[kind].append(mean)
    plain = {kind: torch.stack(means).mean(dim=0) for kind, means in of_kind.items()}
    return attribute_axes(coloured, plain, count)
