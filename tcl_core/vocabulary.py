"""The vocabulary of a job: its labels, their prompts, and whether there is background.

A **label** is what the annotator's schema calls a thing; a **prompt** is the text that is sent to the text tower.
Reading from files and options lives in :mod:`tcl_core._vocabulary_file`; every rule about what a vocabulary may
hold is here, so that one made in Python is checked just as one from a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tcl_core.errors import VocabularyError
from tcl_core.templates import check_template_set

__all__ = ["Label", "Vocabulary", "default_colours"]

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Label:
    """One label and the prompts that stand for it.

    Attributes:
        name: what the annotation is called (the COCO category name); surrounding blanks are removed.
        prompts: texts for the text tower; the label's score is the maximum over their score maps.
            Without any, the name is the prompt.
        threshold: the label competes at a pixel only where its score is at least this, in ``[0, 1]``.
        colour: RGB, each 0 to 255; ``None`` takes a default colour.

    Raises:
        VocabularyError: for an empty name or prompt, a prompt given twice, or a threshold or colour out of range.

    Examples:
        >>> Label("Sofa", ("sofa", "couch")).prompts
        ('sofa', 'couch')
        >>> Label("Sofa").prompts
        ('Sofa',)
    """

    name: str
    prompts: tuple[str, ...] = ()
    threshold: float | None = None
    colour: Colour | None = None

    def __post_init__(self) -> None:
        name = _check_text(self.name, "name", "the label")
        if isinstance(self.prompts, str):
            raise VocabularyError(f"prompts: expected a list of texts, found one text; write ({self.prompts!r},)")
        prompts = tuple(_check_text(p, f"prompts[{i}]", "the prompt") for i, p in enumerate(self.prompts)) or (name,)
        for i, prompt in enumerate(prompts):
            if prompt in prompts[:i]:
                raise VocabularyError(f"prompts[{i}]: the prompt {prompt!r} is there twice; remove one of the two")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "prompts", prompts)
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _check_threshold(self.threshold, "threshold"))
        if self.colour is not None:
            object.__setattr__(self, "colour", _check_colour(self.colour))

    def to_dict(self) -> dict[str, Any]:
        """The label as it would stand in a label file."""
        colour = None if self.colour is None else list(self.colour)
        return {"name": self.name, "prompts": list(self.prompts), "threshold": self.threshold, "colour": colour}


@dataclass(frozen=True)
class Vocabulary:
    """The labels of a job, in the order of their ids (label k, counted from 1, is ``labels[k - 1]``).

    Attributes:
        labels: at least one; no name twice.
        background: whether a constant plane competes with the labels; pixels it wins carry no label.
        background_threshold: height of that plane in ``[0, 1]``; ``None`` takes the model's default.
        templates: name of the template set; ``None`` takes the model's default.

    Raises:
        VocabularyError: if it has no labels, a label twice (also after Unicode normalisation), a label called
            "background", a threshold out of range, a background threshold without background, or unknown templates.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        if not self.labels:
            raise VocabularyError("labels: there is no label; give at least one")
        first_at: dict[str, int] = {}
        for index, label in enumerate(self.labels):
            if not isinstance(label, Label):
                raise VocabularyError(f"labels[{index}]: expected a Label, found {type(label).__name__}")
            key = _name_key(label.name)
            if key.casefold() == "background":
                raise VocabularyError(
                    f"labels[{index}].name: {label.name!r} is not a label but what wins where no label does; remove it "
                    "and write background: true, or its threshold, such as background: 0.45"
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
            value = _check_threshold(self.background_threshold, "background threshold")
            if not self.background:
                raise VocabularyError("background threshold: there is no background; switch it on or leave this out")
            object.__setattr__(self, "background_threshold", value)
        if self.templates is not None:
            check_template_set(self.templates)

    @classmethod
    def from_file(cls, path: str | Path) -> Vocabulary:
        """Read a label file (YAML, UTF-8).

        The file is a list of names, or a mapping with ``labels`` (names, or mappings with ``name``, ``prompts``,
        ``threshold``, ``colour``), ``background`` (``true``, ``false`` or a threshold) and ``templates``.

        Raises:
            VocabularyError: if it cannot be read or holds a mistake; the message names the file and the field.
        """
        from tcl_core._vocabulary_file import read_vocabulary_file

        return read_vocabulary_file(Path(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | Sequence[Any], source: str = "vocabulary") -> Vocabulary:
        """Make a vocabulary from what a label file holds; the inverse of :meth:`to_dict`.

        Raises:
            VocabularyError: if it holds a mistake; the message begins with ``source`` and names the field.
        """
        from tcl_core._vocabulary_file import vocabulary_from_data

        return vocabulary_from_data(data, source)

    @classmethod
    def from_options(
        cls,
        options: Sequence[str],
        background: bool = True,
        background_threshold: float | None = None,
        templates: str | None = None,
    ) -> Vocabulary:
        """Make a vocabulary from options such as ``"Sofa=sofa,couch"`` (name, prompts) or ``"Sofa"``.

        Raises:
            VocabularyError: if an option holds a mistake; the message names the option.
        """
        from tcl_core._vocabulary_file import labels_from_options

        return cls(labels_from_options(options), background, background_threshold, templates)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)

    @cached_property
    def prompts(self) -> tuple[tuple[int, str], ...]:
        """Every prompt with the index of its label, counted from 0, label by label."""
        return tuple((index, prompt) for index, label in enumerate(self.labels) for prompt in label.prompts)

    @cached_property
    def colours(self) -> list[Colour]:
        """RGB of every label, its own or a default one that no other label has."""
        own = {label.colour for label in self.labels if label.colour is not None}
        free = (colour for colour in default_colours() if colour not in own)
        return [label.colour if label.colour is not None else next(free) for label in self.labels]

    def floor(self, default: float) -> float:
        """Height of the background plane, minus infinity without background.

        Args:
            default: the model's own, where the vocabulary says none.

        Examples:
            >>> Vocabulary((Label("cat"),)).floor(0.4), Vocabulary((Label("cat"),), background=False).floor(0.4)
            (0.4, -inf)
        """
        if not self.background:
            return float("-inf")
        return default if self.background_threshold is None else self.background_threshold

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary as plain data in the form of a label file, fit for JSON."""
        background: bool | float = self.background
        if self.background_threshold is not None:
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


def default_colours() -> Iterator[Colour]:
    """Distinct RGB colours without end; the n-th is always the same.

    Hues advance by the golden angle, so that any first few are far apart; brightness changes from colour to colour.

    Examples:
        >>> from itertools import islice
        >>> len(set(islice(default_colours(), 500)))
        500
    """
    import colorsys

    seen: set[Colour] = set()
    turn = 0
    while True:
        hue = (0.58 + turn * 0.6180339887498949) % 1.0
        saturation = (0.78, 0.62, 0.92)[turn % 3]
        value = (0.95, 0.78, 0.88)[(turn // 2) % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colour = (round(red * 255), round(green * 255), round(blue * 255))
        turn += 1
        if colour not in seen:
            seen.add(colour)
            yield colour


def _name_key(name: str) -> str:
    """Names that look the same are the same: compare in Unicode's composed form."""
    return unicodedata.normalize("NFC", name).strip()


def _check_text(value: object, field: str, what: str) -> str:
    if not isinstance(value, str):
        raise VocabularyError(f"{field}: expected a text, found {value!r}; put it in quotes")
    text = value.strip()
    if not text:
        raise VocabularyError(f"{field}: {what} is empty; write a word or remove it")
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise VocabularyError(f"{field}: {what} {text!r} holds a line break or control character; remove it")
    return text


def _check_threshold(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise VocabularyError(f"{field}: expected a number between 0 and 1, found {value!r}")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise VocabularyError(f"{field}: {value!r} is out of range; write a number between 0 and 1")
    return float(value)


def _check_colour(value: object) -> Colour:
    parts = list(value) if isinstance(value, (tuple, list)) else []
    channels = [c for c in parts if isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255]
    if len(parts) != 3 or len(channels) != 3:
        raise VocabularyError(
            f"colour: {value!r} is not a colour; write '#rrggbb' in quotes or [r, g, b] with each from 0 to 255"
        )
    red, green, blue = channels
    return (red, green, blue)
