"""After training: which directions say colors, so that prompts without one can do without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.losses import pool_by_masks
from tcl_core.segmentation.text_debiasing import attribute_axes
from tcl_core.towers.tokenizer import Tokenizer
from training.playground.data import Images, normalize

__all__ = ["color_axes", "grounded"]

_BATCH = 64


@torch.no_grad()
def grounded(tcl: TCL, tokenizer: Tokenizer, images: Images) -> Iterator[tuple[str, str, Tensor]]:
    """What the grounder makes of the things that captions name with a color, each within the mask that the model draws.

    Args:
        tcl: the trained model.
        tokenizer: of its CLIP.
        images: with what their captions say.

    Yields:
        Color, name of the thing, and float32 ``[E]``: the mean of the unit embeddings where the mask of "a red cup"
        reaches half of its height.
    """
    words = images.reader.words
    names = list(words.things)
    device = next(tcl.masker.parameters()).device
    for first in range(0, len(images), _BATCH):
        embedded = tcl.encode(normalize(images.pixels[first : first + _BATCH]).to(device)).image_emb
        for found, image_emb in zip(images.things[first : first + _BATCH], embedded, strict=True):
            if not found:
                continue
            pairs = [(words.colors[color], names[thing]) for thing, color in found]
            text = tcl.clip.encode_text(tokenizer([f"a {color} {thing}" for color, thing in pairs]).to(device))
            masks = tcl.masker.sim2mask(image_emb[None], F.normalize(text, dim=-1)).sigmoid()
            inside = (masks >= masks.amax(dim=(2, 3), keepdim=True) / 2).float()
            means = pool_by_masks(image_emb[None], inside)[0]
            for (color, thing), mean in zip(pairs, means, strict=True):
                yield color, thing, mean


def color_axes(tcl: TCL, tokenizer: Tokenizer, images: Images, count: int) -> Tensor:
    """The strongest directions in which things of one kind differ with their color, as the grounder sees them.

    Held-out combinations take no part, because they are not among the training images.

    Args:
        tcl: the trained model.
        tokenizer: of its CLIP.
        images: training images to look at.
        count: number of directions A, fewer than there are colors.

    Returns:
        float32 ``[A, E]``, orthonormal rows, see :func:`tcl_core.segmentation.text_debiasing.attribute_axes`.

    Raises:
        ValueError: a color is in none of the images, or ``count`` is too large.
    """
    found: dict[str, dict[str, list[Tensor]]] = {color: defaultdict(list) for color in images.reader.words.colors}
    for color, kind, embedding in grounded(tcl, tokenizer, images):
        found[color][kind].append(embedding)
    if missing := [color for color, kinds in found.items() if not kinds]:
        raise ValueError(f"none of the {len(images)} training images shows a thing in {', '.join(missing)}")
    colored = {
        color: {kind: torch.stack(each).mean(dim=0) for kind, each in kinds.items()} for color, kinds in found.items()
    }
    of_kind: dict[str, list[Tensor]] = defaultdict(list)
    for kinds in colored.values():
        for kind, mean in kinds.items():
            of_kind[kind].append(mean)
    plain = {kind: torch.stack(means).mean(dim=0) for kind, means in of_kind.items()}
    return attribute_axes(colored, plain, count)
