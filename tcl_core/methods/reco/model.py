"""ReCo-style segmentation (arXiv 2206.07045): a label is a reference embedding found in the user's own images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError
from tcl_core.methods.base import Background, Features, PromptEmbeddings
from tcl_core.methods.exportable import ExportableMethod, Run
from tcl_core.methods.image_size import FinishedAtImageSize
from tcl_core.methods.options import MethodOptions
from tcl_core.methods.reco.config import ReCoConfig, ReCoOptions
from tcl_core.methods.reco.cosegmentation import reference_scores, text_attention
from tcl_core.methods.reco.fitting import Fitting, MemoryArchive, fit_references
from tcl_core.methods.registry import register_method
from tcl_core.methods.training_free.attention import last_block
from tcl_core.methods.training_free.prompts import embed_in_templates
from tcl_core.refinement.base import Refine
from tcl_core.towers.base import Tower
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.padding import pad_to_multiple
from tcl_core.towers.timm_vit import TimmVit
from tcl_core.towers.tokenizer import WordTokenizer

__all__ = ["ReCo", "ReCoFeatures", "ReCoPrompts"]


@dataclass(frozen=True, eq=False)
class ReCoFeatures(Features):
    """What two encoders know of B windows.

    Attributes:
        dense: float32 ``[B, E, h', w']``, dense CLIP features in the joint space, L2-normalized over E.
        image: float32 ``[B, C, h, w]`` of the encoder of correspondences, not normalized.
        size: height and width of the windows in pixels.
        dense_frame: height, width, top and left of the padded windows that ``dense`` covers.
        image_frame: the same for ``image``.
    """

    dense: Tensor
    image: Tensor
    size: tuple[int, int]
    dense_frame: tuple[int, int, int, int]
    image_frame: tuple[int, int, int, int]

    def enlarged(self, maps: Tensor, frame: tuple[int, int, int, int]) -> Tensor:
        """Maps ``[B, P, h, w]`` at the windows' size, without the padding."""
        height, width, top, left = frame
        maps = F.interpolate(maps, size=(height, width), mode="bilinear")
        return maps[..., top : top + self.size[0], left : left + self.size[1]]

    @property
    def is_padded(self) -> bool:
        """Whether there is padding to cut off."""
        return (*self.size, *self.size) != (*self.dense_frame[:2], *self.image_frame[:2])


@dataclass(frozen=True, eq=False)
class ReCoPrompts(PromptEmbeddings):
    """Embedded prompts.

    Attributes:
        text: float32 ``[P, E]``, the mean over templates that are L2-normalized each, normalized again.
        reference: float32 ``[P, C]``, L2-normalized.
    """

    text: Tensor
    reference: Tensor


