"""What is trained, from the names in a recipe, and the model file that comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.methods import Method, create_method, list_methods, method_class
from tcl_core.methods.trainable import Trainable
from tcl_core.models.clips import clip_name, clip_preprocess, find_clip
from tcl_core.models.download import fetch_file
from tcl_core.models.loading import Model, clip_tokenizer, load_model
from tcl_core.models.manifest import load_manifest
from tcl_core.models.metadata import ModelMetadata, Preprocess
from tcl_core.models.modelfile import write_model_file
from tcl_core.models.towers import load_clip_file
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.towers.tokenizer import tokenizer_from_dict
from training.config import Augmentation, Recipe

__all__ = ["Trained", "build", "trainable_class"]


@dataclass(frozen=True)
class Trained:
    """A method that is trained, and all that its model file will say.

    Attributes:
        method: on the CPU, float32.
        metadata: of the model file.
        clip: tensors that go into the file, by open_clip's names; ``None`` where the file names its CLIP.
    """

    method: Method
    metadata: ModelMetadata
    clip: Mapping[str, Tensor] | None

    @property
    def trainable(self) -> Trainable:
        """The method as what can be trained."""
        return cast(Trainable, self.method)

    def model(self, device: torch.device) -> Model:
        """The model as it is now, for an evaluation; it shares its tensors."""
        return Model(
            name=self.metadata.name,
            method=self.method,
            preprocess=self.metadata.preprocess,
            templates=self.metadata.templates,
            background_threshold=dict(self.metadata.background_threshold),
            weights_sha256="",
            device=device,
            precision=torch.float32,
            metadata=self.metadata,
            background_names=tuple(self.metadata.background_names),
        )

    def write(self, path: Path) -> str:
        """Write the model file; returns its SHA-256."""
        return write_model_file(path, self.metadata, self.method.learned_state_dict(), self.clip)


def trainable_class(name: str) -> type[Trainable]:
    """The class of a method that can be trained.

    Raises:
        SettingsError: the method is not known or cannot be trained.
    """
    kind = method_class(name)
    if not issubclass(kind, Trainable):
        trainable = [other for other in list_methods() if issubclass(method_class(other), Trainable)]
        raise SettingsError(f"The method {name!r} cannot be trained; choose one of: {', '.join(trainable)}.")
    return kind


def build(recipe: Recipe, augmentation: Augmentation) -> Trained:
    """Make what a recipe trains.

    Args:
        recipe: names the method, its settings and its CLIP.
        augmentation: of the last phase; its mean and deviation become the model's.

    Raises:
        SettingsError: the method is not known or cannot be trained, or a setting is wrong or does not fit the weights
            that the training starts from.
        WeightsError: the CLIP cannot be had.
    """
    settings = recipe.model
    kind = trainable_class(settings.method)
    named = clip_name(settings.clip)
    if named is not None:
        # What is wrong with them should not be said after a download of minutes.
        kind.check_settings(settings.config)
    base: Model | None = None
    if named is not None:
        found = find_clip(named)
        tower = load_clip_file(found.config, found.path)
        tower.tokenizer = clip_tokenizer(found)
        preprocess = clip_preprocess(found)
        # Windows as large as twice the trained side, as the paper evaluates.
        preprocess = dataclasses.replace(
            preprocess,
            short_side=2 * augmentation.size,
            max_long_side=max(preprocess.max_long_side, 2 * augmentation.size),
            window=2 * augmentation.size,
            stride=augmentation.size,
        )
        reference: dict[str, Any] = {"open_clip": named.architecture, "pretrained": named.tag, "sha256": found.sha256}
        if named.tag is None:
            reference = {"config": {key: found.config[key] for key in _CONFIG_KEYS if key in found.config}}
    else:
        base = load_model(settings.clip, device="cpu", precision="float32")
        tower = cast(FrozenClip, base.method.towers["clip"])
        preprocess, reference = base.preprocess, dict(base.metadata.clip)
    same = base is not None and base.method.name == settings.method
    former = base.method.config_to_dict() if base is not None and same else {}
    config = {**former, **settings.config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        method = create_method(settings.method, {"clip": tower}, config)
    if base is not None and same and not settings.new_weights:
        _start_from(method, base, {key: value for key, value in settings.config.items() if former.get(key) != value})
    # What captions need, such as a tagger and its data, should not be found out by a process that loads them.
    samples = cast(Trainable, method)
    samples.use_files({name: fetch_file(load_manifest().files[name]) for name in samples.needed_files()})
    samples.accepts("a cat on a sofa")
    tokenizer = cast(Any, tower.tokenizer).to_dict()
    # A tokenizer that a model file cannot describe should not be found out after days.
    tokenizer_from_dict(tokenizer)
    heights = cast(Any, method).background.heights
    metadata = ModelMetadata(
        name=recipe.name,
        preprocess=Preprocess(**{**preprocess.to_dict(), "mean": augmentation.mean, "std": augmentation.std}),
        method=settings.method,
        method_config=method.config_to_dict(),
        clip=reference,
        tokenizer=tokenizer,
        templates=settings.templates,
        background_threshold={key: heights[key] for key in ("plain", "pamr")},
        background_names=list(base.background_names) if base is not None else [],
        license=settings.license,
        source=f"trained by the recipe {recipe.name}",
        extra={"recipe": recipe.model_dump(mode="json")},
    )
    tensors = cast(nn.Module, tower.model).state_dict() if "config" in reference else None
    return Trained(method, metadata, tensors)


def _start_from(method: Method, base: Model, other: Mapping[str, Any]) -> None:
    """Take the weights of a model of the same method.

    Args:
        method: takes them.
        base: the model.
        other: settings that are not the model's.
    """
    try:
        method.load_learned_state_dict(base.method.learned_state_dict())
    except WeightsError as error:
        if not other:
            raise
        known = base.method.config_to_dict()
        listed = ", ".join(f"{key}={value} (its own: {known.get(key)})" for key, value in other.items())
        raise SettingsError(
            f"model.config: the weights of {base.name} do not fit these settings: {listed}; leave out those that "
            "change the size of weights, or set model.new_weights=true to start with new ones."
        ) from error


_CONFIG_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
