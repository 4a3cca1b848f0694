"""What every method can do at inference: embed windows and prompts, compare them, and finish score maps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from tcl_core.errors import WeightsError
from tcl_core.methods.options import MethodOptions
from tcl_core.refinement.base import Guide, Refine, ScoreRefiner
from tcl_core.refinement.pamr import Pamr
from tcl_core.tensors import TensorBundle, state_faults
from tcl_core.towers.base import Tower
from tcl_core.towers.tokenizer import Tokenizer

__all__ = ["Background", "Features", "Method", "PromptEmbeddings", "best_of_labels"]


class Features(TensorBundle):
    """All that a method knows of B windows before it has seen a prompt; opaque to everybody else."""


class PromptEmbeddings(TensorBundle):
    """Embedded prompts, one entry of the first axis each; opaque but for the names of its text sets.

    Every tensor field ``[P, ...]`` is a text set. A model's text post-processing says by name on which one it acts.
    """


@dataclass(frozen=True)
class Background:
    """How a method decides that a pixel has no label.

    A threshold on the best score, as some papers write it, is a plane of the same height: the two differ in ties alone.

    Attributes:
        kind: ``"plane"``, a constant score that labels have to exceed, or ``"none"``, where names of the method's own
            stand for everything else.
        heights: default height of the plane in ``[0, 1]`` by the refiner's name; ``"plain"`` is without one.
        names: prompts that compete as those of labels do, and leave the pixels that they win without a label, in the
            place of the common names; empty for those.
    """

    kind: Literal["plane", "none"] = "plane"
    heights: Mapping[str, float] = field(default_factory=lambda: {"plain": 0.5})
    names: tuple[str, ...] = ()

    def height(self, refiner: str | None) -> float | None:
        """Default height with a refiner of this name, or without one; ``None`` where there is no plane.

        Example:
            >>> rule = Background(heights={"plain": 0.5, "pamr": 0.4})
            >>> rule.height("pamr"), rule.height("other"), Background("none").height(None)
            (0.4, 0.5, None)
        """
        if self.kind == "none":
            return None
        return self.heights.get(refiner or "plain", self.heights["plain"])


class Method(nn.Module, ABC):
    """A way from an image and prompts to score maps.

    Sub-classes register themselves with :func:`tcl_core.methods.register_method`. Everything learned is outside the
    towers. All calls work in float32 and under ``torch.autocast``.

    Attributes:
        name: registered name; set by the decorator.
        tower_names: attributes that hold the towers it needs.
        optional_tower_names: attributes that hold towers it can do without, ``None`` where there is none.
        notice: terms of use that are said whenever a model is loaded; empty where nothing has to be said.
        fitted_by: command that makes the learned tensors, for messages; empty where they are trained or imported.
        independent_prompts: a prompt's similarities do not depend on which others are asked with it, so that they may
            be made in groups and kept one by one.
        independent_labels: a label's finished score depends on its own names alone. Where it does not (a softmax over
            all names), `finish` is given all of them every time.
        optional_keys: learned tensors that inference does not need and published files may lack.
        options_class: names the method's options.
        options: their values.
    """

    name: ClassVar[str] = ""
    tower_names: ClassVar[tuple[str, ...]] = ()
    optional_tower_names: ClassVar[tuple[str, ...]] = ()
    notice: ClassVar[str] = ""
    fitted_by: ClassVar[str] = ""
    independent_prompts: ClassVar[bool] = True
    independent_labels: ClassVar[bool] = True
    optional_keys: ClassVar[frozenset[str]] = frozenset()
    options_class: ClassVar[type[MethodOptions]] = MethodOptions
    options: MethodOptions

    def __init__(self, options: MethodOptions | None = None) -> None:
        super().__init__()
        self.options = self.options_class() if options is None else options

    # -- making one ----------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_config(cls, towers: Mapping[str, Tower], config: Mapping[str, Any]) -> Self:
        """Build the method from plain settings, with its parameters as they are before training.

        Args:
            towers: by `tower_names`.
            config: as a model file holds it.

        Raises:
            SettingsError: a setting is unknown or out of range.
        """

    @abstractmethod
    def config_to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; :meth:`from_config` accepts them."""

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A tiny instance with random weights, on which the contract tests run; its towers know `example_prompts`."""

    @classmethod
    def example_prompts(cls) -> tuple[str, ...]:
        """At least four prompts that `example` knows."""
        return ("cat", "dog", "red sofa", "sky")

    @classmethod
    def from_upstream(cls, state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]) -> Any:
        """Read the tensors of a checkpoint that the authors' code wrote.

        Args:
            state: tensors by upstream's names.
            towers: tensors of towers that the user gave beside the checkpoint, by `tower_names`.

        Returns:
            A :class:`tcl_core.methods.upstream.UpstreamModel`, or ``None`` if the checkpoint is not one of this
            method.

        Raises:
            WeightsError: it is one, and tensors are missing, unknown or of the wrong shape.
        """
        return None

    def configured(self, options: Mapping[str, Any]) -> Self:
        """The same method, sharing its weights, with other values of options.

        Raises:
            SettingsError: an option is unknown, or its value is of another type or out of range.
        """
        other = copy.copy(self)
        other.options = self.options.changed(options)
        return other

    # -- what it is made of --------------------------------------------------------------------------------------

    @property
    def towers(self) -> dict[str, Tower]:
        """The towers by name."""
        optional = {name: getattr(self, name) for name in self.optional_tower_names}
        needed = {name: getattr(self, name) for name in self.tower_names}
        return needed | {name: tower for name, tower in optional.items() if tower is not None}

    @property
    def background(self) -> Background:
        """How a pixel without a label is decided, where neither model nor user says."""
        return Background()

    def default_refiner(self) -> ScoreRefiner:
        """The refiner that is used where nobody names one."""
        return Pamr()

    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """Those of the towers that have one."""
        found = (tower.tokenizer for tower in self.towers.values())
        return tuple(tokenizer for tokenizer in found if tokenizer is not None)

    def unknown_words(self, text: str) -> list[str]:
        """Words of ``text`` that a tower never learned, in order, each once."""
        words = (word for tokenizer in self.tokenizers() for word in tokenizer.unknown_words(text))
        return list(dict.fromkeys(words))

    @property
    def reserved_tokens(self) -> int:
        """Positions of the text tower that something else than a prompt without templates takes."""
        return 0

    def cut_tokens(self, text: str, reserved: int = 0) -> int:
        """How many tokens of a text, the last ones, a tower would not see.

        Args:
            text: a prompt, alone or in a template.
            reserved: positions of the text tower that something else takes.
        """
        most = 0
        for tokenizer in self.tokenizers():
            room = tokenizer.context_length - reserved
            # No token is shorter than a byte, but for those of start and end, and nearly all texts are short.
            if len(text.encode()) + 4 > room:
                most = max(most, tokenizer.length(text) - room)
        return most

    def refusal(self, prompt: str) -> str | None:
        """Why a prompt cannot be asked although its words are known, as a clause; ``None``, the default, if it can."""
        return None

    def known_words(self) -> tuple[str, ...] | None:
        """The closed list of words that prompts may hold; ``None`` where any text will do."""
        lists = [getattr(tokenizer, "words", None) for tokenizer in self.tokenizers()]
        closed = [tuple(map(str, words)) for words in lists if words is not None]
        return closed[0] if closed else None

    # -- inference -----------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, windows: Tensor) -> Features:
        """Embed windows; the costly part of inference.

        Args:
            windows: float32 ``[B, 3, H, W]``, normalized; any H and W.
        """

    @abstractmethod
    def embed_prompts(self, prompts: Sequence[str], templates: Sequence[str]) -> PromptEmbeddings:
        """Embed prompts.

        Args:
            prompts: P texts.
            templates: at least one, each with one ``{}`` for the prompt.
        """

    @abstractmethod
    def prompt_similarity(self, first: PromptEmbeddings, second: PromptEmbeddings) -> Tensor:
        """How near prompts are to each other: float ``[P, Q]`` in ``[-1, 1]``."""

    @abstractmethod
    def similarities(self, features: Features, prompts: PromptEmbeddings, refine: Refine | None = None) -> Tensor:
        """Compare every pixel of the windows with every prompt; what comes back is averaged over windows.

        Args:
            features: of B windows.
            prompts: P of them.
            refine: a refiner bound to these windows' guide, for methods that make `window_guide`; ``None`` for no
                refinement.

        Returns:
            float32 ``[B, P, H, W]``.
        """

    def prompts_for_image(self, features: Features, prompts: PromptEmbeddings) -> PromptEmbeddings:
        """Adapt prompts to an image before its windows are compared with them; by default they stay as they are.

        Only methods without `independent_prompts` may do so.

        Args:
            features: of all windows of the image.
            prompts: P of them, all that compete.
        """
        return prompts

    def score_size(self, working: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which scores are finished: by default those at which windows were cut.

        Args:
            working: size at which windows are cut.
            image: size of the image.
        """
        return working

    def similarities_at(self, features: Features, prompts: PromptEmbeddings, size: tuple[int, int]) -> Tensor | None:
        """Similarities of an image that is one window, without the detour through the window's own size.

        Args:
            features: of the one window.
            prompts: P of them.
            size: from `score_size`.

        Returns:
            float32 ``[P, H, W]`` at ``size``; ``None``, the default, to go through `similarities`.
        """
        return None

    def settle(self, merged: Tensor, size: tuple[int, int], refine: Refine | None = None) -> Tensor:
        """What becomes of merged similarities before they are compared: each prompt for itself, so that it is kept.

        Args:
            merged: float32 ``[P, h, w]`` of a whole image, at the working size or at ``size``, of any P prompts.
            size: from `score_size`.
            refine: a refiner bound to the image's guide, for methods that make `image_guide`.

        Returns:
            float32 ``[P, H, W]`` at ``size``; by default ``merged``.
        """
        return merged

    def finish(self, merged: Tensor, labels: Sequence[int], refine: Refine | None = None) -> Tensor:
        """Turn settled similarities of a whole image into score maps: by default the maximum over a label's names.

        Args:
            merged: float32 ``[P, h, w]``; with ``independent_labels`` those of some labels, else those of all names.
            labels: the label of each of the P names, from 0, every label at least once; -1 for names of the background.
            refine: a refiner bound to the image's guide, for methods that make `image_guide`.

        Returns:
            float32 ``[K, h, w]`` in ``[0, 1]`` in memory of its own, one plane a label; where the background has names,
            theirs comes last.
        """
        # Refinement weights sum to one only up to rounding.
        return best_of_labels(merged, labels).clamp_(0, 1)

    def name_values(self, features: Features, names: PromptEmbeddings) -> Tensor:
        """A cheap guess of how strong names are, by which a few of many names of the background are chosen.

        Only methods with `independent_prompts` are asked.

        Args:
            features: of B windows.
            names: P of them.

        Returns:
            float32 ``[B, P, h, w]`` without refinement, at any height and width that the method likes; by default
            similarities at the windows' own.
        """
        return self.similarities(features, names)

    # -- refinement ----------------------------------------------------------------------------------------------

    def window_guide(self, refiner: ScoreRefiner, windows: Tensor) -> Guide | None:
        """What refines maps inside `similarities`; ``None`` where the method does not refine there.

        Args:
            refiner: makes the guide.
            windows: float32 ``[B, 3, H, W]``, normalized.
        """
        return None

    def image_guide(self, refiner: ScoreRefiner, image: Tensor, size: tuple[int, int]) -> Guide | None:
        """What refines maps inside `settle` or `finish`; ``None`` where the method does not refine there.

        Args:
            refiner: makes the guide.
            image: float32 ``[1, 3, h, w]``, normalized, at the working size.
            size: from `score_size`, at which maps will be refined.
        """
        return None

    # -- learned tensors -----------------------------------------------------------------------------------------

    def learned_state_dict(self) -> dict[str, Tensor]:
        """The learned tensors under their published names, without the frozen towers."""
        frozen = tuple(f"{name}." for name in (*self.tower_names, *self.optional_tower_names))
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(frozen)}

    def load_learned_state_dict(self, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Load learned tensors.

        Args:
            state: tensors under the names of :meth:`learned_state_dict`; those of ``optional_keys`` may be missing
                and then keep their value.
            assign: let the tensors themselves become the parameters, instead of copying their values.

        Raises:
            WeightsError: a tensor is missing, unknown or has another shape; the message lists them.
        """
        own = self.learned_state_dict()
        faults = state_faults(own, state, self.optional_keys)
        if faults:
            raise WeightsError(f"The tensors do not fit the method {type(self).__name__}; {'; '.join(faults)}.")
        if assign:
            self.load_state_dict(dict(state), strict=False, assign=True)
            return
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)


def best_of_labels(maps: Tensor, labels: Sequence[int]) -> Tensor:
    """The maximum over the names of each label.

    Args:
        maps: float ``[P, h, w]``, one plane a name.
        labels: the label of each name, from 0, every label at least once; -1 for names of the background.

    Returns:
        float ``[K, h, w]`` in memory of its own; where the background has names, theirs comes last.

    Example:
        >>> best_of_labels(torch.tensor([0.1, 0.4, 0.2])[:, None, None], [0, -1, 0]).flatten().tolist()
        [0.20000000298023224, 0.4000000059604645]
    """
    count = max(labels, default=-1) + 1 + (-1 in labels)
    best = maps.new_full((count, *maps.shape[1:]), float("-inf"))
    for label, plane in zip(labels, maps, strict=True):
        # -1 is the last.
        torch.maximum(best[label], plane, out=best[label])
    return best
