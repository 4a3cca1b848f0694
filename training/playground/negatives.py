"""How much each image of a batch counts as a negative of each caption, so that colors explain no bare names.

A fifth of the kind-color combinations never occurs. "A cup" is then never said of an image in which the cup is red,
but is a negative of every other red thing, and a contrastive loss learns red as evidence against cups: the commonest
error with combinations that were never seen. Negatives are therefore weighted such that colors are spread among them
as they are among the images that the caption fits.

Which things an image shows, and in which colors, is read in captions of it, see `training.playground.words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.playground.words import Reader

__all__ = ["Things", "colors_met", "negative_weights"]

Things = tuple[tuple[int, int], ...]
"""Things of an image with their colors, as places in the lists of `training.playground.words.Words`."""


def colors_met(images: Iterable[Things], reader: Reader) -> NDArray[np.bool_]:
    """Which things occur in which colors.

    Args:
        images: things of each.
        reader: that read them.

    Returns:
        bool ``[things, colors]``.
    """
    met = np.zeros((len(reader.words.things), len(reader.words.colors)), bool)
    for things in images:
        for thing, color in things:
            met[thing, color] = True
    return met


def negative_weights(
    images: Sequence[Things], captions: Sequence[str], met: NDArray[np.bool_], reader: Reader
) -> Tensor:
    """Weights that spread colors among a caption's negatives as they are among the images it fits.

    Where "a cup" fits, one of the things, the cup, is sure to have a color that cups have, and the others have any
    color. The same is true of negatives when each counts by the share of its things that have such a color. Where a
    caption names two kinds without a color, their shares are multiplied, which is an approximation. A name with its
    color ("a red cup") is learned from all negatives.

    Args:
        images: things of B images.
        captions: one for each, in their order.
        met: from `colors_met`.
        reader: of captions.

    Returns:
        float32 ``[B, B]`` in ``[0, 1]``, images by captions; 1 on the diagonal.
    """
    shares = np.ones((len(images), len(met)), np.float32)
    for row, things in zip(shares, images, strict=True):
        if things:
            row[:] = met[:, [color for _, color in things]].mean(axis=1)
    weights = np.ones((len(images), len(captions)), np.float32)
    for number, text in enumerate(captions):
        for thing in reader.bare(text):
            weights[:, number] *= shares[:, thing]
    np.fill_diagonal(weights, 1)
    return torch.from_numpy(weights)
