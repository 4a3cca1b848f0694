"""A label and its prompts.

A **label** is a class of the annotation schema; a **prompt** is the text that is passed to the text encoder.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

from tcl_core.errors import VocabularyError
from tcl_core.vocabulary.colors import Color

__all__ = ["Label", "check_threshold", "name_key"]

_LARGEST_VALUE = 65_534


@dataclass(frozen=True)
class Label:
    """One label and its prompts.

    Attributes:
        name: name of the label (the COCO category name); surrounding whitespace is removed.
        prompts: texts to search for; the label's score is the maximum over the prompts. Defaults to the name.
        threshold: minimum score, in ``[0, 1]``, that the label needs at a pixel.
        color: RGB, each 0 to 255; ``None`` uses a default color.
        value: pixel value in semantic masks, 1 to 65534; ``None`` uses the position in the vocabulary, starting at 1.

    Raises:
        VocabularyError: the name or a prompt is empty, a prompt occurs twice, or a threshold, color or value is out of
            range.

    Examples:
        >>> Label("Sofa", ("sofa", "couch")).prompts
        ('sofa', 'couch')
        >>> Label("Sofa").prompts
        ('Sofa',)
    """

    name: str
    prompts: tuple[str, ...] = ()
    threshold: float | None = None
    color: Color | None = None
    value: int | None = None

    def __post_init__(self) -> None:
        name = _check_text(self.name, "name", "the label")
        if isinstance(self.prompts, str):
            raise VocabularyError(f"prompts: expected a list of strings, found a string; write ({self.prompts!r},)")
        prompts = tuple(_check_text(p, f"prompts[{i}]", "the prompt") for i, p in enumerate(self.prompts)) or (name,)
        for i, prompt in enumerate(prompts):
            if prompt in prompts[:i]:
                raise VocabularyError(f"prompts[{i}]: the prompt {prompt!r} is listed twice; remove one of the two")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "prompts", prompts)
        if self.threshold is not None:
            object.__setattr__(self, "threshold", check_threshold(self.threshold, "threshold"))
        if self.color is not None:
            object.__setattr__(self, "color", _check_color(self.color))
        if self.value is not None:
            _check_value(self.value)

    def to_dict(self) -> dict[str, Any]:
        """The label as in a label file."""
        color = None if self.color is None else list(self.color)
        plain = {"name": self.name, "prompts": list(self.prompts), "threshold": self.threshold, "color": color}
        # What was made before there were values has the same fingerprint as without one.
        return plain if self.value is None else {**plain, "value": self.value}


def name_key(name: str) -> str:
    """Names that look the same are the same: compare in Unicode's composed form."""
    return unicodedata.normalize("NFC", name).strip()


def _check_text(value: object, field: str, what: str) -> str:
    if not isinstance(value, str):
        raise VocabularyError(f"{field}: expected text, found {value!r}; put it in quotes")
    text = value.strip()
    if not text:
        raise VocabularyError(f"{field}: {what} is empty; write a word or remove it")
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if bad is not None:
        raise VocabularyError(f"{field}: {what} {text!r} contains a line break or control character; remove it")
    return text


def check_threshold(value: object, field: str) -> float:
    """A threshold as a float.

    Raises:
        VocabularyError: it is no number between 0 and 1; the message begins with the field.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise VocabularyError(f"{field}: expected a number between 0 and 1, found {value!r}")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise VocabularyError(f"{field}: {value!r} is out of range; write a number between 0 and 1")
    return float(value)


def _check_color(value: object) -> Color:
    parts = list(value) if isinstance(value, (tuple, list)) else []
    channels = [c for c in parts if isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255]
    if len(parts) != 3 or len(channels) != 3:
        raise VocabularyError(
            f"color: {value!r} is not a color; write '#rrggbb' in quotes or [r, g, b] with each from 0 to 255"
        )
    red, green, blue = channels
    return (red, green, blue)


def _check_value(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_VALUE:
        raise VocabularyError(
            f"value: {value!r} is not a valid mask value; write a whole number from 1 to {_LARGEST_VALUE}"
        )
