"""Which names stand for everything that nobody asked for, so that they compete for the pixels of an image.

A name steps aside where a label could mean the same thing: a synonym must never take the pixels of a label.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from tcl_core.methods.base import Method, PromptEmbeddings
from tcl_core.segmentation.model import SegmentationModel
from tcl_core.vocabulary import Label, Vocabulary
from tcl_core.vocabulary.common_names import CommonName, common_names, related
from tcl_core.vocabulary.templates import apply_templates
from tcl_core.vocabulary.words import same_words

__all__ = ["NEAR", "BackgroundNames", "LeftOut", "NameChoice", "NameSource", "owners", "strongest_names"]

NEAR = 0.85
"""From this nearness on a name may mean what a prompt does.

Nearness is the similarity of two texts on a scale on which 0 is the mean of all pairs of names and 1 is equality,
because similarities of different things lie anywhere between 0.2 and 0.9, depending on the model.
"""

_FEWEST_NAMES = 8
"""A mean over the pairs of fewer names says nothing."""

_GROUP = 16
"""Names whose maps are made together."""

_MOST = 16
"""Of so many names every one competes; of more than that, so many at most compete in one image."""

_LEAST_SHARE = 0.01
"""A name of a long list competes in images where it is the strongest of the list at this share of all places."""

_CHOICES = 256

NameSource = Literal["none", "vocabulary", "model", "method", "common"]
"""Where names come from."""


@dataclass(frozen=True)
class LeftOut:
    """A name that takes no part.

    Attributes:
        name: the name.
        reason: ``"same"`` words as a prompt or label, ``"related"`` to one by the list of common names, ``"near"`` to a
            prompt in the model's eyes, or ``"unknown"`` to the model.
        text: the prompt or label's name that it steps aside for; ``None`` where it is unknown.
        nearness: to that prompt, where it is near; see `NEAR`.
    """

    name: str
    reason: Literal["same", "related", "near", "unknown"]
    text: str | None = None
    nearness: float | None = None


@dataclass(frozen=True)
class NameChoice:
    """The names that compete with the labels of a vocabulary.

    Attributes:
        source: where they come from.
        groups: the names, in groups of fixed places in their list: where one of them steps aside, the other groups stay
            what they were, so that what was computed for them can be kept.
        left_out: names of the same list that take no part.
        pooled: whether they become one plane before the method finishes its scores, and count as one name in a softmax.
    """

    source: NameSource
    groups: tuple[tuple[str, ...], ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    pooled: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of their list."""
        return tuple(name for group in self.groups for name in group)

    @property
    def few(self) -> bool:
        """Whether all of the names compete in every image, because they are few or have to be judged together."""
        return not self.pooled or len(self.names) <= _MOST


