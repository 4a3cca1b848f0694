"""Training of TCL: its stages, and its losses on a batch of matching images and captions (section 3.3 of the paper)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.methods.tcl.caption_training import CaptionBatch, CaptionEmbeddings, CaptionTraining, matching_pairs
from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.tcl.distributed import gather, process_rank, world_size
from tcl_core.methods.tcl.grounded_training import ComparedMasks, mask_losses
from tcl_core.methods.tcl.losses import draw_noise, gumbel_sigmoid, info_nce, unit, variations
from tcl_core.methods.tcl.mask_terms import mask_terms_in_parts

__all__ = ["Batch", "Compared", "Embeddings", "TCLTraining"]


@dataclass(frozen=True)
class Batch(CaptionBatch):
    """B matching images and captions of one process, as TCL contrasts them.

    Attributes:
        noise: uniform in (0, 1), for the Gumbel-sigmoid: ``[B, mh, mw]``, or ``[B, N, mh, mw]`` of which the
            matching pairs are used. ``None`` draws it.
        generator: source of the drawn noise, in the same state in every process: noise is drawn for all N images.
        negatives: float ``[B, N]``, how often each image of this process counts as a negative of each text, from
            0 to 1, in both contrasts and in the masks of other pairs; a pair that matches counts as one whatever is
            said here. ``None``, in every process or in none, counts each once, as the paper does.
    """

    of_each_image = (*CaptionBatch.of_each_image, "noise", "negatives")

    noise: Tensor | None = None
    generator: torch.Generator | None = None
    negatives: Tensor | None = None


@dataclass(frozen=True)
class Embeddings(CaptionEmbeddings):
    """What `TCLTraining.embed` makes of each sample alone, float32.

    Attributes:
        regions: ``[B, E]``, of the images under their own hard masks, L2-normalized.
    """

    regions: Tensor


@dataclass(frozen=True)
class Compared(ComparedMasks):
    """What the objective needs of each image, float32.

    Attributes:
        regions: ``[B, E]``, see `Embeddings`.
    """

    regions: Tensor


class TCLTraining(CaptionTraining):
    """The training half of :class:`tcl_core.methods.tcl.TCL`.

    The scalars of a step are the weighted ``tcli_loss``, ``tclf_loss``, ``area_loss``, ``neg_area_loss``,
    ``tv_img_loss`` and ``tv_mask_loss``, their sum ``total``, and without gradient the mean mask of matching (``mask``)
    and other (``neg_mask``, weighted by ``negatives``) pairs of all processes.
    """

    batch_class = Batch
    config: TCLConfig
    tcli_loss: nn.Module
    tclf_loss: nn.Module

    @torch.no_grad()
    def share(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Embed the captions of all processes, and draw the noise of the batch that has none.

        Raises:
            ValueError: the noise does not fit the masks.
        """
        shared = self.with_texts(batch)
        source = batch.generator if generator is None else generator
        noise = self._noise(
            dataclasses.replace(batch, generator=source), shared.offset, len(cast(Tensor, shared.texts))
        )
        return dataclasses.replace(shared, noise=noise, generator=None)

    def embed(self, batch: Batch) -> Embeddings:
        """Embed images, captions, and the regions that each caption grounds in its own image.

        Raises:
            ValueError: the shapes do not fit each other or the patch size.
        """
        images, text = batch.images, self.own_texts(batch)
        if batch.texts is None:
            noise = self._noise(batch, process_rank() * len(images), world_size() * len(images))
        else:
            noise = cast(Tensor, batch.noise)
        pixels = self.masker.image_encoder(self.image_tokens(batch), self.clip.grid(images))
        with torch.autocast(device_type=images.device.type, enabled=False):
            pixels = pixels.float()
            own = self.masker.sim2mask.matching(pixels, text)
            hard = gumbel_sigmoid(own, noise, self.config.gumbel_tau)
        masked = images * F.interpolate(hard[:, None], size=images.shape[-2:], mode="nearest")
        region = self.clip.encode_image(masked)
        with torch.autocast(device_type=images.device.type, enabled=False):
            return Embeddings(pixels, text, unit(region, dim=-1))

    def compare(self, embeddings: Embeddings, batch: Batch) -> Compared:
        """Numbers about the masks of these images for all texts."""
        pixels = embeddings.pixels
        with torch.autocast(device_type=pixels.device.type, enabled=False):
            texts = gather(embeddings.texts) if batch.texts is None else batch.texts
            scalars = self.masker.sim2mask
            terms = mask_terms_in_parts(pixels, texts, scalars.w, scalars.b)
            return Compared(*terms, variations(pixels), embeddings.regions)

    def losses(
        self,
        images: Tensor,
        tokens: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        negatives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`embed` and `loss` of one batch; see `Batch` for the arguments.

        Raises:
            ValueError: the shapes do not fit each other or the patch size, or ``negatives`` are not from 0 to 1.
        """
        batch = Batch(images, tokens, noise, generator, negatives)
        return self.loss(self.embed(batch), batch)

    def _noise(self, batch: Batch, offset: int, texts: int) -> Tensor:
        """The noise ``[B, mh, mw]`` of these images, which begin at ``offset`` among as many as there are texts."""
        images = batch.images
        shape = (len(images), *self.mask_size(images))
        noise = batch.noise
        if noise is None:
            count = shape[0] if batch.generator is None else texts
            drawn = draw_noise(images.new_empty(count, *shape[1:], dtype=torch.float32), batch.generator)
            return drawn if batch.generator is None else drawn[offset : offset + len(images)]
        own = _diagonal(noise, offset) if noise.ndim == 4 else noise
        if own.shape != shape:
            raise ValueError(f"the noise has shape {tuple(own.shape)}, the masks have {shape}")
        return own.to(images.device, torch.float32)

    def terms(self, compared: Compared, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of a shared batch, in float32.

        Raises:
            ValueError: ``negatives`` are of another shape, or not from 0 to 1.
        """
        config, rows, areas = self.config, compared.rows, compared.areas
        texts, offset, negatives = cast(Tensor, batch.texts), batch.offset, batch.negatives
        own, matching = matching_pairs(compared, offset)
        weights = None
        if negatives is not None:
            negatives = _checked(negatives, rows).masked_fill(matching, 1)
            weights = (negatives, gather(negatives)[:, own].T)
        regions = compared.regions
        tcli = info_nce(regions @ texts.T, texts[own] @ gather(regions).T, self.tcli_loss(), offset, weights)
        # Text n meets the regions that *it* grounds in every image: the columns of the full matrix.
        tclf = info_nce(rows, gather(rows)[:, own].T, self.tclf_loss(), offset, weights)
        counted = (torch.ones_like(areas) if negatives is None else negatives).masked_fill(matching, 0)
        masks, means = mask_losses(compared, matching, counted, config, config.area_weight)
        losses = {"tcli_loss": config.tcl_weight * tcli, "tclf_loss": config.tcl_weight * tclf, **masks}
        total = torch.stack(list(losses.values())).sum()
        return losses | {"total": total} | means


def _checked(negatives: Tensor, like: Tensor) -> Tensor:
    if negatives.shape != like.shape:
        raise ValueError(f"the negatives have shape {tuple(negatives.shape)}, not {tuple(like.shape)}")
    if not ((negatives >= 0) & (negatives <= 1)).all():
        raise ValueError("the negatives must be from 0 to 1")
    return negatives.to(like)


def _diagonal(pairs: Tensor, offset: int) -> Tensor:
    """The matching pairs ``[B, h, w]`` of ``[B, N, h, w]``; image b matches text ``offset + b``."""
    index = torch.arange(pairs.shape[0], device=pairs.device)
    return cast(Tensor, pairs[index, index + offset])
