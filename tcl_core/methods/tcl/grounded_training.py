"""What the trainings of methods with TCL's grounder share: what is frozen, the image's tokens, and losses of masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl.config import GrounderConfig
from tcl_core.methods.tcl.distributed import gather
from tcl_core.methods.tcl.grounder import Grounder
from tcl_core.methods.tcl.losses import unit
from tcl_core.methods.trainable import Trainable
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["ComparedMasks", "GroundedTraining", "ImageBatch", "mask_losses"]


@dataclass(frozen=True)
class ImageBatch:
    """B images and captions of one process.

    Attributes:
        images: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.
        tokens: int64 ``[B, L]``, one caption each.
        offset: place of the first of these images among those of all processes, once they are shared.
        features: float ``[B, 1 + hw, C]``, the images' tokens before the copied blocks; ``None`` computes them.
    """

    of_each_image: ClassVar[tuple[str, ...]] = ("images", "tokens")
    """Tensors that are cut where a batch is split; what is of all processes stays whole."""

    images: Tensor
    tokens: Tensor
    offset: int = field(default=0, kw_only=True)
    features: Tensor | None = field(default=None, kw_only=True)

    def split(self, parts: int) -> list[Self]:
        """Cut into parts of the same size, a divisor of B."""
        size = len(self.images) // parts
        held = {name: value for name in self.of_each_image if (value := getattr(self, name)) is not None}
        return [
            dataclasses.replace(
                self,
                **{name: value[start : start + size] for name, value in held.items()},
                offset=self.offset + start,
            )
            for start in range(0, len(self.images), size)
        ]


_Batch = TypeVar("_Batch", bound=ImageBatch)


@dataclass(frozen=True)
class ComparedMasks:
    """What losses of masks need of each image, float32.

    Attributes:
        rows: ``[B, N]``, cosine of each text with what its mask pools from the image.
        areas: ``[B, N]``, mean of each mask.
        mask_variations: ``[B]``, total variation of the image's masks.
        pixel_variations: ``[B]``, total variation of V.
    """

    rows: Tensor
    areas: Tensor
    mask_variations: Tensor
    pixel_variations: Tensor


class GroundedTraining(Trainable):
    """A training of TCL's grounder on a frozen CLIP; sub-classes say what they learn from."""

    stages = ("ust", "full")

    config_class: ClassVar[type[GrounderConfig]]
    clip: FrozenClip
    masker: Grounder
    first_block: int

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Refuse settings that are unknown or out of range."""
        cls.config_class.from_dict(settings)

    def trainable(self, stage: str) -> list[nn.Parameter]:
        """Choose what is trained.

        Args:
            stage: "ust" trains everything but the copied blocks of the image tower; "full" those too.

        Returns:
            The trainable parameters.

        Raises:
            SettingsError: the stage is unknown.
        """
        self._check_stage(stage)
        return self._train(copied_blocks=stage == "full")

    def _check_stage(self, stage: str) -> None:
        if stage not in self.stages:
            raise SettingsError(f"There is no training stage {stage!r}; the stages are: {', '.join(self.stages)}.")

    def _train(self, copied_blocks: bool, frozen: tuple[nn.Module, ...] = ()) -> list[nn.Parameter]:
        """Freeze the CLIP, these modules, and perhaps the copied blocks; returns all other parameters."""
        module = cast(nn.Module, self)
        # Set all of them: a model that was loaded for inference has everything frozen.
        module.requires_grad_(True)
        self.clip.requires_grad_(False)
        self.masker.image_encoder.backbone.requires_grad_(copied_blocks)
        for part in frozen:
            part.requires_grad_(False)
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

    def split(self, batch: _Batch, parts: int) -> list[_Batch]:
        """Cut a shared batch into parts of the same size."""
        return batch.split(parts)

    def precompute(self, batch: _Batch) -> _Batch:
        """Keep the tokens of the frozen blocks, which take about as much memory as the images do."""
        return dataclasses.replace(batch, features=self.image_tokens(batch))

    def compile_training(self) -> None:
        """Compile the grounder, and the blocks through which gradients pass to the image."""
        cast(nn.Module, self.masker.image_encoder).compile()
        self.clip.compile_blocks()

    def keep_activations(self) -> None:
        """Keep the activations of the blocks through which gradients pass to the image."""
        self.clip.recompute = False

    @torch.no_grad()
    def image_tokens(self, batch: ImageBatch) -> Tensor:
        """Tokens ``[B, 1 + hw, C]`` before the copied blocks, unless the batch has them."""
        return self.clip.tokens_after(batch.images, self.first_block) if batch.features is None else batch.features

    def embedded_texts(self, tokens: Tensor) -> Tensor:
        """CLIP's embeddings float32 ``[N, E]`` of token ids ``[N, L]``, L2-normalized, without gradient."""
        with torch.no_grad():
            text = self.clip.encode_text(tokens)
        with torch.autocast(device_type=text.device.type, enabled=False):
            return unit(text, dim=-1)

    def mask_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the masks of images ``[B, 3, H, W]``."""
        scale = 2 ** cast(GrounderConfig, cast(Any, self).config).decoder_layers
        rows, columns = self.clip.grid(images)
        return scale * rows, scale * columns


def mask_losses(
    compared: ComparedMasks, matching: Tensor, counted: Tensor, config: GrounderConfig, other_weight: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Areas and smoothness, in every process of all images.

    Args:
        compared: of this process' B images with N texts.
        matching: bool ``[B, N]``, pairs that belong together.
        counted: float ``[B, N]``, how often a pair counts as one that does not.
        config: weights and prior.
        other_weight: weight of the area of pairs that do not belong together.

    Returns:
        The weighted ``area_loss``, ``neg_area_loss``, ``tv_img_loss`` and ``tv_mask_loss``, whose mean over processes
        is that of one process with all images; and without gradient the mean mask of matching (``mask``) and other
        (``neg_mask``) pairs.
    """
    areas = compared.areas
    # |mean - prior| is not the mean of |part - prior|, so the parts are averaged first.
    mask = gather(areas[matching].mean()[None]).mean()
    pairs = gather(counted.sum()[None]).sum().clamp(min=1e-6)
    neg_mask = gather((areas * counted).sum()[None]).sum() / pairs
    losses = {
        "area_loss": config.area_weight * (mask - config.area_prior).abs(),
        "neg_area_loss": other_weight * neg_mask.abs(),
        "tv_img_loss": config.tv_weight * compared.pixel_variations.mean(),
        "tv_mask_loss": config.tv_weight * compared.mask_variations.mean(),
    }
    return losses, {"mask": mask.detach(), "neg_mask": neg_mask.detach()}
