"""Recipes: checked descriptions of a training, as YAML files.

A recipe says everything that decides the weights, and nothing about the machine that they are made on: the number of
processes, workers and parts of a batch, and where the data lies, are given on the command line.
"""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tcl_core.errors import SettingsError
from tcl_core.validation import FiniteNumber, Text, WholeNumber, validated

__all__ = [
    "Augmentation",
    "AveragePhase",
    "EvaluationSettings",
    "ModelSettings",
    "OptimizerSettings",
    "Recipe",
    "ScheduleSettings",
    "Stage",
    "TrainPhase",
    "list_recipes",
    "read_recipe",
    "read_value",
]

_Positive = Annotated[FiniteNumber, Field(gt=0)]
_NotNegative = Annotated[FiniteNumber, Field(ge=0)]
_Share = Annotated[FiniteNumber, Field(ge=0, le=1)]
_Count = Annotated[WholeNumber, Field(ge=1)]
_CountOrNone = Annotated[WholeNumber, Field(ge=0)]
_Color = tuple[_Share, _Share, _Share]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSettings(_Entry):
    """AdamW.

    Attributes:
        betas: decay of both moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, of everything but vectors and biases.
        decay_scalars: whether gates, temperatures and other scalars decay as well, as in the official TCL.
        scalar_scale: factor on the learning rate of scalars.
    """

    betas: tuple[_Share, _Share] = (0.9, 0.999)
    eps: _Positive = 1e-6
    weight_decay: _NotNegative = 0.05
    decay_scalars: bool = True
    scalar_scale: _Positive = 1.0


class ScheduleSettings(_Entry):
    """Linear warm-up and a cosine, see `training.schedule.learning_rate`.

    Attributes:
        lr: highest learning rate.
        min_lr: learning rate after the last step.
        warmup: steps of warm-up.
        start_factor: learning rate of step 0, as a share of ``lr``; without warm-up it has no effect.
    """

    lr: _Positive
    min_lr: _NotNegative = 0.0
    warmup: _CountOrNone = 0
    start_factor: _Share = 1e-4

    @model_validator(mode="after")
    def _falls(self) -> ScheduleSettings:
        if self.min_lr > self.lr:
            raise ValueError("must have a min_lr that is at most lr")
        return self


class Stage(_Entry):
    """Steps in which the same parameters are trained.

    Attributes:
        stage: one of the method's stages.
        steps: number of steps.
    """

    stage: Text
    steps: _Count


class Augmentation(_Entry):
    """How an image becomes a training sample.

    Attributes:
        size: side in pixels.
        scale: smallest and largest share of the image's area that is cut out.
        ratio: narrowest and widest aspect of what is cut out.
        flip: probability of a horizontal flip.
        auto_augment: policy of timm such as ``rand-m9-mstd0.5-inc1``; empty for none.
        erase: probability that a rectangle is replaced by noise.
        mean: of red, green and blue, which is subtracted.
        std: of red, green and blue, by which the rest is divided.
    """

    size: _Count = 224
    scale: tuple[_Share, _Share] = (0.08, 1.0)
    ratio: tuple[_Positive, _Positive] = (3 / 4, 4 / 3)
    flip: _Share = 0.5
    auto_augment: str = ""
    erase: _Share = 0.0
    mean: _Color = (0.485, 0.456, 0.406)
    std: _Color = (0.229, 0.224, 0.225)


class EvaluationSettings(_Entry):
    """What is scored while training goes on.

    Attributes:
        every: steps between evaluations.
        playground: scenes of the playground in each of the two sets; 0 for none.
        benchmarks: names of data sets of ``tcl-annotate evaluate``.
        split: of the benchmarks; the papers choose their settings on ``train``.
        limit: images of each benchmark; ``null`` for all.
        refine: whether masks are refined along the image's edges, which takes longer.
    """

    every: _Count = 5000
    playground: _CountOrNone = 0
    benchmarks: list[Text] = []
    split: Literal["train", "val"] = "train"
    limit: _Count | None = None
    refine: bool = False


