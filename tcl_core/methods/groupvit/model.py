"""GroupViT (Xu et al., CVPR 2022, arXiv 2202.11094): transformers' encoders, and our own head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Background, Features, Method, PromptEmbeddings
from tcl_core.methods.groupvit.config import GroupViTConfig, GroupViTOptions
from tcl_core.methods.groupvit.encoders import image_groups, make_encoders, project, text_features
from tcl_core.methods.groupvit.head import MOST_SCALE, background_plane, group_maps, group_scores, scores_of_pixels
from tcl_core.methods.groupvit.upstream import from_upstream
from tcl_core.methods.options import MethodOptions
from tcl_core.methods.prompts import texts_in_templates
from tcl_core.methods.registry import register_method
from tcl_core.methods.training_free.names import BACKGROUND_NAMES
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.refinement.base import Guide, Refine, ScoreRefiner
from tcl_core.towers.base import Tower
from tcl_core.towers.padding import pad_to_multiple
from tcl_core.towers.tokenizer import Tokenizer, tokenizer_from_dict

__all__ = ["GroupPrompts", "GroupViT", "GroupViTFeatures"]

_TEXT_BATCH = 128
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class GroupViTFeatures(Features):
    """What is known of B windows before a prompt is seen.

    Attributes:
        maps: float32 ``[B, G, h, w]``, how much each patch belongs to each group.
        groups: float32 ``[B, G, E]`` of the groups in the joint space, L2-normalized.
        image: float32 ``[B, E]`` of the whole window, L2-normalized.
        size: height and width of the windows in pixels.
        padded: height and width after zero padding to whole patches.
        offset: padding ``(top, left)`` in pixels.
    """

    maps: Tensor
    groups: Tensor
    image: Tensor
    size: tuple[int, int]
    padded: tuple[int, int]
    offset: tuple[int, int]

    def enlarged(self) -> Tensor:
        """The maps at the windows' size, without the padding."""
        maps = F.interpolate(self.maps.float(), size=self.padded, mode="bilinear")
        (top, left), (height, width) = self.offset, self.size
        return maps[..., top : top + height, left : left + width]


