"""What a training step of CoDe works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tcl_core.methods.tcl.grounded_training import ComparedMasks, ImageBatch
from tcl_core.methods.tcl.losses import draw_noise

__all__ = ["Batch", "Compared", "Embeddings", "pair_noise"]


@dataclass(frozen=True)
class Batch(ImageBatch):
    """B images of one process with K nouns of each caption; the B x K pairs are counted image by image.

    Attributes:
        nouns: int64 ``[B, K, L]``, each noun as a text of its own.
        templates: int64 ``[B, K, L]``, each noun in a template of CLIP.
        labels: int64 ``[B, L]``, which noun a word of the caption is: i for the i-th of ``nouns`` from 1, 0 for one
            that was not chosen, -1 for all other words.
        ids: int64 ``[B, K]``, equal where nouns are.
        named: int64 ``[B, J]``, the same numbers for all nouns of the caption; -1 fills up.
        noise: uniform in (0, 1), for the Gumbel-sigmoid, ``[B, K, mh, mw]``. ``None`` draws it.
        generator: source of the drawn noise, in the same state in every process: noise is drawn for all of them.
        all_nouns: ``nouns`` of all processes; ``None`` until they are shared.
        all_ids: ``ids`` of all processes.
        all_named: ``named`` of all processes.
    """

    of_each_image = (*ImageBatch.of_each_image, "nouns", "templates", "labels", "ids", "named", "noise")

    nouns: Tensor
    templates: Tensor
    labels: Tensor
    ids: Tensor
    named: Tensor
    noise: Tensor | None = None
    generator: torch.Generator | None = None
    all_nouns: Tensor | None = None
    all_ids: Tensor | None = None
    all_named: Tensor | None = None


@dataclass(frozen=True)
class Embeddings:
    """What `CoDeTraining.embed` makes of each sample alone, float32.

    Attributes:
        pixels: V ``[B, E, h, w]``, L2-normalized.
        nouns: ``[B, K, E]``, behind the learned prompt, L2-normalized.
        regions: ``[B, K, E]``, of the images under each noun's hard mask, L2-normalized.
        texts: ``[B, K, E]``, of the captions reduced to each noun, L2-normalized.
        agreement: ``[B, K]``, cosine of each noun with the same noun in a template.
        word_losses: ``[B]``, weighted sum of the cross-entropies of labeled words.
        word_weights: ``[B]``, sum of their weights.
    """

    pixels: Tensor
    nouns: Tensor
    regions: Tensor
    texts: Tensor
    agreement: Tensor
    word_losses: Tensor
    word_weights: Tensor


@dataclass(frozen=True)
class Compared(ComparedMasks):
    """What the objective needs of each image, float32; the texts of its N pairs are nouns.

    Attributes:
        nouns: see `Embeddings`, as all below.
        regions: ``[B, K, E]``.
        texts: ``[B, K, E]``.
        agreement: ``[B, K]``.
        word_losses: ``[B]``.
        word_weights: ``[B]``.
    """

    nouns: Tensor
    regions: Tensor
    texts: Tensor
    agreement: Tensor
    word_losses: Tensor
    word_weights: Tensor


def pair_noise(batch: Batch, size: Sequence[int], offset: int, total: int) -> Tensor:
    """The noise ``[B, K, *size]`` of a batch, drawn if it has none.

    Args:
        batch: with noise or without.
        size: height and width of masks.
        offset: place of the first image among those of all processes.
        total: images of all processes, for whom noise is drawn if the batch has a generator.

    Raises:
        ValueError: the batch's noise does not fit the masks.
    """
    images, shape = batch.images, (len(batch.images), batch.nouns.shape[1], *size)
    if batch.noise is not None:
        if batch.noise.shape != shape:
            raise ValueError(f"the noise has shape {tuple(batch.noise.shape)}, the masks have {shape}")
        return batch.noise.to(images.device, torch.float32)
    count = shape[0] if batch.generator is None else total
    drawn = draw_noise(images.new_empty(count, *shape[1:], dtype=torch.float32), batch.generator)
    return drawn if batch.generator is None else drawn[offset : offset + shape[0]]
