"""What is measured: networks of the size of ViT-B/16 with random weights, and the scenes that they look at."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tcl_core.methods import Method, create_method, list_methods, method_class
from tcl_core.methods.base import Features, PromptEmbeddings
from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.model import TCLFeatures, TCLPrompts
from tcl_core.methods.training_free.base import DenseFeatures
from tcl_core.models.loading import Model
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.playground import CLASS_NAMES, Scene, draw_scene, scene_rng
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import OpenClipTokenizer
from tcl_core.vocabulary import Label, Vocabulary

__all__ = ["METHODS", "ON_PLAYGROUND", "RandomModels", "Scale", "SceneTCL", "enlarged_scene", "vocabulary_of"]

METHODS = tuple(
    name
    for name in list_methods()
    if method_class(name).__module__.startswith("tcl_core.") and name not in ("groupvit", "reco")
)
"""The methods of the package that stand on a CLIP alone: GroupViT has towers, and ReCo references of its own."""

ON_PLAYGROUND = tuple(
    name for name in METHODS if name == "tcl" or not method_class(name).example().learned_state_dict()
)
"""Those that run on the embedded model: its own, and all that learn nothing."""

_SEED = 8_001
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        side: of images and windows, in pixels.
        network: keyword arguments of the image tower, beside its patch.
        patch: side of a patch in pixels.
        text: keyword arguments of the text tower.
        embed_dim: of the joint space.
        batches: numbers of windows that go through the network together.
        repeats: rounds of a measurement.
        scenes: playground scenes on which the embedded model as it is used is compared with the CPU's.
        method_scenes: scenes for each other method, and for the model without refinement.
        images: enlarged scenes for networks with random weights.
        files: image files of the whole way from file to COCO.
        large: height and width of the large image.
        labels: of the long vocabulary.
    """

    side: int = 448
    network: tuple[tuple[str, int], ...] = (("width", 768), ("layers", 12), ("head_width", 64))
    patch: int = 16
    text: tuple[tuple[str, int], ...] = (("width", 512), ("heads", 8), ("layers", 12))
    embed_dim: int = 512
    batches: tuple[int, ...] = (1, 8, 32)
    repeats: int = 10
    scenes: int = 200
    method_scenes: int = 40
    images: int = 2
    files: int = 48
    large: tuple[int, int] = (3000, 4000)
    labels: int = 100

    @classmethod
    def small(cls) -> Scale:
        """A network of three blocks and few images, to try the benchmark itself."""
        return cls(
            side=64,
            network=(("width", 32), ("layers", 4), ("head_width", 16)),
            patch=8,
            text=(("width", 32), ("heads", 2), ("layers", 2)),
            embed_dim=32,
            batches=(1, 2),
            repeats=1,
            scenes=2,
            method_scenes=1,
            images=1,
            files=3,
            large=(300, 400),
            labels=20,
        )

    def option(self, name: str) -> int:
        """A keyword argument of the image tower."""
        return dict(self.network)[name]


