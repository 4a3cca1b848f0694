"""How an image becomes the network's input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, model_validator

from tcl_core.errors import WeightsError
from tcl_core.validation import FiniteNumber, WholeNumber, checked, validated

__all__ = ["Preprocess"]

_Positive = Annotated[FiniteNumber, Field(gt=0)]
_Pixels = Annotated[WholeNumber, Field(ge=1)]


@checked("preprocess", WeightsError)
class Preprocess:
    """How an image becomes the network's input.

    Attributes:
        mean: of red, green, blue in ``[0, 1]``, subtracted.
        std: of red, green, blue in ``[0, 1]``, divided by.
        short_side: the shorter side is scaled to this many pixels ...
        max_long_side: ... unless the longer side would become longer than this.
        window: side of the square sliding window in pixels.
        stride: step of the sliding window in pixels, at most ``window``.

    Raises:
        WeightsError: a value is of the wrong kind or out of range.
    """

    mean: tuple[FiniteNumber, FiniteNumber, FiniteNumber]
    std: tuple[_Positive, _Positive, _Positive]
    short_side: _Pixels
    max_long_side: _Pixels
    window: _Pixels
    stride: _Pixels

    @model_validator(mode="after")
    def _sizes_fit(self) -> Preprocess:
        if self.stride > self.window:
            raise ValueError("'stride' must not be larger than 'window', or pixels would be left out")
        if self.max_long_side < self.short_side:
            raise ValueError("'max_long_side' must not be smaller than 'short_side'")
        return self

    def to_dict(self) -> dict[str, Any]:
        """The ``preprocess`` entry of a model file."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Preprocess:
        """Check and read a ``preprocess`` entry.

        Raises:
            WeightsError: a key is missing, unknown, of the wrong kind or out of range.
        """
        return validated(cls, entry, "preprocess", WeightsError)
