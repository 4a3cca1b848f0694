"""A softmax over all names: an example of a method, complete and small enough to copy from.

CLIP's own dense embedding (last block with diagonal attention, as in MaskCLIP, arXiv 2112.01071) is compared with the
prompts, and a softmax over all names of the vocabulary turns the cosines into scores. Nothing is learned, so the method
runs on the towers of any model: ``--model example-softmax:playground``.

What a method has to say for itself, from top to bottom: its options, what it knows of windows (`Features`), what it
knows of prompts (`PromptEmbeddings`), and the steps of inference. `tests/contract` checks all of it on `example`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods import Background, Features, Method, MethodOptions, PromptEmbeddings, option, register_method
from tcl_core.refinement.base import Guide, Refine, ScoreRefiner
from tcl_core.towers.base import Tower
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.padding import pad_to_multiple
from tcl_core.towers.tokenizer import WordTokenizer

__all__ = ["ExampleFeatures", "ExampleOptions", "ExamplePrompts", "ExampleSoftmax"]


class ExampleOptions(MethodOptions):
    """Each option says what it affects: cached features are computed anew for one kind, and kept for the other."""

    scale: float = option(20.0, "Slope of the softmax over the names.", affects="scores", gt=0, le=1000)
    smooth: bool = option(True, "Average the dense embedding over 3 x 3 patches.", affects="features")


@dataclass(frozen=True, eq=False)
class ExampleFeatures(Features):
    """All that depends on B windows alone. Every tensor has B entries; numbers hold for all windows.

    Attributes:
        dense: float32 ``[B, E, h, w]``, the embedding of each patch, L2-normalized over E.
        size: height and width of the windows in pixels.
        padded: height and width after zero padding to whole patches.
        offset: padding ``(top, left)`` in pixels.
    """

    dense: Tensor
    size: tuple[int, int]
    padded: tuple[int, int]
    offset: tuple[int, int]


@dataclass(frozen=True, eq=False)
class ExamplePrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]``, L2-normalized.
    """

    text: Tensor


@register_method("example-softmax")
class ExampleSoftmax(Method):
    """Cosines of CLIP's dense embedding, and a softmax over all names.

    Args:
        clip: the frozen towers.
        options: by default `ExampleOptions()`.

    Example:
        >>> method = ExampleSoftmax.example()
        >>> prompts = method.embed_prompts(["cat", "sky"], ["a photo of a {}."])
        >>> merged = method.similarities(method.encode(torch.rand(1, 3, 40, 50)), prompts)[0]
        >>> scores = method.finish(merged, labels=[0, 1])
        >>> tuple(scores.shape), bool((scores.sum(dim=0) - 1).abs().max() < 1e-5)
        ((2, 40, 50), True)
    """

    tower_names = ("clip",)
    # A cosine does not depend on other prompts, a softmax does: `finish` is given all names every time.
    independent_prompts = True
    independent_labels = False
    options_class = ExampleOptions
    options: ExampleOptions

    def __init__(self, clip: FrozenClip, options: ExampleOptions | None = None) -> None:
        super().__init__(options)
        self.clip = clip

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build the method; it has no settings besides its options.

        Raises:
            SettingsError: there is a setting.
        """
        if config:
            raise SettingsError(f"The method {cls.name!r} has no setting {next(iter(config))!r}; it has none.")
        return cls(cast(FrozenClip, towers["clip"]))

    def config_to_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    @classmethod
    def example(cls) -> Self:
        """A tiny instance with random weights."""
        words = ("a", "photo", "of", "cat", "dog", "red", "sofa", "sky")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            clip = FrozenClip.example(WordTokenizer(words, context_length=10))
        return cls(clip).eval()

    @property
    def background(self) -> Background:
        """A plane that the best of the competing names has to exceed."""
        return Background("plane", {"plain": 0.4, "pamr": 0.35})

    @torch.no_grad()
    def encode(self, windows: Tensor) -> ExampleFeatures:
        """Embed each patch of windows float32 ``[B, 3, H, W]``."""
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        (tokens,) = self.clip.tokens(padded, after=(self.clip.depth - 1,))
        dense = self.clip.project_dense(self.clip.last_block_diagonal(tokens, self.clip.grid(padded))).float()
        if self.options.smooth:
            dense = F.avg_pool2d(dense, 3, stride=1, padding=1, count_include_pad=False)
        return ExampleFeatures(
            dense=F.normalize(dense, dim=1),
            size=(int(windows.shape[-2]), int(windows.shape[-1])),
            padded=(int(padded.shape[-2]), int(padded.shape[-1])),
            offset=offset,
        )

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> ExamplePrompts:
        """Embed P prompts as the normalized mean over templates."""
        device = self.clip.visual.proj.device
        if not prompts:
            return ExamplePrompts(torch.zeros(0, self.clip.embed_dim, device=device))
        if self.clip.tokenizer is None:
            raise SettingsError("The CLIP has no tokenizer, so prompts cannot be embedded; give it one.")
        texts = [template.replace("{}", prompt) for prompt in prompts for template in templates]
        text = self.clip.encode_text(self.clip.tokenizer(texts).to(device)).float()
        return ExamplePrompts(F.normalize(text.unflatten(0, (len(prompts), -1)).mean(dim=1), dim=-1))

    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """Cosines ``[P, Q]``."""
        return cast(ExamplePrompts, first).text @ cast(ExamplePrompts, second).text.T

    @torch.no_grad()
    def similarities(self, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
        """Cosines ``[B, P, H, W]``; what is averaged over windows must come before the softmax, not after it."""
        features = cast(ExampleFeatures, features)
        if not len(prompts):
            return torch.zeros(len(features), 0, *features.size, device=features.dense.device)
        with torch.autocast(device_type=features.dense.device.type, enabled=False):
            text = cast(ExamplePrompts, prompts).text.to(features.dense.device).float()
            cosines = torch.einsum("behw,pe->bphw", features.dense.float(), text)
            cosines = F.interpolate(cosines, size=features.padded, mode="bilinear")
        (top, left), (height, width) = features.offset, features.size
        return cosines[..., top : top + height, left : left + width].contiguous()

    @torch.no_grad()
    def finish(self, merged: Tensor, labels: Sequence[int], refine: Refine | None = None) -> Tensor:
        """Softmax over all names, maximum over those of a label, then refinement of the whole image."""
        scores = super().finish(torch.softmax(self.options.scale * merged, dim=0), labels)
        # Refinement weights sum to one only up to rounding.
        return scores if refine is None else refine(scores[None])[0].clamp_(0, 1)

    def image_guide(self, refiner: ScoreRefiner, image: Tensor, size: tuple[int, int]) -> Guide:
        """The guide of the whole image, for `finish`; a method that refines inside windows makes `window_guide`."""
        return refiner.prepare(image, size)
