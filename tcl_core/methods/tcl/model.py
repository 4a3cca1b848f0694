"""TCL: text-grounded contrastive learning (Cha, Mun and Roh, CVPR 2023, arXiv 2212.00785)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Method, Stage, WindowEmbeddings
from tcl_core.methods.registry import register_method
from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.tcl.distributed import gather, process_rank
from tcl_core.methods.tcl.grounder import Grounder, cosine_maps
from tcl_core.methods.tcl.losses import draw_noise, gumbel_sigmoid, info_nce, pool_by_masks, total_variation
from tcl_core.refinement.pamr import PamrAffinity, pamr_affinity, refine_masks
from tcl_core.segmentation.sliding_window import pad_to_multiple
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["TCL"]

_NORMALIZE_EPSILON = 1e-6
_MAX_SCALE = 100.0


def _unit(x: Tensor, dim: int) -> Tensor:
    return F.normalize(x.float(), dim=dim, eps=_NORMALIZE_EPSILON)


class InverseTemperature(nn.Module):
    """The learned scale of a contrastive term, ``min(exp(s), 100)``, initially ``1 / 0.07``."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self) -> Tensor:
        """The scale, a scalar."""
        return self.logit_scale.exp().clamp(max=_MAX_SCALE)


@register_method("tcl")
class TCL(Method):
    """The grounder on top of a frozen CLIP, its inference and its losses.

    Args:
        clip: the frozen towers.
        config: settings; ``None`` takes those of the released model.

    Raises:
        SettingsError: ``ie_freeze`` does not fit the CLIP.

    Example:
        >>> import open_clip
        >>> clip = FrozenClip(
        ...     open_clip.CLIP(
        ...         embed_dim=8,
        ...         vision_cfg={"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 2},
        ...         text_cfg={"context_length": 5, "vocab_size": 11, "width": 16, "heads": 2, "layers": 1},
        ...     )
        ... )
        >>> tcl = TCL(clip)
        >>> windows = torch.rand(2, 3, 40, 50)
        >>> text = tcl.embed_prompts(torch.tensor([[[9, 3, 10, 0, 0]]]))
        >>> scores = tcl.score_maps(tcl.embed_windows(windows), text, tcl.refinement(windows), kp_weight=0.3)
        >>> tuple(scores.shape)
        (2, 1, 40, 50)
    """

    optional_keys = frozenset({"tcli_loss.logit_scale", "tclf_loss.logit_scale"})

    def __init__(self, clip: FrozenClip, config: TCLConfig | None = None):
        super().__init__(clip)
        self.config = config or TCLConfig()
        self.first_block = clip.depth - 1 if self.config.ie_freeze is None else self.config.ie_freeze
        if not 1 <= self.first_block < clip.depth:
            raise SettingsError(
                f"The TCL setting ie_freeze is {self.first_block}, but must be between 1 and {clip.depth - 1} for an "
                f"image tower of {clip.depth} blocks."
            )
        self.masker = Grounder(clip, self.config, self.first_block)
        self.tcli_loss = InverseTemperature()
        self.tclf_loss = InverseTemperature()

    @classmethod
    def from_config(cls, clip: FrozenClip, config: Mapping[str, Any]) -> Self:
        """Build from plain settings, see :class:`TCLConfig`."""
        return cls(clip, TCLConfig.from_dict(config))

    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.config.to_dict()

    # -- inference -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed_windows(self, windows: Tensor) -> WindowEmbeddings:
        """Embed windows for any number of prompts.

        Args:
            windows: float32 ``[B, 3, H, W]``, normalized; any H and W (zero-padded to whole patches inside).

        Returns:
            The embeddings, float32.
        """
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        grid = self.clip.grid(padded)
        tokens = self.clip.tokens_after(padded, self.first_block)
        image_emb = self.masker.image_encoder(tokens, grid)
        before_last = self.clip.run_blocks(tokens, self.first_block, self.clip.depth - 1)
        dense = self.clip.project_dense(self.clip.last_block_diagonal(before_last, grid))
        return WindowEmbeddings(
            image_emb=_unit(image_emb, dim=1),
            dense=_unit(dense, dim=1),
            size=(int(windows.shape[-2]), int(windows.shape[-1])),
            padded=(int(padded.shape[-2]), int(padded.shape[-1])),
            offset=offset,
        )

    @torch.no_grad()
    def refinement(self, windows: Tensor) -> PamrAffinity:
        """PAMR affinities of windows ``[B, 3, H, W]``, at the masks' resolution or at ``refine_scale``."""
        padded, _ = pad_to_multiple(windows, self.clip.patch_size)
        rows, columns = self.clip.grid(padded)
        scale = self.config.refine_scale or 2**self.config.decoder_layers
        return pamr_affinity(padded, size=(rows * scale, columns * scale))

    @torch.no_grad()
    def score_maps(
        self, emb: WindowEmbeddings, text: Tensor, affinity: PamrAffinity | None = None, kp_weight: float = 0.0
    ) -> Tensor:
        r"""Masks :math:`\sigma(w \cos(V, t) + b)`, refined, blended with CLIP's own dense map, and up-sampled.

        Args:
            emb: of B windows.
            text: float ``[P, E]``, normalized or not.
            affinity: of the same windows; ``None`` for no refinement.
            kp_weight: weight in ``[0, 1]`` of :math:`\sigma(10 (\cos(\text{CLIP}, t) - 0.25))`; 0 leaves it out.

        Returns:
            float32 ``[B, P, H, W]`` in ``[0, 1]``, without the padding.
        """
        with torch.autocast(device_type=emb.image_emb.device.type, enabled=False):
            text = _unit(text.to(emb.image_emb.device), dim=-1)
            masks = self.masker.sim2mask(emb.image_emb.float(), text).sigmoid_()
            if affinity is not None:
                masks = refine_masks(affinity, masks)
            if kp_weight:
                dense = self.config.kp_scale * (cosine_maps(emb.dense.float(), text) - self.config.kp_threshold)
                dense = F.interpolate(torch.sigmoid(dense), size=masks.shape[-2:], mode="bilinear")
                masks = masks.lerp_(dense, kp_weight)
            masks = F.interpolate(masks, size=emb.padded, mode="bilinear")
        (top, left), (height, width) = emb.offset, emb.size
        # Rounding in the weighted means may leave the unit interval by some 1e-7.
        return masks[..., top : top + height, left : left + width].clamp_(0, 1)

    # -- training ------------------------------------------------------------------------------------------------

    def set_stage(self, stage: Stage) -> list[nn.Parameter]:
        """Choose what is trained.

        Args:
            stage: "ust" trains decoder, projection, mask scalars and temperatures; "full" also the copied block.

        Returns:
            The trainable parameters.

        Raises:
            SettingsError: the stage is unknown.
        """
        if stage not in get_args(Stage):
            raise SettingsError(f"There is no training stage {stage!r}; the stages are: {', '.join(get_args(Stage))}.")
        # Set all of them: a model that was loaded for inference has everything frozen.
        self.requires_grad_(True)
        self.clip.requires_grad_(False)
        self.masker.image_encoder.backbone.requires_grad_(stage == "full")
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def losses(
        self,
        images: Tensor,
        tokens: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        negatives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """TCL's objective on a batch of matching images and captions.

        With a process group each process passes its own B pairs; contrasts and masks then run over all N = B x
        processes texts, and every term is the mean of this process' part.

        Args:
            images: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.
            tokens: int64 ``[B, L]``, one caption each.
            noise: uniform in (0, 1), for the Gumbel-sigmoid: ``[B, mh, mw]``, or ``[B, N, mh, mw]`` of which the
                matching pairs are used. ``None`` draws it.
            generator: source of the drawn noise.
            negatives: float ``[B, N]``, how often each image of this process counts as a negative of each text, from
                0 to 1, in both contrasts and in the masks of other pairs; a pair that matches counts as one whatever is
                said here. ``None``, in every process or in none, counts each once, as the paper does.

        Returns:
            Scalars: the weighted ``tcli_loss``, ``tclf_loss``, ``area_loss``, ``neg_area_loss``, ``tv_img_loss``
            and ``tv_mask_loss``, their sum ``total``, and the mean mask of matching (``mask``) and other
            (``neg_mask``, weighted by ``negatives``) pairs, without gradient.

        Raises:
            ValueError: the shapes do not fit each other or the patch size, or ``negatives`` are not from 0 to 1.
        """
        if len(images) != len(tokens):
            raise ValueError(f"there are {len(images)} images, but {len(tokens)} captions")
        grid = self.clip.grid(images)
        offset = process_rank() * len(images)
        with torch.no_grad():
            text = self.clip.encode_text(tokens)
            features = self.clip.tokens_after(images, self.first_block)
        image_emb = self.masker.image_encoder(features, grid)
        with torch.autocast(device_type=images.device.type, enabled=False):
            image_emb = image_emb.float()
            all_text = gather(_unit(text, dim=-1))
            if negatives is not None:
                negatives = self._checked(negatives, (len(images), len(all_text))).to(all_text)
            logits = self.masker.sim2mask(_unit(image_emb, dim=1), all_text)
            masks, own_logits = torch.sigmoid(logits), _diagonal(logits, offset)
            del logits
            own_noise = self._noise(own_logits, noise, generator, offset)
            hard = gumbel_sigmoid(own_logits, own_noise, self.config.gumbel_tau)
        masked = images * F.interpolate(hard[:, None], size=images.shape[-2:], mode="nearest")
        region = self.clip.encode_image(masked)
        with torch.autocast(device_type=images.device.type, enabled=False):
            return self._terms(image_emb, masks, _unit(region, dim=-1), all_text, offset, negatives)

    @staticmethod
    def _checked(negatives: Tensor, shape: tuple[int, int]) -> Tensor:
        if negatives.shape != shape:
            raise ValueError(f"the negatives have shape {tuple(negatives.shape)}, not {shape}")
        if not ((negatives >= 0) & (negatives <= 1)).all():
            raise ValueError("the negatives must be from 0 to 1")
        return negatives

    @staticmethod
    def _noise(logits: Tensor, noise: Tensor | None, generator: torch.Generator | None, offset: int) -> Tensor:
        if noise is None:
            return draw_noise(logits, generator)
        own = _diagonal(noise, offset) if noise.ndim == 4 else noise
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
        pooled = _unit(pool_by_masks(image_emb, masks), dim=-1)
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
