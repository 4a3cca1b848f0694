"""What training-free methods share: CLIP's own dense embedding, and what becomes of its cosines.

The steps after the encoder are those of the published evaluations (SCLIP, arXiv 2312.01597, and those that follow it):
cosines are merged over windows, enlarged, refined if wanted, scaled and soft-maxed over **all** names; a label has the
maximum over its names. Names of the background compete as labels do: one by one where a user lists them, as in the
papers, and as one name, the strongest at each pixel, where they are many.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Background, Features, PromptEmbeddings, best_of_labels
from tcl_core.methods.image_size import FinishedAtImageSize
from tcl_core.methods.options import MethodOptions, option
from tcl_core.methods.semantic_unit import UnitOptions, in_units
from tcl_core.methods.training_free.prompts import embed_in_templates
from tcl_core.refinement.base import Refine
from tcl_core.towers.base import PositionRule, Tower
from tcl_core.towers.open_clip_vit import FrozenClip, bicubic_positions, scaled_bicubic_positions
from tcl_core.towers.padding import pad_to_multiple
from tcl_core.towers.tokenizer import WordTokenizer

__all__ = ["DenseFeatures", "DenseOptions", "DensePrompts", "TrainingFree", "small_labels_dropped"]

BACKGROUND_HEIGHT = 0.1
"""The one default height of the background plane; the papers tune it on the test set of each data set."""

_STRIP_VALUES = 1 << 23
_POSITIONS: dict[str, PositionRule] = {"size": bicubic_positions, "scale-factor": scaled_bicubic_positions}


class DenseOptions(UnitOptions):
    """Options that all training-free methods have."""

    scale: float = option(40.0, "Slope of the softmax over all names.", affects="scores", gt=0, le=1000)
    softmax_over: Literal["names", "labels"] = option(
        "names",
        "Softmax over all names, or over the best name of each label, as in NACLIP's program.",
        affects="scores",
    )
    area_threshold: float = option(
        0.0,
        "Drop labels that win at most this share of all labeled pixels (SCLIP on Pascal VOC: 0.1).",
        affects="scores",
        ge=0,
        le=1,
    )
    positions: Literal["scale-factor", "size"] = option(
        "scale-factor",
        "How position embeddings are resized to other grids: by the papers' scale factors, or to the exact size.",
        affects="features",
    )
    finish_pixels: int = option(
        640 * 640,
        "Compute scores at image size up to this number of pixels; upsample them for larger images.",
        affects="features",
        ge=1,
    )


@dataclass(frozen=True, eq=False)
class DenseFeatures(Features):
    """Dense embeddings of B windows.

    Attributes:
        dense: float32 ``[B, E, h, w]``, L2-normalized over E, of each patch.
        size: height and width of the windows in pixels.
        padded: height and width after zero padding to whole patches.
        offset: padding ``(top, left)`` in pixels.
    """

    dense: Tensor
    size: tuple[int, int]
    padded: tuple[int, int]
    offset: tuple[int, int]

    def enlarged(self, maps: Tensor) -> Tensor:
        """Maps ``[B, P, h, w]`` of the patches at the windows' size, without the padding."""
        maps = F.interpolate(maps, size=self.padded, mode="bilinear")
        (top, left), (height, width) = self.offset, self.size
        return maps[..., top : top + height, left : left + width].contiguous()


