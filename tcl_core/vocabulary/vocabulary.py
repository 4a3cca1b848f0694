"""The vocabulary of a job: its labels, their prompts, and whether there is background.

Reading from files and options lives in :mod:`tcl_core.vocabulary.files`; every rule about what a vocabulary may
hold is here and in :mod:`tcl_core.vocabulary.labels`, so that one made in Python is checked just as one from a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tcl_core.errors import VocabularyError
from tcl_core.vocabulary.colors import Color, default_colors
from tcl_core.vocabulary.files import (
    labels_from_options,
    labels_from_values,
    read_vocabulary_file,
    vocabulary_arguments,
)
from tcl_core.vocabulary.labels import Label, check_threshold, name_key
from tcl_core.vocabulary.templates import check_template_set

__all__ = ["Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """The labels of a job, in the order of their ids (label k, counted from 1, is ``labels[k - 1]``).

    Attributes:
        labels: at least one label; names are unique.
        background: whether a constant score competes with the labels; pixels that it wins stay unlabeled.
        background_threshold: the constant background score, in ``[0, 1]``; ``None`` uses the model's default.
        background_names: names that compete with the labels; pixels that they win stay unlabeled. ``None`` uses the
            model's own list, and an empty tuple disables them. A name that is also a label or a prompt, in singular or
            plural, is ignored.
        templates: name of the template set; ``None`` uses the model's default.

    Raises:
        VocabularyError: there are no labels, a label occurs twice (also after Unicode normalization) or is called
            "background", a threshold is out of range, the background is disabled but has a threshold or names, or the
            template set is unknown.

    Examples:
        >>> vocabulary = Vocabulary.from_options(["Sofa=sofa,couch", "Cat"], background_threshold=0.45)
        >>> vocabulary.names
        ('Sofa', 'Cat')
        >>> vocabulary.prompts
        ((0, 'sofa'), (0, 'couch'), (1, 'Cat'))
    """

    labels: tuple[Label, ...]
    background: bool = True
    background_threshold: float | None = None
    templates: str | None = None
    background_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not self.labels:
            raise VocabularyError("labels: the list is empty; add at least one label")
        first_at: dict[str, int] = {}
        for index, label in enumerate(self.labels):
            if not isinstance(label, Label):
                raise VocabularyError(f"labels[{index}]: expected a Label, found {type(label).__name__}")
            key = name_key(label.name)
            if key.casefold() == "background":
                raise VocabularyError(
                    f"labels[{index}].name: {label.name!r} is not a label, but stands for pixels without a label; "
                    "remove it and write background: true, or its threshold, such as background: 0.45"
                )
            if key in first_at:
                raise VocabularyError(
                    f"labels[{index}].name: the label {label.name!r} is already labels[{first_at[key]}]; "
                    "rename or remove one of the two"
                )
            first_at[key] = index
        if not isinstance(self.background, bool):
            raise VocabularyError(f"background: expected true or false, found {self.background!r}")
        if self.background_threshold is not None:
            value = check_threshold(self.background_threshold, "background threshold")
            if not self.background:
                raise VocabularyError(
                    "background threshold: the background is disabled; enable it or remove the threshold"
                )
            object.__setattr__(self, "background_threshold", value)
        if self.background_names is not None:
            object.__setattr__(self, "background_names", self._checked_names(self.background_names))
        if self.templates is not None:
            check_template_set(self.templates)

    def _checked_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if names and not self.background:
            raise VocabularyError("background names: the background is disabled; enable it or remove the names")
        for name in names:
            # In options they are words of their own, so that a list with one of them would change its meaning there.
            if isinstance(name, str) and name.strip().casefold() in ("auto", "none"):
                raise VocabularyError(
                    f"background names: {name!r} cannot be combined with other names; use it alone, or remove it"
                )
        try:
            names = Label("background", tuple(names)).prompts if names else ()
        except VocabularyError as error:
            raise VocabularyError(f"background names: {error}") from error
        return names

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Read a label file (YAML, UTF-8).

        The file is a list of names, or a mapping with ``labels`` (names, or mappings with ``name``, ``prompts``,
        ``threshold``, ``color``, ``value``), ``background`` (``true``, ``false``, a threshold, or a mapping with
        ``threshold`` and ``names``) and ``templates``.

        Raises:
            VocabularyError: the file cannot be read or is invalid; the message names the file and the field.
        """
        return cls.from_dict(read_vocabulary_file(Path(path)), str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | Sequence[Any], source: str = "vocabulary") -> Vocabulary:
        """Create a vocabulary from the content of a label file; the inverse of :meth:`to_dict`.

        Raises:
            VocabularyError: the content is invalid; the message begins with ``source`` and names the field.
        """
        try:
            return cls(*vocabulary_arguments(data))
        except VocabularyError as error:
            raise VocabularyError(f"{source}: {error}") from error

    @classmethod
    def from_labels(
        cls,
        labels: Mapping[str, str | Sequence[str] | Mapping[str, Any]] | Sequence[str | Mapping[str, Any] | Label],
        *,
        background: bool = True,
        background_threshold: float | None = None,
        background_names: Sequence[str] | None = None,
        templates: str | None = None,
    ) -> Vocabulary:
        """Create a vocabulary from a dict of names and prompts, or from a list of names.

        Args:
            labels: ``{name: prompts}``, where prompts are a string, a list of strings, or a dict with ``prompts``,
                ``threshold``, ``color`` and ``value`` as in a label file; or a list of names, `Label` objects, or such
                dicts with a ``name``.
            background: see `Vocabulary`, also for the other arguments.
            background_threshold: the constant background score.
            background_names: names that compete with the labels and stay unlabeled.
            templates: name of the template set.

        Raises:
            VocabularyError: a label is invalid; the message names the label and the field.

        Examples:
            >>> Vocabulary.from_labels({"Seat": ["chair", "sofa"], "Grass": "grass"}).prompts
            ((0, 'chair'), (0, 'sofa'), (1, 'grass'))
            >>> Vocabulary.from_labels(["chair", "grass"], background=False).names
            ('chair', 'grass')
        """
        names = None if background_names is None else tuple(background_names)
        return cls(labels_from_values(labels), background, background_threshold, templates, names)

    @classmethod
    def from_options(
        cls,
        options: Sequence[str],
        background: bool = True,
        background_threshold: float | None = None,
        templates: str | None = None,
        background_names: tuple[str, ...] | None = None,
    ) -> Vocabulary:
        """Create a vocabulary from command-line options such as ``"Sofa=sofa,couch"`` (name, prompts) or ``"Sofa"``.

        Raises:
            VocabularyError: an option is invalid; the message names the option.
        """
        return cls(labels_from_options(options), background, background_threshold, templates, background_names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)

    @cached_property
    def prompts(self) -> tuple[tuple[int, str], ...]:
        """Every prompt with the index of its label, counted from 0, label by label."""
        return tuple((index, prompt) for index, label in enumerate(self.labels) for prompt in label.prompts)

    @cached_property
    def colors(self) -> list[Color]:
        """RGB color of every label: its own, or a default color that no other label has."""
        own = {label.color for label in self.labels if label.color is not None}
        free = (color for color in default_colors() if color not in own)
        return [label.color if label.color is not None else next(free) for label in self.labels]

    def floor(self, default: float | None) -> float:
        """Height of the background plane, minus infinity without background.

        Args:
            default: the model's own, where the vocabulary says none; ``None`` for no plane.

        Examples:
            >>> Vocabulary((Label("cat"),)).floor(0.4), Vocabulary((Label("cat"),), background=False).floor(0.4)
            (0.4, -inf)
        """
        if not self.background:
            return float("-inf")
        height = default if self.background_threshold is None else self.background_threshold
        return float("-inf") if height is None else height

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary as plain data in the form of a label file, fit for JSON."""
        background: bool | float | dict[str, Any] = self.background
        if self.background_names is not None:
            background = {"threshold": self.background_threshold, "names": list(self.background_names)}
        elif self.background_threshold is not None:
            background = self.background_threshold
        return {
            "labels": [label.to_dict() for label in self.labels],
            "background": background,
            "templates": self.templates,
        }

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON of :meth:`to_dict`; equal vocabularies have equal fingerprints."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()
