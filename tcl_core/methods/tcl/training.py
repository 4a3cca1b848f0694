"""Training of TCL: its stages, and its losses on a batch of matching images and captions (section 3.3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.tcl.distributed import gather, process_rank
from tcl_core.methods.tcl.grounder import Grounder
from tcl_core.methods.tcl.losses import draw_noise, gumbel_sigmoid, info_nce, pool_by_masks, total_variation, unit
from tcl_core.methods.trainable import Trainable
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["Batch", "Embeddings", "TCLTraining"]


@dataclass(frozen=True)
class Batch:
    """B matching images and captions of one process; N = B x processes captions take part in the contrasts.

    Attributes:
        images: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.
        tokens: int64 ``[B, L]``, one caption each.
        noise: uniform in (0, 1), for the Gumbel-sigmoid: ``[B, mh, mw]``, or ``[B, N, mh, mw]`` of which the
            matching pairs are used. ``None`` draws it.
        generator: source of the drawn noise.
        negatives: float ``[B, N]``, how often each image of this process counts as a negative of each text, from
            0 to 1, in both contrasts and in the masks of other pairs; a pair that matches counts as one whatever is
            said here. ``None``, in every process or in none, counts each once, as the paper does.
    """

    images: Tensor
    tokens: Tensor
    noise: Tensor | None = None
    generator: torch.Generator | None = None
    negatives: Tensor | None = None


@dataclass(frozen=True)
class Embeddings:
    """What `TCLTraining.embed` makes of each sample alone, float32.

    Attributes:
        pixels: V ``[B, E, h, w]``, not normalized.
        texts: ``[B, E]``, L2-normalized.
        regions: ``[B, E]``, of the images under their own hard masks, L2-normalized.
    """

    pixels: Tensor
    texts: Tensor
    regions: Tensor


class TCLTraining(Trainable):
    """The training half of :class:`tcl_core.methods.tcl.TCL`."""

    stages = ("ust", "full")

    clip: FrozenClip
    config: TCLConfig
    masker: Grounder
    first_block: int
    tcli_loss: nn.Module
    tclf_loss: nn.Module

    def trainable(self, stage: str) -> list[nn.Parameter]:
        """Choose what is trained.

        Args:
            stage: "ust" trains decoder, projection, mask scalars and temperatures; "full" also the copied block.

        Returns:
            The trainable parameters.

        Raises:
            SettingsError: the stage is unknown.
        """
        if stage not in self.stages:
            raise SettingsError(f"There is no training stage {stage!r}; the stages are: {', '.join(self.stages)}.")
        module = cast(nn.Module, self)
        # Set all of them: a model that was loaded for inference has everything frozen.
        module.requires_grad_(True)
        self.clip.requires_grad_(False)
        self.masker.image_encoder.backbone.requires_grad_(stage == "full")
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def prepare(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Tokenize the caption; nothing is drawn.

        Args:
            sample: ``image`` (float ``[3, H, W]``, normalized) and ``caption`` (a text).
            rng: of this sample.

        Raises:
            SettingsError: the tower has no tokenizer.
        """
        if self.clip.tokenizer is None:
            raise SettingsError("The CLIP has no tokenizer, so captions cannot be embedded; give it one.")
        return {"image": sample["image"], "tokens": self.clip.tokenizer([sample["caption"]])[0]}

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Stack images and captions of prepared samples."""
        return Batch(
            torch.stack([sample["image"] for sample in samples]), torch.stack([sample["tokens"] for sample in samples])
        )

    def embed(self, batch: Batch) -> Embeddings:
        """Embed images, captions, and the regions that each caption grounds in its own image.

        Raises:
            ValueError: the shapes do not fit each other or the patch size.
        """
        images, tokens = batch.images, batch.tokens
        if len(images) != len(tokens):
            raise ValueError(f"there are {len(images)} images, but {len(tokens)} captions")
        grid = self.clip.grid(images)
        with torch.no_grad():
            text = self.clip.encode_text(tokens)
            features = self.clip.tokens_after(images, self.first_block)
        pixels = self.masker.image_encoder(features, grid)
        with torch.autocast(device_type=images.device.type, enabled=False):
            pixels, text = pixels.float(), unit(text, dim=-1)
            own = self.masker.sim2mask.matching(unit(pixels, dim=1), text)
            hard = gumbel_sigmoid(own, self._noise(own, batch), self.config.gumbel_tau)
        masked = images * F.interpolate(hard[:, None], size=images.shape[-2:], mode="nearest")
        region = self.clip.encode_image(masked)
        with torch.autocast(device_type=images.device.type, enabled=False):
            return Embeddings(pixels, text, unit(region, dim=-1))

    def loss(self, embeddings: Embeddings, batch: Batch) -> dict[str, Tensor]:
        """TCL's objective.

        With a process group each process passes its own B pairs; contrasts and masks then run over all N texts, and
        every term is the mean of this process' part.

        Returns:
            Scalars: the weighted ``tcli_loss``, ``tclf_loss``, ``area_loss``, ``neg_area_loss``, ``tv_img_loss``
            and ``tv_mask_loss``, their sum ``total``, and the mean mask of matching (``mask``) and other
            (``neg_mask``, weighted by ``negatives``) pairs, without gradient.

        Raises:
            ValueError: ``negatives`` are of another shape, or not from 0 to 1.
        """
        pixels, offset = embeddings.pixels, process_rank() * len(embeddings.pixels)
        with torch.autocast(device_type=pixels.device.type, enabled=False):
            texts, negatives = gather(embeddings.texts), batch.negatives
            if negatives is not None:
                negatives = self._checked(negatives, (len(pixels), len(texts))).to(texts)
            masks = torch.sigmoid(self.masker.sim2mask(unit(pixels, dim=1), texts))
            return self._terms(pixels, masks, embeddings.regions, texts, offset, negatives)

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

    @staticmethod
    def _checked(negatives: Tensor, shape: tuple[int, int]) -> Tensor:
        if negatives.shape != shape:
            raise ValueError(f"the negatives have shape {tuple(negatives.shape)}, not {shape}")
        if not ((negatives >= 0) & (negatives <= 1)).all():
            raise ValueError("the negatives must be from 0 to 1")
        return negatives

    @staticmethod
    def _noise(logits: Tensor, batch: Batch) -> Tensor:
        noise = batch.noise
        if noise is None:
            return draw_noise(logits, batch.generator)
        own = _diagonal(noise, process_rank() * len(logits)) if noise.ndim == 4 else noise
        if own.shape != logits.shape:
            raise ValueError(f"the noise has shape {tuple(own.shape)}, the masks have {tuple(logits.shape)}")
        return own.to(logits)

    def _terms(
        self,
        image_emb: Tensor,
        masks: Tensor,
        region: Tensor,
        all_text: Tensor,
        offset: int,
        negatives: Tensor | None,
    ) -> dict[str, Tensor]:
        """The weighted terms from V ``[B, E, h, w]``, M ``[B, N, h, w]`` and unit embeddings, in float32."""
        config = self.config
        batch, texts = masks.shape[:2]
        own = slice(offset, offset + batch)
        matching = torch.zeros(batch, texts, dtype=torch.bool, device=masks.device)
        matching[range(batch), range(offset, offset + batch)] = True
        weights = None
        if negatives is not None:
            negatives = negatives.masked_fill(matching, 1)
            weights = (negatives, gather(negatives)[:, own].T)
        tcli = info_nce(region @ all_text.T, all_text[own] @ gather(region).T, self.tcli_loss(), offset, weights)
        pooled = unit(pool_by_masks(image_emb, masks), dim=-1)
        rows = torch.einsum("bne,ne->bn", pooled, all_text)
        # Text n meets the regions that *it* grounds in every image: the columns of the full matrix.
        tclf = info_nce(rows, gather(rows)[:, own].T, self.tclf_loss(), offset, weights)
        area = masks.mean(dim=(2, 3))
        counted = (torch.ones_like(area) if negatives is None else negatives).masked_fill(matching, 0)
        # The same divisor in every process, so that the mean over them is that of one process with all pairs.
        pairs = gather(counted.sum()[None]).mean().clamp(min=1e-6)
        mask, neg_mask = area[matching].mean(), (area * counted).sum() / pairs
        losses = {
            "tcli_loss": config.tcl_weight * tcli,
            "tclf_loss": config.tcl_weight * tclf,
            "area_loss": config.area_weight * (mask - config.area_prior).abs(),
            "neg_area_loss": config.area_weight * neg_mask.abs(),
            "tv_img_loss": config.tv_weight * total_variation(image_emb),
            "tv_mask_loss": config.tv_weight * total_variation(masks),
        }
        total = torch.stack(list(losses.values())).sum()
        return losses | {"total": total, "mask": mask.detach(), "neg_mask": neg_mask.detach()}


def _diagonal(pairs: Tensor, offset: int) -> Tensor:
    """The matching pairs ``[B, h, w]`` of ``[B, N, h, w]``; image b matches text ``offset + b``."""
    index = torch.arange(pairs.shape[0], device=pairs.device)
    return cast(Tensor, pairs[index, index + offset])
