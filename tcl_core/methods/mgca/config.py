"""Settings of MGCA-style training; all values are this project's choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tcl_core.methods.tcl.config import GrounderConfig

__all__ = ["MGCAStyleConfig"]

_MOST = 4096


@dataclass(frozen=True)
class MGCAStyleConfig(GrounderConfig):
    """Structure, loss weights and sampling of MGCA-style training.

    The name of a setting in parentheses is the one that a summary of the paper mentions.

    Attributes:
        object_weight: weight of the contrast of captions with what their masks pool from images.
        region_weight: weight of the contrast of captions with parts; 0 leaves it out.
        pixel_weight: weight of the contrast of captions with hard pixels; 0 leaves it out.
        regions: meta-points, and so parts, of each image.
        region_negatives: hardest captions of each part, and hardest parts of each caption, that are negatives (k_n).
        region_temperature: of the softmax over affinities that makes a part.
        hard_pixels: pixels of each kind that are chosen for a caption (k_pix): the least similar of the foreground, the
            most similar outside of it, and the most similar of other images.
        margin: pixels whose mask is nearer to 0.5 than this have no label.
        same_text: captions whose cosine is above this are no negatives of each other.
        foreground_least: pixels above 0.5 that a mask needs to be a foreground.
        foreground_share: share of pixels, the most similar ones, that is taken instead where there are fewer; at least
            as many as ``foreground_least``.
        train_last_block: whether the copied blocks of the image tower are trained in the stage "all".
    """

    method: ClassVar[str] = "MGCA-style"
    shares: ClassVar[tuple[str, ...]] = (*GrounderConfig.shares, "foreground_share")
    weights: ClassVar[tuple[str, ...]] = (
        *GrounderConfig.weights,
        "object_weight",
        "region_weight",
        "pixel_weight",
    )

    object_weight: float = 0.1
    region_weight: float = 0.1
    pixel_weight: float = 0.1
    regions: int = 4
    region_negatives: int = 16
    region_temperature: float = 0.07
    hard_pixels: int = 32
    margin: float = 0.1
    same_text: float = 0.9
    foreground_least: int = 8
    foreground_share: float = 0.05
    train_last_block: bool = False

    def _wanted(self, name: str, value: Any) -> str:
        if name in ("regions", "region_negatives", "hard_pixels", "foreground_least"):
            return "" if type(value) is int and 1 <= value <= _MOST else f"a whole number from 1 to {_MOST}"
        if name == "train_last_block":
            return "" if isinstance(value, bool) else "true or false"
        if wanted := super()._wanted(name, value):
            return wanted
        if name == "region_temperature" and value <= 0:
            return "more than 0"
        if name == "margin" and not 0 <= value < 0.5:
            return "0 or more, and less than 0.5"
        if name == "same_text" and not -1 <= value <= 1:
            return "between -1 and 1"
        return ""