class BackgroundNames:
    """Chooses names for the vocabularies of one model. Safe to use from several threads.

    A vocabulary's own names come first, then those of the model's world, of the method, and last the common names.

    Args:
        model: says what its world holds.
        method: its towers know some words or all.
        embed: embeds prompts with a template set; called with all names of a list first.
    """

    def __init__(
        self, model: SegmentationModel, method: Method, embed: Callable[[Sequence[str], str], PromptEmbeddings]
    ) -> None:
        self._model = model
        self._method = method
        self._embed = embed
        self._own: dict[str, tuple[tuple[str, ...], tuple[LeftOut, ...]]] = {}
        self._choices: dict[object, NameChoice] = {}
        self._means: dict[object, float] = {}
        self._lock = threading.Lock()

    @property
    def own_source(self) -> NameSource:
        """Where names come from if a vocabulary says none."""
        if self._model.background_names:
            return "model"
        return "method" if self._method.background.names else "common"

    def own(self, templates: str) -> tuple[str, ...]:
        """The names that are used if a vocabulary says none, without those that the model does not know.

        Args:
            templates: name of the template set that prompts are put into.
        """
        return self._known_own(templates)[0]

    def is_chosen(self, vocabulary: Vocabulary, templates: str) -> bool:
        """Whether `choose` was asked this before, and answers at once."""
        return _question(vocabulary, templates) in self._choices

    def choose(self, vocabulary: Vocabulary, templates: str) -> NameChoice:
        """The names that compete with the labels of a vocabulary.

        Args:
            vocabulary: the labels.
            templates: name of the template set that prompts are put into.

        Raises:
            VocabularyError: the model does not know a word of a prompt, or of a name that the vocabulary gives.
        """
        question = _question(vocabulary, templates)
        found = self._choices.get(question)
        if found is None:
            found = self._choose(vocabulary, templates)
            with self._lock:
                if len(self._choices) >= _CHOICES:
                    self._choices.clear()
                self._choices[question] = found
        return found

    def _choose(self, vocabulary: Vocabulary, templates: str) -> NameChoice:
        given = vocabulary.background_names
        if not vocabulary.background or given == ():
            return NameChoice("none")
        source: NameSource = self.own_source if given is None else "vocabulary"
        names, left_out = self._known_own(templates) if given is None else (given, ())
        prompts = list(dict.fromkeys(prompt for label in vocabulary.labels for prompt in label.prompts))
        texts = list(dict.fromkeys([*(label.name for label in vocabulary.labels), *prompts]))
        aside: dict[str, LeftOut] = {}
        for name in names:
            for text in texts:
                if (reason := _by_words(name, text, source == "common")) is not None:
                    aside.setdefault(name, LeftOut(name, reason, text))
        # The embedding of all names, because a part would have another mean.
        for name, (prompt, nearness) in self._near(names, prompts, source, templates).items():
            aside.setdefault(name, LeftOut(name, "near", prompt, nearness))
        groups = [
            tuple(name for name in names[first : first + _GROUP] if name not in aside)
            for first in range(0, len(names), _GROUP)
        ]
        # Names that a user lists for a softmax over all names are meant to count one by one.
        independent = self._method.independent_prompts
        pooled = independent and (source != "vocabulary" or self._method.independent_labels)
        return NameChoice(source, tuple(group for group in groups if group), (*left_out, *aside.values()), pooled)

    def _near(
        self, names: Sequence[str], prompts: Sequence[str], source: NameSource, templates: str
    ) -> dict[str, tuple[str, float]]:
        """For names that are too near to a prompt, the nearest one and the nearness."""
        if not prompts:
            return {}
        found = self.nearness(names, prompts, templates, given=source == "vocabulary")
        if found is None:
            return {}
        nearest, who = found.max(dim=1)
        return {
            name: (prompts[place], nearness)
            for name, nearness, place in zip(names, nearest.tolist(), who.tolist(), strict=True)
            if nearness >= NEAR
        }

    def nearness(
        self, names: Sequence[str], prompts: Sequence[str], templates: str, *, given: bool = False
    ) -> Tensor | None:
        """How near names are to prompts, see `NEAR`.

        Args:
            names: N names, all of a list.
            prompts: P prompts.
            templates: name of the template set.
            given: whether the names are a user's own, who may list few.

        Returns:
            float32 ``[N, P]``, 1 for equal texts; ``None`` where the names are too few to measure by.
        """
        # A closed world is a better measure than the few names that a user may list.
        reference = self.own(templates) if given and self._model.background_names else names
        if len(reference) < _FEWEST_NAMES:
            return None
        mean = self._mean(tuple(reference), templates)
        if mean >= 1:
            return None
        embedded = self._embed(names, templates), self._embed(prompts, templates)
        return (self._method.prompt_similarity(*embedded).float() - mean) / (1 - mean)

    def _mean(self, names: tuple[str, ...], templates: str) -> float:
        """Mean similarity of all pairs of different names."""
        key = (names, templates)
        if key not in self._means:
            embedded = self._embed(names, templates)
            similarity: Tensor = self._method.prompt_similarity(embedded, embedded).float()
            apart = ~torch.eye(len(names), dtype=torch.bool, device=similarity.device)
            self._means[key] = float(similarity[apart].mean())
        return self._means[key]

    def _known_own(self, templates: str) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
        if templates not in self._own:
            names = self._model.background_names or self._method.background.names
            names = names or tuple(entry.name for entry in common_names())
            unknown = self._method.unknown_words
            # Templates can bring their own words, or make a new one of the name ("{}s").
            asked = [name for name in names if self._method.refusal(name) is None]
            known = {name for name in asked if not any(map(unknown, (name, *apply_templates(name, templates))))}
            left_out = tuple(LeftOut(name, "unknown") for name in names if name not in known)
            self._own[templates] = tuple(name for name in names if name in known), left_out
        return self._own[templates]


def strongest_names(groups: Sequence[Sequence[str]], winners: Sequence[Tensor]) -> tuple[str, ...]:
    """The names of a long list that compete in an image: those that are the strongest of the list somewhere.

    A maximum over all names before refinement would be much too strong, for a maximum over noise is above every one of
    its terms; and to refine every name would take as long as the network.

    Args:
        groups: the names.
        winners: for each group float32 ``[n, 2, h, w]``, the greatest value at each place of n windows, and the place
            in the group of the name that has it.

    Returns:
        At least one name and at most 16, in the order of their list.
    """
    names = [name for group in groups for name in group]
    best, who = torch.stack(list(winners)).unbind(dim=2)
    group_of = best.argmax(dim=0, keepdim=True)
    starts = torch.tensor([0, *accumulate(map(len, groups))], device=best.device)
    place = starts[group_of] + who.gather(0, group_of).long()
    # One answer for all groups, because each has to wait until a GPU is done.
    counts = torch.bincount(place.flatten(), minlength=len(names)).tolist()
    shares = {name: count / group_of.numel() for name, count in zip(names, counts, strict=True)}
    ranked = sorted(shares, key=shares.__getitem__, reverse=True)[:_MOST]
    # Where names share the places among them evenly, none of them may have enough.
    kept = {ranked[0], *(name for name in ranked if shares[name] >= _LEAST_SHARE)}
    return tuple(name for name in shares if name in kept)


# Asked again for every label whenever one is added.
@lru_cache(maxsize=1 << 16)
def _by_words(name: str, text: str, common: bool) -> Literal["same", "related"] | None:
    if same_words(name, text):
        return "same"
    return "related" if common and related(_entries()[name], text) else None


@cache
def _entries() -> dict[str, CommonName]:
    return {entry.name: entry for entry in common_names()}


def owners(labels: Sequence[Label], names: int = 0) -> list[int]:
    """The label of each prompt, as `tcl_core.methods.Method.finish` takes it.

    Args:
        labels: in their order.
        names: how many planes of background names follow.

    Returns:
        Numbers from 0, and -1 for names of the background.

    Example:
        >>> owners([Label("Seat", ("chair", "sofa")), Label("Cat", ("cat",))], names=1)
        [0, 0, 1, -1]
    """
    return [place for place, label in enumerate(labels) for _ in label.prompts] + [-1] * names


def _question(vocabulary: Vocabulary, templates: str) -> object:
    labels = tuple((label.name, label.prompts) for label in vocabulary.labels)
    return labels, vocabulary.background, vocabulary.background_names, templates
