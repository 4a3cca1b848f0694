"""What every method can do: embed windows and prompts, score, refine, and compute its training losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tcl_core.errors import WeightsError
from tcl_core.refinement.pamr import PamrAffinity
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["Method", "Stage", "WindowEmbeddings"]

Stage = Literal["ust", "full"]

_TEXT_BATCH = 256


@dataclass(frozen=True)
class WindowEmbeddings:
    """All that a method knows of B windows before it has seen a prompt.

    Attributes:
        image_emb: ``[B, E, mh, mw]``, the grounder's embedding of each mask pixel, L2-normalized over E.
        dense: ``[B, E, h, w]``, CLIP's own dense embedding of each patch, L2-normalized over E.
        size: height and width of the windows in pixels.
        padded: height and width after zero padding to whole patches.
        offset: padding ``(top, left)`` in pixels.
    """

    image_emb: Tensor
    dense: Tensor
    size: tuple[int, int]
    padded: tuple[int, int]
    offset: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(tensor.element_size() * tensor.numel() for tensor in (self.image_emb, self.dense))

    def __len__(self) -> int:
        return int(self.image_emb.shape[0])

    def __getitem__(self, windows: slice) -> WindowEmbeddings:
        """Some of the windows, without a copy."""
        return WindowEmbeddings(self.image_emb[windows], self.dense[windows], self.size, self.padded, self.offset)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> WindowEmbeddings:
        """A copy on another device or in another precision (float16 halves the memory of a cache)."""
        return WindowEmbeddings(
            self.image_emb.to(device=device, dtype=dtype),
            self.dense.to(device=device, dtype=dtype),
            self.size,
            self.padded,
            self.offset,
        )


class Method(nn.Module, ABC):
    """A way from an image and prompts to score maps, built on a frozen CLIP.

    Sub-classes register themselves with :func:`tcl_core.methods.register_method`. Everything learned is outside
    ``self.clip``. All calls work in float32 and under ``torch.autocast``.

    Args:
        clip: the frozen towers.
    """

    optional_keys: frozenset[str] = frozenset()
    """Learned tensors that inference does not need and published files may lack."""

    def __init__(self, clip: FrozenClip):
        super().__init__()
        self.clip = clip

    @classmethod
    @abstractmethod
    def from_config(cls, clip: FrozenClip, config: Mapping[str, Any]) -> Self:
        """Build the method from plain settings.

        Raises:
            SettingsError: a setting is unknown or out of range.
        """

    @abstractmethod
    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; :meth:`from_config` accepts them."""

    @abstractmethod
    def embed_windows(self, windows: Tensor) -> WindowEmbeddings:
        """Embed windows; the costly part of inference.

        Args:
            windows: float32 ``[B, 3, H, W]``, normalized; any H and W.
        """

    @abstractmethod
    def refinement(self, windows: Tensor) -> PamrAffinity | None:
        """What refines masks of these windows ``[B, 3, H, W]``; ``None`` where the method refines nothing."""

    @abstractmethod
    def score_maps(
        self, emb: WindowEmbeddings, text: Tensor, affinity: PamrAffinity | None = None, kp_weight: float = 0.0
    ) -> Tensor:
        """Score every pixel of the windows for every prompt.

        Args:
            emb: of B windows.
            text: float ``[P, E]`` of :meth:`embed_prompts`.
            affinity: of the same windows, or ``None`` for no refinement.
            kp_weight: weight in ``[0, 1]`` of the map from CLIP's own dense features.

        Returns:
            float32 ``[B, P, H, W]`` in ``[0, 1]``.
        """

    @abstractmethod
    def losses(
        self,
        images: Tensor,
        tokens: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        negatives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The training losses of a batch of images and captions, and their sum under ``total``."""

    @abstractmethod
    def set_stage(self, stage: Stage) -> list[nn.Parameter]:
        """Freeze and unfreeze parameters for a training stage; returns the trainable ones.

        Raises:
            SettingsError: the stage is unknown.
        """

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        negatives: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses, so that ``DistributedDataParallel`` can wrap a method."""
        return self.losses(images, tokens, noise, generator, negatives)

    @torch.no_grad()
    def embed_prompts(self, tokens: Tensor) -> Tensor:
        """Embed prompts as the mean over their templates.

        The un-normalized embeddings are averaged, then the mean is normalized.

        Args:
            tokens: int64 ``[P, T, L]``: P prompts in T templates each.

        Returns:
            float32 ``[P, E]``, L2-normalized.
        """
        prompts, templates, length = tokens.shape
        parts = [self.clip.encode_text(part).float() for part in tokens.reshape(-1, length).split(_TEXT_BATCH)]
        mean = torch.cat(parts).unflatten(0, (prompts, templates)).mean(dim=1)
        return F.normalize(mean, dim=-1)

    def learned_state_dict(self) -> dict[str, Tensor]:
        """The learned tensors under their published names, without the frozen CLIP."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("clip.")}

    def load_learned_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load learned tensors.

        Args:
            state: tensors under the names of :meth:`learned_state_dict`; those of ``optional_keys`` may be missing
                and then keep their value.

        Raises:
            WeightsError: a tensor is missing, unknown or has another shape; the message lists them.
        """
        own = self.learned_state_dict()
        faults = []
        if missing := sorted(own.keys() - state.keys() - self.optional_keys):
            faults.append(f"missing: {', '.join(missing)}")
        if unknown := sorted(state.keys() - own.keys()):
            faults.append(f"unknown: {', '.join(unknown)}")
        if misshaped := [
            f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in sorted(own.keys() & state.keys())
            if state[name].shape != own[name].shape
        ]:
            faults.append(f"of another shape: {', '.join(misshaped)}")
        if faults:
            raise WeightsError(f"The tensors do not fit the method {type(self).__name__}; {'; '.join(faults)}.")
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)
