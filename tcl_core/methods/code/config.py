"""Settings of CoDe; the defaults are those of the authors' experiments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from tcl_core.methods.code.nouns import Tagger
from tcl_core.methods.tcl.config import TCLConfig

__all__ = ["CoDeConfig", "Negatives"]

Negatives = Literal["all", "other images", "not named"]
"""Which pairs of an image and a noun are negatives where masks are judged, see `CoDeConfig`."""


@dataclass(frozen=True)
class CoDeConfig(TCLConfig):
    """Structure, loss weights and inference constants of CoDe (arXiv 2404.04231), where they are not TCL's.

    Attributes:
        decoder_double: two gated convolutions per stage instead of one.
        area_prior: share of an image that a noun's mask is expected to cover, in ``[0, 1]``.
        tcl_weight: weight of the contrasts of nouns with regions and with pooled features.
        area_weight: weight of the areas of matching pairs.
        negative_area_weight: weight of the areas of other pairs.
        prompt_weight: weight of the learned prompt's distance from CLIP's own templates.
        text_weight: weight of the cross-entropy of word masks.
        codecomposition_weight: weight of the contrast of highlighted regions with highlighted texts.
        context_tokens: number of learned vectors in front of a noun.
        nouns: nouns that are chosen from each caption; captions with fewer are left out.
        region_prompt_size: side in pixels of the learned image behind a highlighted region. ``None``: the side at which
            the CLIP was trained.
        tagger: how nouns are found: ``"nltk"``, as the authors do, or ``"rules"``, see `tcl_core.methods.code.nouns`.
        ignored_nouns: words that are no things, such as ``"photo picture"``, separated by blanks, in lower case.
        negatives: pairs that are negatives of masks and pooled features. ``"all"`` is what the authors' program does,
            which pushes the mask of the other noun of the same image to zero, although the image shows it;
            ``"other images"`` leaves those pairs out; ``"not named"`` also leaves out images whose captions name the
            noun, and regions and texts of the same noun.
    """

    method: ClassVar[str] = "CoDe"
    weights: ClassVar[tuple[str, ...]] = (
        *TCLConfig.weights,
        "negative_area_weight",
        "prompt_weight",
        "text_weight",
        "codecomposition_weight",
    )

    decoder_double: bool = False
    area_prior: float = 0.25
    area_weight: float = 0.5
    negative_area_weight: float = 0.05
    prompt_weight: float = 8.0
    text_weight: float = 1.0
    codecomposition_weight: float = 0.5
    context_tokens: int = 16
    nouns: int = 2
    region_prompt_size: int | None = None
    tagger: Tagger = "nltk"
    ignored_nouns: str = ""
    negatives: Negatives = "other images"

    def _wanted(self, name: str, value: Any) -> str:
        if name in ("context_tokens", "nouns"):
            return "" if type(value) is int and 1 <= value <= 64 else "a whole number from 1 to 64"
        if name == "region_prompt_size":
            valid = value is None or (type(value) is int and value >= 1)
            return "" if valid else "a number of pixels, or null"
        if name == "ignored_nouns":
            return "" if isinstance(value, str) and value == value.lower() else "one text of words in lower case"
        if name in ("tagger", "negatives"):
            choices = get_args(Tagger if name == "tagger" else Negatives)
            return "" if value in choices else " or ".join(map(repr, choices))
        return super()._wanted(name, value)
