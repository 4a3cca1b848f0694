"""How much each image of a batch counts as a negative of each caption, so that colors explain no bare names.

A fifth of the kind-color combinations never occurs. "A cup" is then never said of an image in which the cup is red,
but is a negative of every other red thing, and a contrastive loss learns red as evidence against cups: the commonest
error with combinations that were never seen. Negatives are therefore weighted such that colors are spread among them
as they are among the images that the caption fits.

This looks at the list of things that an image's captions are drawn from, kinds and colors, and never at places: more
than any one caption says, and nothing that none can say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tcl_core.playground import COLORS, KINDS, PATTERNS, SYNONYMS, Scene
from tcl_core.towers.tokenizer import split_words

__all__ = ["bare_kinds", "colors_met", "negative_weights"]

_KIND_OF = {
    word: number
    for number, kind in enumerate(KINDS)
    for name in (kind, *SYNONYMS.get(kind, ()))
    for word in (name, f"{name}s")
}
_COLOR_OF = {color: number for number, color in enumerate(COLORS)}


def colors_met(scenes: Iterable[Scene]) -> NDArray[np.bool_]:
    """Which kinds occur in which colors in what captions can say of some scenes; bool ``[kinds, colors]``."""
    met = np.zeros((len(KINDS), len(COLORS)), bool)
    for scene in scenes:
        for thing in scene.objects:
            met[_KIND_OF[thing.kind], _COLOR_OF[thing.color]] = True
    return met


@lru_cache(maxsize=1 << 16)
def bare_kinds(caption: str) -> tuple[int, ...]:
    """Places in ``KINDS`` of what a caption names without a color.

    Example:
        >>> [KINDS[number] for number in bare_kinds("a red striped cup next to a little sofa")]
        ['sofa']
    """
    found = []
    colored = False
    for word in split_words(caption):
        if word in _COLOR_OF:
            colored = True
        elif word in _KIND_OF:
            if not colored:
                found.append(_KIND_OF[word])
            colored = False
        elif word not in PATTERNS:
            colored = False
    return tuple(found)


def negative_weights(scenes: Sequence[Scene], captions: Sequence[str], met: NDArray[np.bool_]) -> Tensor:
    """Weights that spread colors among a caption's negatives as they are among the images it fits.

    Where "a cup" fits, one of the things, the cup, is sure to have a color that cups have, and the others have any
    color. The same is true of negatives when each counts by the share of its things that have such a color. Where a
    caption names two kinds without a color, their shares are multiplied, which is an approximation. A name with its
    color ("a red cup") is learned from all negatives.

    Args:
        scenes: B of them.
        captions: one for each, in their order.
        met: from `colors_met`.

    Returns:
        float32 ``[B, B]`` in ``[0, 1]``, images by captions; 1 on the diagonal.
    """
    shares = np.ones((len(scenes), len(KINDS)), np.float32)
    for row, scene in zip(shares, scenes, strict=True):
        if scene.objects:
            row[:] = met[:, [_COLOR_OF[thing.color] for thing in scene.objects]].mean(axis=1)
    weights = np.ones((len(scenes), len(captions)), np.float32)
    for number, text in enumerate(captions):
        for kind in bare_kinds(text):
            weights[:, number] *= shares[:, kind]
    np.fill_diagonal(weights, 1)
    return torch.from_numpy(weights)