@dataclass(frozen=True, eq=False)
class GroupPrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]``, the mean over templates that are not normalized before, L2-normalized.
    """

    text: Tensor


@register_method("groupvit")
class GroupViT(Method):
    """A window falls into a few groups, and every group gets the names that fit it.

    A score is half of one plus the authors' score, less the background's plane, so that a height of 0.5 decides as they
    do.

    Args:
        config: sizes; ``None`` takes those of the published checkpoints.

    Raises:
        SettingsError: transformers is not installed.
    """

    independent_prompts = False
    independent_labels = True
    notice = "NVIDIA's terms for GroupViT allow research and evaluation alone, see docs/weights-licenses.md"
    options_class: ClassVar[type[MethodOptions]] = GroupViTOptions
    options: GroupViTOptions

    def __init__(self, config: GroupViTConfig | None = None) -> None:
        super().__init__()
        self.config = config or GroupViTConfig()
        self.encoders = make_encoders(self.config)
        self.tokenizer = tokenizer_from_dict(self.config.tokenizer)

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build from plain settings, see :class:`GroupViTConfig`."""
        return cls(GroupViTConfig.from_dict(config)).eval()

    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.config.to_dict()

    @classmethod
    def example(cls) -> Self:
        """An instance of four blocks with random weights, which has several groups in a window."""
        words = ["cat", "dog", "red", "sofa", "sky"]
        tokenizer = {"type": "words", "words": words, "context_length": 10}
        config = GroupViTConfig(
            width=24,
            heads=3,
            depths=(2, 1, 1),
            group_tokens=(8, 6, 0),
            output_groups=(8, 4),
            image_size=32,
            patch_size=8,
            text_width=16,
            text_heads=2,
            text_layers=1,
            vocab_size=tokenizer_from_dict(tokenizer).vocab_size,
            context_length=10,
            embed_dim=12,
            hidden_dim=20,
            tokenizer=tokenizer,
        )
        with torch.random.fork_rng():
            torch.manual_seed(1)
            method = cls(config)
            with torch.no_grad():
                for name, tensor in method.named_parameters():
                    # Groups of transformers' small random weights are all alike.
                    if tensor.dim() > 1:
                        tensor.normal_(std=0.3)
                    elif name.endswith("logit_scale"):
                        tensor.fill_(2.0)
        return method.eval().requires_grad_(False)

    @classmethod
    def from_upstream(
        cls, state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]
    ) -> UpstreamModel | None:
        """Read the authors' checkpoint or the hub's, see :func:`tcl_core.methods.groupvit.upstream.from_upstream`."""
        return from_upstream(cls, state)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever is asked: the projections need their running statistics."""
        return super().train(False)

    # -- learned tensors -----------------------------------------------------------------------------------------

    def learned_state_dict(self) -> dict[str, Tensor]:
        """The tensors of both encoders, without the counters of batch norms."""
        return {name: x for name, x in super().learned_state_dict().items() if not name.endswith(_COUNTER)}

    # -- prompts -------------------------------------------------------------------------------------------------

    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """That of the text encoder, which is no tower of its own."""
        return (self.tokenizer,)

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed tokenized prompts: the mean over templates, normalized.

        Args:
            tokens: int64 ``[P, T, L]``: P prompts in T templates each.

        Returns:
            float32 ``[P, E]``, L2-normalized.
        """
        prompts, templates, length = tokens.shape
        device = cast(Tensor, self.encoders.logit_scale).device
        with torch.autocast(device_type=device.type, enabled=False):
            parts = tokens.reshape(-1, length).to(device).split(_TEXT_BATCH)
            rows = torch.cat([text_features(self.encoders, part) for part in parts]).float()
        return F.normalize(rows.unflatten(0, (prompts, templates)).mean(dim=1), dim=-1)

    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> GroupPrompts:
        """Embed prompts.

        Args:
            prompts: P texts.
            templates: T texts, each with one ``{}`` for the prompt.

        Raises:
            SettingsError: the model has no tokenizer.
        """
        if not prompts:
            return GroupPrompts(torch.zeros(0, self.config.embed_dim, device=self._scale.device))
        if self.config.tokenizer.get("type") == "none":
            raise SettingsError("The model has no tokenizer, so prompts cannot be embedded; import it with one.")
        texts = texts_in_templates(prompts, templates)
        return GroupPrompts(self.embed_tokens(self.tokenizer(texts).unflatten(0, (len(prompts), -1))))

    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """Cosines ``[P, Q]``."""
        return cast(GroupPrompts, first).text @ cast(GroupPrompts, second).text.T

    # -- images --------------------------------------------------------------------------------------------------

    @property
    def background(self) -> Background:
        """Half, which the authors' plane of zeros and ones becomes; few names, because all are judged together."""
        return Background("plane", {"plain": 0.5}, BACKGROUND_NAMES)

    @property
    def _scale(self) -> Tensor:
        return cast(Tensor, self.encoders.logit_scale).exp().clamp(max=MOST_SCALE)

    def image_guide(self, refiner: ScoreRefiner, image: Tensor, size: tuple[int, int]) -> Guide | None:
        """The guide of the whole image, where the option asks for refinement."""
        return refiner.prepare(image, size) if self.options.pamr else None

    @torch.no_grad()
    def encode(self, windows: Tensor) -> GroupViTFeatures:
        """Group windows float32 ``[B, 3, H, W]``, zero-padded to whole patches inside."""
        padded, offset = pad_to_multiple(windows, self.config.patch_size)
        height, width = int(padded.shape[-2]), int(padded.shape[-1])
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        # Every token goes to one group; half precision would choose others.
        with torch.autocast(device_type=windows.device.type, enabled=False):
            assignments, features = image_groups(self.encoders, padded.float())
            return GroupViTFeatures(
                maps=group_maps(assignments, grid),
                groups=F.normalize(project(self.encoders, features), dim=-1),
                image=F.normalize(project(self.encoders, features.mean(dim=1)), dim=-1),
                size=(int(windows.shape[-2]), int(windows.shape[-1])),
                padded=(height, width),
                offset=offset,
            )

    def segments(self, features: Any) -> Tensor:
        """How much each pixel belongs to each group, float32 ``[B, G, H, W]``; see `Segments`."""
        return cast(GroupViTFeatures, features).enlarged()

    @torch.no_grad()
    def similarities(self, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
        """Scores of the pixels' groups less the background plane, scaled to [0, 1]: float32 ``[B, P, H, W]``."""
        features, text = cast(GroupViTFeatures, features), cast(GroupPrompts, prompts).text
        if not len(prompts):
            return features.maps.new_zeros(len(features), 0, *features.size, dtype=torch.float32)
        device = features.maps.device
        with torch.autocast(device_type=device.type, enabled=False):
            scale, text = self._scale.to(device), text.to(device)
            scores = group_scores(features.groups, features.image, text, scale, self.options.top_k)
            pixels = scores_of_pixels(features.enlarged(), scores)
            # Averaged over windows the difference is that of the averages, which is what is compared with 0.
            return (1 + pixels - background_plane(pixels, self.options.threshold)) / 2

    @torch.no_grad()
    def settle(self, merged: Tensor, size: tuple[int, int], refine: Refine | None = None) -> Tensor:
        """Let maps follow the image's edges, where the option asks for it."""
        return merged if refine is None or not len(merged) else refine(merged[None])[0]
