"""MGCA-style training: captions meet objects, and from a later stage on also parts and hard pixels of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcl_core.methods.mgca.config import MGCAStyleConfig
from tcl_core.methods.mgca.losses import nearest_terms, part_embeddings, pixel_loss, region_loss, strongest
from tcl_core.methods.mgca.sampling import farthest_points, hard_pixels, pseudo_foreground
from tcl_core.methods.tcl.distributed import gather, process_rank, world_size
from tcl_core.methods.tcl.grounded_training import ComparedMasks, GroundedTraining, mask_losses
from tcl_core.methods.tcl.losses import info_nce, unit, variations
from tcl_core.methods.tcl.mask_terms import mask_terms, terms_in_parts

__all__ = ["Batch", "Compared", "Embeddings", "MGCAStyleTraining"]


@dataclass(frozen=True)
class Batch:
    """B matching images and captions of one process; N = B x processes captions take part in the contrasts.

    Attributes:
        images: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.
        tokens: int64 ``[B, L]``, one caption each.
        texts: float32 ``[N, E]``, the embedded captions of all processes, L2-normalized; ``None`` until they are
            shared.
        offset: place of the first of these images among all N, once texts are shared.
        features: float ``[B, 1 + hw, C]``, the images' tokens before the copied blocks; ``None`` computes them.
    """

    images: Tensor
    tokens: Tensor
    texts: Tensor | None = None
    offset: int = 0
    features: Tensor | None = None


@dataclass(frozen=True)
class Embeddings:
    """What `MGCAStyleTraining.embed` makes of each sample alone, float32.

    Attributes:
        pixels: V ``[B, E, h, w]``, not normalized.
        texts: ``[B, E]``, L2-normalized.
    """

    pixels: Tensor
    texts: Tensor


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


class MGCAStyleTraining(GroundedTraining):
    """The training half of :class:`tcl_core.methods.mgca.MGCAStyle`.

    Attributes:
        stage: the one that `trainable` was called for last; it says which terms there are.
    """

    stages = ("object", "all")

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

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Stack images and captions of prepared samples."""
        return Batch(
            torch.stack([sample["image"] for sample in samples]), torch.stack([sample["tokens"] for sample in samples])
        )

    @torch.no_grad()
    def share(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Embed the captions of all processes; nothing is drawn."""
        texts = self.embedded_texts(batch.tokens)
        return dataclasses.replace(batch, texts=gather(texts), offset=process_rank() * len(texts))

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        """Cut a shared batch into parts of the same size."""
        size = len(batch.images) // parts
        return [
            dataclasses.replace(
                batch,
                images=batch.images[start : start + size],
                tokens=batch.tokens[start : start + size],
                offset=batch.offset + start,
            )
            for start in range(0, len(batch.images), size)
        ]

    def embed(self, batch: Batch) -> Embeddings:
        """Embed images and captions.

        Raises:
            ValueError: the shapes do not fit each other or the patch size.
        """
        images = batch.images
        if len(images) != len(batch.tokens):
            raise ValueError(f"there are {len(images)} images, but {len(batch.tokens)} captions")
        if batch.texts is None:
            texts = self.embedded_texts(batch.tokens)
        else:
            texts = batch.texts[batch.offset : batch.offset + len(images)]
        pixels = self.masker.image_encoder(self.image_tokens(batch), self.clip.grid(images))
        return Embeddings(pixels.float(), texts)

    def compare(self, embeddings: Embeddings, batch: Batch) -> Compared:
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

    def objective(self, compared: Compared, batch: Batch) -> dict[str, Tensor]:
        """The objective of a shared batch, see `loss`."""
        with torch.autocast(device_type=compared.rows.device.type, enabled=False):
            return self._terms(compared, cast(Tensor, batch.texts), batch.offset)

    def loss(self, embeddings: Embeddings, batch: Batch) -> dict[str, Tensor]:
        """The objective of a batch.

        With a process group each process passes its own B pairs; contrasts and masks then run over all N texts. The
        mean over the processes of each term is that of one process with all pairs.

        Returns:
            Scalars: the weighted ``object_loss``, in the stage "all" ``region_loss`` and ``pixel_loss`` where their
            weight is not 0, ``area_loss``, ``neg_area_loss``, ``tv_img_loss`` and ``tv_mask_loss``, their sum
            ``total``, and without gradient the mean mask of matching (``mask``) and other (``neg_mask``) pairs and the
            share of images whose mask had too few pixels (``guarded``).
        """
        if batch.texts is None:
            offset = process_rank() * len(embeddings.texts)
            batch = dataclasses.replace(batch, texts=gather(embeddings.texts), offset=offset)
        return self.objective(self.compare(embeddings, batch), batch)

    def losses(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """`embed` and `loss` of one batch; see `Batch` for the arguments."""
        batch = Batch(images, tokens)
        return self.loss(self.embed(batch), batch)

    def _terms(self, compared: Compared, texts: Tensor, offset: int) -> dict[str, Tensor]:
        """The weighted terms, in float32."""
        config, rows = self.config, compared.rows
        images = len(rows)
        own = slice(offset, offset + images)
        matching = torch.zeros_like(rows, dtype=torch.bool)
        matching[range(images), range(own.start, own.stop)] = True
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