@dataclass(frozen=True, eq=False)
class DensePrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]``, the mean over templates that are L2-normalized each, normalized again.
    """

    text: Tensor


class TrainingFree(FinishedAtImageSize):
    """A method that needs a CLIP and nothing learned beside it.

    Args:
        clip: the frozen towers.
        options: by default those of the class.
    """

    tower_names = ("clip",)
    independent_labels = False
    options_class: ClassVar[type[MethodOptions]] = DenseOptions
    options: DenseOptions

    def __init__(self, clip: FrozenClip, options: DenseOptions | None = None) -> None:
        super().__init__(options)
        self.clip = clip

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build the method; it has no settings besides its options.

        Raises:
            SettingsError: there is a setting.
        """
        if config:
            raise SettingsError(f"The method {cls.name!r} has no setting {next(iter(config))!r}; it has no settings.")
        return cls(cast(FrozenClip, towers["clip"]))

    def config_to_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    @classmethod
    def example(cls) -> Self:
        """An instance of four blocks with random weights."""
        words = ("a", "photo", "of", "cat", "dog", "red", "sofa", "sky")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            clip = FrozenClip.example(WordTokenizer(words, context_length=10), layers=4)
        return cls(clip).eval()

    @property
    def background(self) -> Background:
        """A low plane, beside the common names."""
        return Background("plane", {"plain": BACKGROUND_HEIGHT})

    # -- the image -----------------------------------------------------------------------------------------------

    @property
    def position_rule(self) -> PositionRule:
        """How the trained grid of position embeddings is resized."""
        return _POSITIONS[self.options.positions]

    @abstractmethod
    def patch_tokens(self, padded: Tensor) -> Tensor:
        """Tokens of the patches before the final layer norm.

        Args:
            padded: float ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.

        Returns:
            float ``[B, hw, C]``.
        """

    def projected(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens ``[B, hw, C]`` in the joint space, float32 ``[B, E, h, w]``, L2-normalized over E."""
        maps = tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        return F.normalize(self.clip.project_dense(maps).float(), dim=1)

    @torch.no_grad()
    def encode(self, windows: Tensor) -> DenseFeatures:
        """Embed each patch of windows float32 ``[B, 3, H, W]``, zero-padded to whole patches inside."""
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        return self.dense_features(self.patch_tokens(padded), windows, padded, offset)

    def dense_features(self, tokens: Tensor, windows: Tensor, padded: Tensor, offset: tuple[int, int]) -> DenseFeatures:
        """Features of windows from the tokens ``[B, hw, C]`` of their patches."""
        return self.features_from(self.projected(tokens, self.clip.grid(padded)), windows, padded, offset)

    @staticmethod
    def features_from(dense: Tensor, windows: Tensor, padded: Tensor, offset: tuple[int, int]) -> DenseFeatures:
        """Features of windows from the embeddings ``[B, E, h, w]`` of their patches."""
        return DenseFeatures(
            dense=dense,
            size=(int(windows.shape[-2]), int(windows.shape[-1])),
            padded=(int(padded.shape[-2]), int(padded.shape[-1])),
            offset=offset,
        )

    # -- the prompts ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> DensePrompts:
        """Embed prompts as the mean over templates, each of them normalized first.

        Args:
            prompts: P texts.
            templates: T texts, each with one ``{}`` for the prompt.

        Raises:
            SettingsError: the tower has no tokenizer.
        """
        return DensePrompts(embed_in_templates(self.clip, prompts, templates))

    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """Cosines ``[P, Q]``."""
        return cast(DensePrompts, first).text @ cast(DensePrompts, second).text.T

    # -- dense embedding -----------------------------------------------------------------------------------------

    def pixels(self, features: Features) -> Tensor:
        """The patches' embeddings, float32 ``[B, E, h, w]``, L2-normalized."""
        return cast(DenseFeatures, features).dense.float()

    def rows(self, prompts: PromptEmbeddings) -> Tensor:
        """The prompts' embeddings, float32 ``[P, E]``, L2-normalized."""
        return cast(DensePrompts, prompts).text.float()

    def score(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """Shares ``[B, P, h, w]`` of all rows, which add to one at each pixel."""
        return torch.softmax(self.options.scale * torch.einsum("behw,pe->bphw", pixels, rows), dim=1)

    # -- both ----------------------------------------------------------------------------------------------------

    def patch_cosines(self, features: DenseFeatures, prompts: DensePrompts) -> Tensor:
        """Cosines float32 ``[B, P, h, w]`` of patches and prompts."""
        text = self.rows(prompts).to(features.dense.device)
        return torch.einsum("behw,pe->bphw", in_units(self.pixels(features), self.options), text)

    def patch_maps(self, features: DenseFeatures, prompts: DensePrompts) -> Tensor:
        """What is averaged over windows, float32 ``[B, P, h, w]`` of patches; by default cosines."""
        return self.patch_cosines(features, prompts)

    @torch.no_grad()
    def similarities(self, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
        """Cosines float32 ``[B, P, H, W]``; the softmax comes after they are averaged over windows."""
        features = cast(DenseFeatures, features)
        if not len(prompts):
            return features.dense.new_zeros(len(features), 0, *features.size, dtype=torch.float32)
        with torch.autocast(device_type=features.dense.device.type, enabled=False):
            return features.enlarged(self.patch_maps(features, cast(DensePrompts, prompts)))

    @torch.no_grad()
    def similarities_at(self, features: Features, prompts: PromptEmbeddings, size: tuple[int, int]) -> Tensor | None:
        """Cosines of a whole image float32 ``[P, H, W]``, enlarged once; ``None`` where there is padding to cut off."""
        features = cast(DenseFeatures, features)
        if features.padded != features.size or not len(prompts):
            return None
        with torch.autocast(device_type=features.dense.device.type, enabled=False):
            maps = self.patch_maps(features, cast(DensePrompts, prompts))
            return F.interpolate(maps, size=size, mode="bilinear")[0]

    @torch.no_grad()
    def name_values(self, features: Features, names: PromptEmbeddings) -> Tensor:
        """Maps float32 ``[B, P, h, w]`` of patches."""
        features = cast(DenseFeatures, features)
        with torch.autocast(device_type=features.dense.device.type, enabled=False):
            return self.patch_maps(features, cast(DensePrompts, names))

    @torch.no_grad()
    def settle(self, merged: Tensor, size: tuple[int, int], refine: Refine | None = None) -> Tensor:
        """Enlarge merged maps and let them follow the image's edges, each prompt for itself."""
        if tuple(merged.shape[1:]) != size:
            merged = F.interpolate(merged[None], size=size, mode="bilinear")[0]
        return merged if refine is None or not len(merged) else refine(merged[None])[0]

    def shares(self, merged: Tensor) -> Tensor:
        """Settled similarities float32 ``[P, h, w]`` as shares that add to one, in memory of their own."""
        return torch.softmax(self.options.scale * merged, dim=0)

    @torch.no_grad()
    def finish(self, merged: Tensor, labels: Sequence[int], refine: Refine | None = None) -> Tensor:
        """Softmax over all names, and the maximum over those of a label; small labels are left out if wanted.

        Names of the background that come as one plane count as one name.
        """
        if not len(merged):
            return merged.clone()
        rows = max(1, _STRIP_VALUES // (len(merged) * merged.shape[2]))
        scores = merged.new_empty(max(labels) + 1 + (-1 in labels), *merged.shape[1:])
        with torch.autocast(device_type=merged.device.type, enabled=False):
            # In strips, because a softmax over many names takes as much again as all of them, twice.
            for top in range(0, merged.shape[1], rows):
                strip = merged[:, top : top + rows]
                if self.options.softmax_over == "names":
                    scores[:, top : top + rows] = best_of_labels(self.shares(strip), labels)
                else:
                    scores[:, top : top + rows] = self.shares(best_of_labels(strip, labels))
        if self.options.area_threshold:
            small_labels_dropped(scores, self.options.area_threshold, background=-1 in labels)
        return scores.clamp_(max=1)


def small_labels_dropped(scores: Tensor, least: float, *, background: bool) -> None:
    """Set the planes of labels to 0 that win no more than a share of what labels win (SCLIP), in place.

    Args:
        scores: float ``[K, h, w]``.
        least: share in ``[0, 1]``.
        background: whether the last plane is that of the background's names, which is kept and does not count.
    """
    won = torch.bincount(scores.argmax(dim=0).flatten(), minlength=len(scores))
    labels = len(scores) - background
    total = won[:labels].sum().clamp(min=1)
    small = won[:labels] / total <= least
    scores[:labels][small] = 0