class TrainPhase(_Entry):
    """A phase that trains the recipe's method on images and captions.

    Attributes:
        kind: ``train``.
        name: of its checkpoint and log.
        start: name of an earlier phase whose result it starts from; the phase before it by default.
        stages: one after the other, under one schedule and with one state of the optimizer.
        batch: pairs of a step, over all processes; at least 2, because each is told apart from the others.
        optimizer: AdamW.
        schedule: learning rates.
        clip_norm: largest norm of the gradient; ``null`` leaves it as it is.
        precision: of towers and decoder; losses are always float32.
        augmentation: of images.
        log_every: steps whose mean makes a line of the log.
        save_every: steps between checkpoints.
        evaluation: what is scored while training goes on.
    """

    kind: Literal["train"] = "train"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    start: Text | None = None
    stages: Annotated[list[Stage], Field(min_length=1)]
    batch: Annotated[WholeNumber, Field(ge=2)]
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings
    clip_norm: _Positive | None = 5.0
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    augmentation: Augmentation = Augmentation()
    log_every: _Count = 50
    save_every: _Count = 1000
    evaluation: EvaluationSettings | None = None

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> str:
        """Name of the stage of a step; the last one from its end on."""
        end = 0
        for stage in self.stages:
            end += stage.steps
            if step < end:
                break
        return stage.stage


class AveragePhase(_Entry):
    """A phase that takes the weighted mean of what earlier phases ended with (model soup, arXiv 2203.05482).

    Attributes:
        kind: ``average``.
        name: of the result.
        shares: weight of each earlier phase by its name; they add up to one.
    """

    kind: Literal["average"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    shares: Annotated[dict[str, _Share], Field(min_length=1)]

    @model_validator(mode="after")
    def _adds_up(self) -> AveragePhase:
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError("must have shares that add up to one")
        return self


class ModelSettings(_Entry):
    """What is trained.

    Attributes:
        method: name of a trainable method.
        clip: its frozen tower: ``ARCHITECTURE/TAG`` or ``ARCHITECTURE=FILE`` of open_clip, or a model whose tower, and
            weights where the methods are the same, training starts from.
        config: settings of the method; those of the model that training starts from, or its defaults, where it says
            nothing.
        new_weights: start with new weights even where a model has some of this method.
        templates: prompt templates of the finished model.
        license: of the finished model.
    """

    method: Text = "tcl"
    clip: Text
    config: dict[str, Any] = {}
    new_weights: bool = False
    templates: Text = "custom"
    license: str = ""


Phase = Annotated[TrainPhase | AveragePhase, Field(discriminator="kind")]


class Recipe(_Entry):
    """Everything that decides the weights.

    Attributes:
        name: of the model.
        description: one sentence for lists.
        seed: of new weights, order, augmentation and noise.
        model: what is trained.
        phases: one after the other.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    seed: _CountOrNone = 0
    model: ModelSettings
    phases: Annotated[list[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _phases_follow(self) -> Recipe:
        known: set[str] = set()
        for phase in self.phases:
            needed = set(phase.shares) if isinstance(phase, AveragePhase) else {phase.start} - {None}
            if missing := sorted(needed - known, key=str):
                raise ValueError(f"must name earlier phases in phase {phase.name!r}, and {missing[0]!r} is none")
            if phase.name in known:
                raise ValueError(f"must have phases of different names, and {phase.name!r} is there twice")
            known.add(phase.name)
        return self


class _Loader(yaml.SafeLoader):
    """PyYAML's, which takes 1e-4 for a number as YAML 1.2 does."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: list(resolvers) for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_value(text: str) -> Any:
    """Read YAML.

    Raises:
        yaml.YAMLError: it is none.

    Example:
        >>> read_value("{lr: 1e-4, batch: 8}")
        {'lr': 0.0001, 'batch': 8}
    """
    # The loader makes plain values alone.
    return yaml.load(text, Loader=_Loader)  # noqa: S506


def list_recipes() -> dict[str, Path]:
    """The recipes that come with this package, by name."""
    folder = Path(str(resources.files("training") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_recipe(name: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        name: one of `list_recipes`, or a YAML file.

    Raises:
        SettingsError: there is no such recipe, or a setting is not valid.
    """
    path = list_recipes().get(str(name), Path(name))
    try:
        content = read_value(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(str(name), list_recipes(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        known = ", ".join(list_recipes())
        raise SettingsError(f"There is no recipe {str(name)!r}; name a YAML file or one of: {known}.{hint}") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}; name a readable YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must be a mapping with the keys {', '.join(Recipe.model_fields)}")
    return validated(Recipe, content, str(path), SettingsError)
