"""The terms of CoDe's objective (section 3.4 of the paper), from numbers about pairs of images and nouns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tcl_core.methods.code.batch import Batch, Compared
from tcl_core.methods.code.config import CoDeConfig, Negatives
from tcl_core.methods.tcl.distributed import gather
from tcl_core.methods.tcl.grounded_training import mask_losses
from tcl_core.methods.tcl.losses import info_nce

__all__ = ["PairWeights", "pair_weights", "weighted_terms"]


@dataclass(frozen=True)
class PairWeights:
    """How often pairs of this process' images with the nouns of all processes count as negatives, 0 or 1.

    Attributes:
        masks: float32 ``[B, N]``, of images and nouns, for masks and pooled features; 1 for an image's own nouns only
            where they are negatives of each other.
        words: float32 ``[N, N]`` of the nouns of all processes, for regions and texts; 1 on the diagonal.
    """

    masks: Tensor
    words: Tensor


def pair_weights(batch: Batch, negatives: Negatives) -> PairWeights:
    """Which pairs are negatives, see `CoDeConfig`.

    Args:
        batch: a shared one.
        negatives: the setting.
    """
    ids, named = cast(Tensor, batch.all_ids), cast(Tensor, batch.all_named)
    images, chosen = len(batch.images), ids.shape[1]
    count = ids.numel()
    places = torch.arange(count, device=ids.device)
    masks = torch.ones(images, count, device=ids.device)
    words = torch.ones(count, count, device=ids.device)
    if negatives != "all":
        own = torch.arange(batch.offset, batch.offset + images, device=ids.device)
        masks[own[:, None] == places // chosen] = 0
    if negatives == "not named":
        mine = named[batch.offset : batch.offset + images]
        masks[(mine[:, :, None] == ids.flatten()).any(dim=1)] = 0
        same = ids.flatten()[:, None] == ids.flatten()
        words[same & (places[:, None] != places)] = 0
    return PairWeights(masks.to(batch.images.device), words.to(batch.images.device))


def weighted_terms(
    compared: Compared, weights: PairWeights, scales: tuple[Tensor, Tensor, Tensor], offset: int, config: CoDeConfig
) -> dict[str, Tensor]:
    """The nine weighted losses, their sum, and mean masks.

    Args:
        compared: of this process' B images with K nouns each.
        weights: of pairs.
        scales: inverse temperatures of pooled features, of regions, and of regions with texts.
        offset: place of the first of these images among those of all processes.
        config: weights and prior.
    """
    images, chosen, _ = compared.nouns.shape
    first = offset * chosen
    own = slice(first, first + images * chosen)
    nouns, everything = compared.nouns.flatten(0, 1), gather(compared.nouns).flatten(0, 1)
    regions, texts = compared.regions.flatten(0, 1), compared.texts.flatten(0, 1)
    all_regions = gather(compared.regions).flatten(0, 1)
    pairs = (weights.words[own], weights.words[:, own].T)

    # An image stands in as many rows as it has nouns; text n meets the regions that *it* grounds in every image.
    matching = torch.zeros_like(compared.areas, dtype=torch.bool)
    matching[torch.arange(images).repeat_interleave(chosen), torch.arange(own.start, own.stop)] = True
    rows = compared.rows.repeat_interleave(chosen, dim=0)
    columns = gather(compared.rows)[:, own].T.repeat_interleave(chosen, dim=1)
    diagonal = torch.eye(len(rows), rows.shape[1], device=rows.device, dtype=torch.bool).roll(first, dims=1)
    pooled_rows = weights.masks.repeat_interleave(chosen, dim=0).masked_fill(diagonal, 1)
    pooled_columns = gather(weights.masks)[:, own].T.repeat_interleave(chosen, dim=1).masked_fill(diagonal, 1)

    counted = (chosen - matching.to(compared.areas.dtype)) * weights.masks
    masks, means = mask_losses(compared, matching, counted, config, config.negative_area_weight)
    # Where no word of any caption is labeled there is nothing to learn.
    words = gather(compared.word_losses.sum()[None]).sum()
    words = words / gather(compared.word_weights.sum()[None]).sum().clamp(min=1e-6)

    losses = {
        "kg_loss": config.prompt_weight * (1 - compared.agreement.mean()),
        "hlf_noun_loss": config.tcl_weight * info_nce(rows, columns, scales[0], first, (pooled_rows, pooled_columns)),
        "hli_noun_loss": config.tcl_weight
        * info_nce(regions @ everything.T, nouns @ all_regions.T, scales[1], first, pairs),
        **masks,
        "tseg_loss": config.text_weight * words,
        "hcl_loss": config.codecomposition_weight
        * info_nce(regions @ gather(compared.texts).flatten(0, 1).T, texts @ all_regions.T, scales[2], first, pairs),
    }
    total = torch.stack(list(losses.values())).sum()
    return losses | {"total": total} | means