@register_method("reco")
class ReCo(ExportableMethod, FinishedAtImageSize):
    """Two questions to every pixel: does it look like the reference of a word, and like the word itself?

    Args:
        clip: the frozen towers; they retrieve, and give the language attention (MaskCLIP's dense features).
        image: the encoder of correspondences; ``None`` takes the CLIP's tokens after its last block but one.
        config: the words that have a reference.

    Example:
        >>> method = ReCo.example()
        >>> prompts = method.embed_prompts(["cat", "sky"], ["a photo of a {}."])
        >>> tuple(method.similarities(method.encode(torch.rand(1, 3, 40, 50)), prompts).shape)
        (1, 2, 40, 50)
    """

    tower_names = ("clip",)
    optional_tower_names = ("image",)
    fitted_by = "tcl-annotate archive fit"
    options_class: ClassVar[type[MethodOptions]] = ReCoOptions
    options: ReCoOptions

    def __init__(self, clip: FrozenClip, image: TimmVit | None = None, config: ReCoConfig | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.image = image
        self.config = ReCoConfig() if config is None else config
        self.references: Tensor
        self.register_buffer("references", torch.zeros(len(self.config.names), self.reference_width))

    @classmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build from plain settings, see :class:`ReCoConfig`."""
        image = cast(TimmVit | None, towers.get("image"))
        return cls(cast(FrozenClip, towers["clip"]), image, ReCoConfig.from_dict(config))

    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.config.to_dict()

    @classmethod
    def example(cls) -> Self:
        """An instance of four blocks with random weights, fitted to random images."""
        words = ("a", "photo", "of", "cat", "dog", "red", "sofa", "sky")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            method = cls(FrozenClip.example(WordTokenizer(words, context_length=10), layers=4)).eval()
            images = F.interpolate(torch.randn(8, 3, 5, 5), size=(32, 32))
        archive = MemoryArchive.of(method, {f"{place}.png": image for place, image in enumerate(images)})
        return method.with_references(method.fit(archive, cls.example_prompts(), ("{}",), contexts=("photo",)))

    # -- fitting -------------------------------------------------------------------------------------------------

    @property
    def reference_width(self) -> int:
        """Channels C of the encoder of correspondences."""
        return self.clip.width if self.image is None else self.image.width

    def fit(self, archive: Any, names: Sequence[str], templates: Sequence[str], **settings: Any) -> Fitting:
        """Find references of words in an archive; see `tcl_core.methods.reco.fitting.fit_references`."""
        return fit_references(self, archive, names, templates, **settings)

    def with_references(self, fitting: Fitting) -> Self:
        """The method on the same towers with other references."""
        other = type(self)(self.clip, self.image, ReCoConfig(fitting.names)).eval()
        other.options = self.options
        other.references = fitting.references.to(self.references.device, copy=True)
        return other.requires_grad_(False)

    def refusal(self, prompt: str) -> str | None:
        """A word without a reference cannot be asked, for text alone would be another method."""
        if prompt in self._places:
            return None
        named = ", ".join(map(repr, self.config.names[:8])) + (", ..." if len(self.config.names) > 8 else "")
        return (
            f"has no reference for it, but for {named or 'nothing'}; make one with '{self.fitted_by}', or use one of "
            "these prompts"
        )

    @property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.config.names)}

    # -- inference -----------------------------------------------------------------------------------------------

    @property
    def background(self) -> Background:
        """No threshold, as in the paper; one that the user sets is compared with the score."""
        return Background("plane", {"plain": 0.0})

    def window_tensors(self, padded: Tensor) -> tuple[Tensor, ...]:
        """CLIP's dense embeddings ``[B, E, h, w]``, L2-normalized, and maps ``[B, C, h, w]`` of its tokens."""
        grid = self.clip.grid(padded)
        (tokens,) = self.clip.tokens(padded, (self.clip.depth - 1,))
        last = last_block(self.clip.visual.transformer.resblocks[-1], tokens[:, 1:], "identity", residual=True)
        dense = self.clip.project_dense(_as_maps(last, grid)).float()
        return F.normalize(dense, dim=1), _as_maps(tokens[:, 1:], grid).float().contiguous()

    def encode_through(self, run: Run, windows: Tensor) -> ReCoFeatures:
        """Look at windows float32 ``[B, 3, H, W]``, zero-padded to whole patches inside, with both encoders.

        An encoder of correspondences beside the CLIP is PyTorch's, whatever runs the CLIP.
        """
        padded, offset = pad_to_multiple(windows, self.clip.patch_size)
        dense, image = run(padded)
        frame = (int(padded.shape[-2]), int(padded.shape[-1]), *offset)
        image_frame = frame
        if self.image is not None:
            padded, offset = pad_to_multiple(windows, self.image.patch_size)
            image, image_frame = self.image(padded), (int(padded.shape[-2]), int(padded.shape[-1]), *offset)
        size = (int(windows.shape[-2]), int(windows.shape[-1]))
        return ReCoFeatures(dense, image.float().contiguous(), size, frame, image_frame)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Embed whole images for retrieval.

        Args:
            images: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the CLIP's patch size.

        Returns:
            float32 ``[B, E]``, L2-normalized.
        """
        return F.normalize(self.clip.encode_image(images).float(), dim=-1)

    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> ReCoPrompts:
        """Embed prompts, and look up their references.

        Args:
            prompts: P texts, each with a reference.
            templates: T texts, each with one ``{}`` for the prompt.

        Raises:
            SettingsError: a prompt has no reference, or the tower has no tokenizer.
        """
        places = self._places
        for prompt in prompts:
            if (reason := self.refusal(prompt)) is not None:
                raise SettingsError(f"prompt {prompt!r}: the method {self.name!r} {reason}.")
        rows = self.references[[places[prompt] for prompt in prompts]]
        return ReCoPrompts(embed_in_templates(self.clip, prompts, templates), rows)

    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """Cosines ``[P, Q]`` of the texts."""
        return cast(ReCoPrompts, first).text @ cast(ReCoPrompts, second).text.T

    def _both(self, features: ReCoFeatures, prompts: ReCoPrompts) -> tuple[Tensor, Tensor]:
        """How much patches look like references, and like texts: float32 ``[B, P, h, w]``, each on its own grid."""
        device = features.dense.device
        seen = reference_scores(features.image, prompts.reference.to(device))
        return seen, text_attention(features.dense, prompts.text.to(device), slope=self.options.temperature)

    @torch.no_grad()
    def similarities(self, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
        """Products of both scores, float32 ``[B, P, H, W]`` in ``[0, 1]``."""
        features = cast(ReCoFeatures, features)
        if not len(prompts):
            return features.dense.new_zeros(len(features), 0, *features.size, dtype=torch.float32)
        with torch.autocast(device_type=features.dense.device.type, enabled=False):
            seen, told = self._both(features, cast(ReCoPrompts, prompts))
            return features.enlarged(seen, features.image_frame) * features.enlarged(told, features.dense_frame)

    @torch.no_grad()
    def similarities_at(self, features: Features, prompts: PromptEmbeddings, size: tuple[int, int]) -> Tensor | None:
        """The same of a whole image, enlarged once; ``None`` where there is padding to cut off."""
        features = cast(ReCoFeatures, features)
        if features.is_padded or not len(prompts):
            return None
        with torch.autocast(device_type=features.dense.device.type, enabled=False):
            seen, told = self._both(features, cast(ReCoPrompts, prompts))
            return (F.interpolate(seen, size, mode="bilinear") * F.interpolate(told, size, mode="bilinear"))[0]

    @torch.no_grad()
    def settle(self, merged: Tensor, size: tuple[int, int], refine: Refine | None = None) -> Tensor:
        """Enlarge merged maps and let them follow the image's edges, each prompt for itself."""
        if tuple(merged.shape[1:]) != size:
            merged = F.interpolate(merged[None], size=size, mode="bilinear")[0]
        return merged if refine is None or not len(merged) else refine(merged[None])[0]


def _as_maps(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)
