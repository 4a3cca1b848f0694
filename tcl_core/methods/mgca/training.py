"""MGCA-style training: captions meet objects, and from a later stage on also parts and hard pixels of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tcl_core.methods.mgca.config import MGCAStyleConfig
from tcl_core.methods.mgca.losses import nearest_terms, part_embeddings, pixel_loss, region_loss, strongest
from tcl_core.methods.mgca.sampling import farthest_points, hard_pixels, pseudo_foreground
from tcl_core.methods.tcl.caption_training import CaptionBatch, CaptionEmbeddings, CaptionTraining, matching_pairs
from tcl_core.methods.tcl.distributed import gather, world_size
from tcl_core.methods.tcl.grounded_training import ComparedMasks, mask_losses
from tcl_core.methods.tcl.losses import info_nce, unit, variations
from tcl_core.methods.tcl.mask_terms import mask_terms, terms_in_parts

__all__ = ["Compared", "MGCAStyleTraining"]


@dataclass(frozen=True)
class Compared(ComparedMasks):
    """What the objective needs of each image, float32 if not said otherwise; sizes of terms that are left out are 0.

    Attributes:
        parts: ``[B, R, E]``, L2-normalized.
        positives: ``[B, K]``, cosines of the caption with hard pixels of its foreground.
        positive: bool ``[B, K]``, whether they are.
        negatives: ``[B, K]``, cosines of the caption with hard pixels outside of the foreground.
        negative: bool ``[B, K]``, whether they are.
        nearest: ``[B, N, K]``, cosines of all captions with the image's pixels that are most similar to them.
        guarded: ``[B]``, 1 where the mask had too few pixels for a foreground, else 0.
    """

    parts: Tensor
    positives: Tensor
    positive: Tensor
    negatives: Tensor
    negative: Tensor
    nearest: Tensor
    guarded: Tensor


class MGCAStyleTraining(CaptionTraining):
    """The training half of :class:`tcl_core.methods.mgca.MGCAStyle`.

    The scalars of a step are the weighted ``object_loss``, in the stage "all" ``region_loss`` and ``pixel_loss`` where
    their weight is not 0, ``area_loss``, ``neg_area_loss``, ``tv_img_loss`` and ``tv_mask_loss``, their sum ``total``,
    and without gradient the mean mask of matching (``mask``) and other (``neg_mask``) pairs and the share of images
    whose mask had too few pixels (``guarded``).

    Attributes:
        stage: the one that `trainable` was called for last; it says which terms there are.
    """

    stages = ("object", "all")
    batch_class = CaptionBatch

    config: MGCAStyleConfig
    object_loss: nn.Module
    region_loss: nn.Module
    pixel_loss: nn.Module
    stage: str = "all"

    def trainable(self, stage: str) -> list[nn.Parameter]:
        """Choose what is trained, and by which terms.

        Args:
            stage: "object" trains by whole captions and masks, because masks are poor at first; "all" also by parts and
                pixels. The copied blocks of the image tower stay frozen in both, unless ``train_last_block`` is set,
                which trains them in the stage "all".

        Returns:
            The trainable parameters.

        Raises:
            SettingsError: the stage is unknown.
        """
        self._check_stage(stage)
        self.stage = stage
        unused = (self.region_loss, self.pixel_loss) if stage == "object" else ()
        return self._train(copied_blocks=stage == "all" and self.config.train_last_block, frozen=unused)

    @property
    def _regions(self) -> int:
        """Parts of each image, 0 where their term is left out."""
        return self.config.regions if self.stage == "all" and self.config.region_weight else 0

    @property
    def _hard_pixels(self) -> int:
        """Hard pixels of each kind, 0 where their term is left out."""
        return self.config.hard_pixels if self.stage == "all" and self.config.pixel_weight else 0

    def share(self, batch: CaptionBatch, generator: torch.Generator | None = None) -> CaptionBatch:
        """Embed the captions of all processes; nothing is drawn."""
        return self.with_texts(batch)

    def embed(self, batch: CaptionBatch) -> CaptionEmbeddings:
        """Embed images and captions.

        Raises:
            ValueError: the shapes do not fit each other or the patch size.
        """
        texts = self.own_texts(batch)
        pixels = self.masker.image_encoder(self.image_tokens(batch), self.clip.grid(batch.images))
        return CaptionEmbeddings(pixels.float(), texts)

    def compare(self, embeddings: CaptionEmbeddings, batch: CaptionBatch) -> Compared:
        """Numbers about the masks of these images for all texts, and their parts and hard pixels."""
        config, scalars, pixels = self.config, self.masker.sim2mask, embeddings.pixels
        with torch.autocast(device_type=pixels.device.type, enabled=False):
            texts = gather(embeddings.texts) if batch.texts is None else batch.texts
            function = nearest_terms(self._hard_pixels) if self._hard_pixels else mask_terms
            terms = terms_in_parts(function, pixels, texts, scalars.w, scalars.b)
            nearest = terms[3] if self._hard_pixels else terms[0].new_zeros(*terms[0].shape, 0)
            masks = ComparedMasks(terms[0], terms[1], terms[2], variations(pixels))

            flat = unit(pixels, dim=1).flatten(2)
            own = torch.einsum("be,bep->bp", embeddings.texts, flat)
            soft = torch.sigmoid(scalars.w * own + scalars.b).detach()
            foreground = pseudo_foreground(soft, own, config.foreground_least, config.foreground_share)
            found = hard_pixels(soft, own, foreground, config.margin, self._hard_pixels)
            return Compared(
                **vars(masks),
                parts=self._parts(flat, own, foreground.pixels),
                positives=own.gather(1, found.positives),
                positive=found.positive,
                negatives=own.gather(1, found.negatives),
                negative=found.negative,
                nearest=nearest,
                guarded=foreground.guarded.to(own.dtype),
            )

    def _parts(self, pixels: Tensor, similarities: Tensor, foreground: Tensor) -> Tensor:
        """Parts ``[B, R, E]`` around points of the foreground, the first of which is most like the caption."""
        if not self._regions:
            return pixels.new_zeros(len(pixels), 0, pixels.shape[1])
        first = similarities.masked_fill(~foreground, -torch.inf).argmax(dim=1)
        points = farthest_points(pixels, foreground, first, self._regions)
        return part_embeddings(pixels, foreground, points, self.config.region_temperature)

    def losses(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """`embed` and `loss` of one batch; see `CaptionBatch` for the arguments."""
        batch = CaptionBatch(images, tokens)
        return self.loss(self.embed(batch), batch)

    def terms(self, compared: Compared, batch: CaptionBatch) -> dict[str, Tensor]:
        """The weighted terms of a shared batch, in float32."""
        config, rows, texts, offset = self.config, compared.rows, cast(Tensor, batch.texts), batch.offset
        own, matching = matching_pairs(compared, offset)
        # Text n meets what *its* mask pools from every image: the columns of the full matrix.
        objects = info_nce(rows, gather(rows)[:, own].T, self.object_loss(), offset)
        losses = {"object_loss": config.object_weight * objects}
        # Texts that say the same are no negatives of each other, nor is a text of itself.
        apart = (texts @ texts.T <= config.same_text).fill_diagonal_(False)
        if self._regions:
            parts = gather(compared.parts)
            found = region_loss(
                compared.parts, texts[own], parts, texts, apart[own], self.region_loss(), config.region_negatives
            )
            losses["region_loss"] = config.region_weight * found
        if self._hard_pixels:
            # The strongest of all are among the strongest of each process, which are few enough to be gathered.
            mine = gather(strongest(compared.nearest, apart[own], config.hard_pixels))
            theirs = mine.unflatten(0, (world_size(), -1))[:, own].permute(1, 0, 2).flatten(1)
            others = theirs.topk(config.hard_pixels, dim=1).values
            pixels = compared.positives, compared.positive, compared.negatives, compared.negative, others
            losses["pixel_loss"] = config.pixel_weight * pixel_loss(*pixels, self.pixel_loss())
        masks, means = mask_losses(compared, matching, (~matching).to(rows.dtype), config, config.area_weight)
        losses |= masks
        total = torch.stack(list(losses.values())).sum()
        return losses | {"total": total} | means | {"guarded": compared.guarded.mean()}