@lru_cache(maxsize=64)
def enlarged_scene(index: int, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A playground scene as an image of another size, and its label map.

    Args:
        index: of the scene.
        size: height and width in pixels.

    Returns:
        uint8 ``[H, W, 3]`` and int32 ``[H, W]``, which are not to be written to.
    """
    scene: Scene = draw_scene(scene_rng(_SEED, index))
    shape = (size[1], size[0])
    image = np.asarray(Image.fromarray(scene.image).resize(shape, Image.Resampling.BILINEAR))
    labels = Image.fromarray(scene.label_map).resize(shape, Image.Resampling.NEAREST)
    return np.ascontiguousarray(image), np.asarray(labels, dtype=np.int32)


def vocabulary_of(label_maps: Iterable[NDArray[np.int32]], most: int = 8) -> Vocabulary:
    """The most frequent classes of some scenes as labels, without background."""
    counts = sum(np.bincount(label_map.ravel(), minlength=len(CLASS_NAMES) + 1)[1:] for label_map in label_maps)
    chosen = [int(place) for place in np.argsort(-np.asarray(counts))[:most] if np.asarray(counts)[place]]
    return Vocabulary(tuple(Label(CLASS_NAMES[place]) for place in chosen), background=False)


class SceneTCL(TCL):
    """TCL whose texts can be directions in which scenes differ, so that random weights give regions that hold together.

    The text tower does all of its work before its answer is replaced.

    Attributes:
        directions: float32 ``[E]`` by prompt.
    """

    directions: dict[str, Tensor]

    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> TCLPrompts:
        """Embed prompts; those of `directions` become these."""
        text = super().embed_prompts(prompts, templates).text.clone()
        for row, prompt in enumerate(prompts):
            if prompt in self.directions:
                text[row] = self.directions[prompt].to(text.device)
        return TCLPrompts(text)


class RandomModels:
    """Methods on one CLIP with random weights, on the CPU and on a device.

    Args:
        scale: the size of the network.
        device: the other device; it may be the CPU, too.
    """

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale = scale
        self.device = device

    @cached_property
    def clip(self) -> FrozenClip:
        """The CLIP on the CPU."""
        scale, tokenizer = self.scale, OpenClipTokenizer(77)
        vision = {"image_size": scale.side // 2, "patch_size": scale.patch, **dict(scale.network)}
        text = {"context_length": 77, "vocab_size": tokenizer.vocab_size, **dict(scale.text)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return FrozenClip(open_clip.CLIP(scale.embed_dim, cast(Any, vision), cast(Any, text)), tokenizer)

    @cached_property
    def clip_on_device(self) -> FrozenClip:
        """The same on the device."""
        return copy.deepcopy(self.clip).to(self.device)

    @cached_property
    def timm(self) -> nn.Module:
        """The same layers at the same resolution, as timm builds them: its ViT-B/16 of CLIP on the device."""
        import timm

        scale = self.scale
        network: Any = timm.create_model(
            "vit_base_patch16_clip_224",
            pretrained=False,
            img_size=scale.side,
            patch_size=scale.patch,
            embed_dim=scale.option("width"),
            depth=scale.option("layers"),
            num_heads=scale.option("width") // scale.option("head_width"),
            num_classes=scale.embed_dim,
        )
        return cast(nn.Module, network.eval().requires_grad_(False).to(self.device))

    def method(self, name: str, *, on_device: bool) -> Method:
        """A method with the CLIP's weights, in eval mode."""
        clip = self.clip_on_device if on_device else self.clip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made = SceneTCL(self.clip) if name == "tcl" else create_method(name, {"clip": self.clip})
            if isinstance(made, SceneTCL):
                made.directions = {}
            with torch.no_grad():
                for parameter_name, parameter in made.named_parameters():
                    # Gates start silent, and a silent part would hide its faults.
                    if parameter_name.endswith("gate.gate"):
                        parameter.fill_(0.5)
        if on_device:
            cast(Any, made).clip = clip
        return made.eval().requires_grad_(False).to(self.device if on_device else "cpu")

    def model(self, name: str, *, on_device: bool, precision: torch.dtype = torch.float32) -> Model:
        """A method as a model of windows of the scale's side."""
        side = self.scale.side
        preprocess = Preprocess(_MEAN, _STD, short_side=side, max_long_side=4 * side, window=side, stride=side // 2)
        full = f"{name} with random weights"
        return Model(
            name=full,
            method=self.method(name, on_device=on_device),
            preprocess=preprocess,
            templates="simple",
            background_threshold={},
            weights_sha256="0" * 64,
            device=self.device if on_device else torch.device("cpu"),
            precision=precision,
            metadata=ModelMetadata(name=full, preprocess=preprocess, method=name),
        )

    def scene_model(self, vocabulary: Vocabulary, precision: torch.dtype) -> Model:
        """TCL on the device, with directions for the labels of a vocabulary."""
        model = self.model("tcl", on_device=True, precision=precision)
        scenes = [enlarged_scene(index, (self.scale.side, self.scale.side)) for index in range(6)]
        method = cast(SceneTCL, model.method)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
        found = []
        for image, _ in scenes:
            pixels = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
            found.append(method.encode(pixels[None].to(self.device)))
        rows = class_directions(type(found[0]).join(found), [label_map for _, label_map in scenes], vocabulary)
        method.directions = dict(zip(vocabulary.names, rows.cpu(), strict=True))
        return model


def class_directions(features: Features, label_maps: Sequence[NDArray[np.int32]], vocabulary: Vocabulary) -> Tensor:
    """The direction from the mean of all pixels to that of each label's, float32 ``[K, E]``, L2-normalized.

    A label that is in no scene has a random direction.

    Args:
        features: of one window for each scene.
        label_maps: of the scenes, int32 ``[H, W]``.
        vocabulary: K labels, named by classes.
    """
    dense = (features.image_emb if isinstance(features, TCLFeatures) else cast(DenseFeatures, features).dense).float()
    pixels = dense.permute(0, 2, 3, 1)
    maps = torch.from_numpy(np.stack(label_maps))[:, None].float()
    near = F.interpolate(maps, size=tuple(pixels.shape[1:3]), mode="nearest")[:, 0].long().to(pixels.device)
    mean = pixels.flatten(0, 2).mean(dim=0)
    rows = torch.randn(len(vocabulary.labels), pixels.shape[-1], generator=torch.Generator().manual_seed(2))
    rows = rows.to(pixels.device)
    for place, name in enumerate(vocabulary.names):
        own = pixels[near == CLASS_NAMES.index(name) + 1] if name in CLASS_NAMES else pixels[:0]
        if len(own):
            rows[place] = own.mean(dim=0) - mean
    return F.normalize(rows, dim=-1)


def with_rows(prompts: PromptEmbeddings, rows: Tensor) -> PromptEmbeddings:
    """Embedded prompts with other vectors float32 ``[P, E]``."""
    text = prompts.tensors()["text"]
    return replace(prompts, **cast(Any, {"text": rows.to(text)}))
