"""Settings of TCL and of other methods with its grounder; the defaults are those of the released model."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tcl_core.errors import SettingsError

__all__ = ["GrounderConfig", "TCLConfig"]


@dataclass(frozen=True)
class GrounderConfig:
    """Structure, inference constants, and losses of masks of methods with TCL's grounder (arXiv 2212.00785).

    Attributes:
        ie_freeze: number of CLIP's image blocks that are shared and frozen; the grounder copies the blocks after
            them. ``None``: all but the last.
        decoder_layers: number of x2 up-sampling stages.
        decoder_double: two gated convolutions per stage instead of one.
        decoder_kernel: side of the decoder's convolutions, odd.
        init_w: initial slope w of ``sigmoid(w * cos + b)``.
        init_b: initial offset b.
        area_weight: weight of both area terms.
        tv_weight: weight of both smoothness terms.
        area_prior: share of an image that a caption's mask is expected to cover, in ``[0, 1]``.
        kp_weight: default weight of CLIP's own dense map at inference, in ``[0, 1]``.
        kp_scale: slope of that map's sigmoid.
        kp_threshold: cosine at which that map is one half.
        refine_scale: pixels per patch side at which masks are refined by the image. ``None``: the masks' own
            resolution.
        background_threshold_pamr: score of the background where masks are refined.
        background_threshold_plain: score of the background where they are not.

    Raises:
        SettingsError: a value is out of range.
    """

    method: ClassVar[str] = "TCL"
    shares: ClassVar[tuple[str, ...]] = (
        "area_prior",
        "kp_weight",
        "background_threshold_pamr",
        "background_threshold_plain",
    )
    weights: ClassVar[tuple[str, ...]] = ("area_weight", "tv_weight")

    ie_freeze: int | None = None
    decoder_layers: int = 2
    decoder_double: bool = True
    decoder_kernel: int = 3
    init_w: float = 10.0
    init_b: float = -2.5
    area_weight: float = 0.4
    tv_weight: float = 1.0
    area_prior: float = 0.4
    kp_weight: float = 0.3
    kp_scale: float = 10.0
    kp_threshold: float = 0.25
    refine_scale: int | None = None
    background_threshold_pamr: float = 0.4
    background_threshold_plain: float = 0.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if wanted := self._wanted(field.name, value):
                raise SettingsError(f"The {self.method} setting {field.name} is {value!r}, but must be {wanted}.")

    def _wanted(self, name: str, value: Any) -> str:
        """What a setting would have to be; empty if the value is valid."""
        if name == "decoder_double":
            valid, wanted = isinstance(value, bool), "true or false"
        elif name == "ie_freeze":
            valid, wanted = value is None or (type(value) is int and value >= 1), "a number of blocks, or null"
        elif name == "decoder_layers":
            valid, wanted = type(value) is int and 0 <= value <= 4, "a whole number from 0 to 4"
        elif name == "refine_scale":
            valid = value is None or (type(value) is int and 1 <= value <= 32)
            wanted = "a whole number from 1 to 32, or null"
        elif name == "decoder_kernel":
            valid, wanted = type(value) is int and value > 0 and value % 2 == 1, "an odd whole number"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            valid, wanted = False, "a finite number"
        elif name in self.shares:
            valid, wanted = 0 <= value <= 1, "between 0 and 1"
        elif name in self.weights:
            valid, wanted = value >= 0, "0 or more"
        else:
            valid, wanted = True, ""
        return "" if valid else wanted

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Build from plain values.

        Raises:
            SettingsError: a setting is unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(settings.keys() - known):
            near = [match for name in unknown for match in difflib.get_close_matches(name, known, n=1)]
            hint = f" Did you mean {' and '.join(near)}?" if near else ""
            listed = ", ".join(sorted(known))
            raise SettingsError(f"Unknown {cls.method} settings: {', '.join(unknown)}.{hint} Known are: {listed}.")
        return cls(**settings)

    def heights(self) -> dict[str, float]:
        """Score of the background by the refiner's name, ``"plain"`` for none."""
        return {"plain": self.background_threshold_plain, "pamr": self.background_threshold_pamr}

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TCLConfig(GrounderConfig):
    """Settings of TCL (arXiv 2212.00785).

    Attributes:
        gumbel_tau: temperature of the Gumbel-sigmoid.
        tcl_weight: weight of both contrastive terms.

    Example:
        >>> TCLConfig(area_prior=0.25).area_prior
        0.25
    """

    weights: ClassVar[tuple[str, ...]] = ("tcl_weight", *GrounderConfig.weights)

    gumbel_tau: float = 1.0
    tcl_weight: float = 0.1

    def _wanted(self, name: str, value: Any) -> str:
        wanted = super()._wanted(name, value)
        return "more than 0" if name == "gumbel_tau" and not wanted and value <= 0 else wanted
