"""What a model file says about itself: method, CLIP, preprocessing, tokenizer, license."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tcl_core.errors import WeightsError
from tcl_core.towers.tokenizer import split_words

__all__ = ["FORMAT", "METADATA_KEY", "ModelMetadata", "Preprocess"]

METADATA_KEY = "tcl_annotate"
FORMAT = 2

_CLIP_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}
# open_clip's configuration can also name timm or Hugging Face towers, which it would then download: only the plain
# ViT and text transformer are let through.
_VISION_KEYS = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "pool_type"),
    *("ls_init_value", "patch_dropout", "no_ln_pre", "final_ln_after_pool", "pos_embed_type"),
}
_TEXT_KEYS = {
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type"),
    *("ls_init_value", "no_causal_mask", "pad_id", "eos_id", "final_ln_after_pool"),
}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input.

    Attributes:
        mean: of red, green, blue in ``[0, 1]``, subtracted.
        std: of red, green, blue in ``[0, 1]``, divided by.
        short_side: the shorter side is scaled to this many pixels ...
        max_long_side: ... unless the longer side would become longer than this.
        window: side of the square sliding window in pixels.
        stride: step of the sliding window in pixels, at most ``window``.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short_side: int
    max_long_side: int
    window: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        """The ``preprocess`` entry of a model file."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "short_side": self.short_side,
            "max_long_side": self.max_long_side,
            "window": self.window,
            "stride": self.stride,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Preprocess:
        """Check and read a ``preprocess`` entry.

        Raises:
            WeightsError: a key is missing, unknown, of the wrong kind or out of range.
        """
        _require_keys(entry, "preprocess", {"mean", "std", "short_side", "max_long_side", "window", "stride"})
        colors: dict[str, tuple[float, float, float]] = {}
        for key in ("mean", "std"):
            value = entry[key]
            if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_number(v) for v in value):
                raise WeightsError(f"preprocess: {key!r} must be three numbers, not {value!r}")
            colors[key] = (float(value[0]), float(value[1]), float(value[2]))
        if min(colors["std"]) <= 0:
            raise WeightsError(f"preprocess: 'std' must be above 0, not {entry['std']!r}")
        sizes: dict[str, int] = {}
        for key in ("short_side", "max_long_side", "window", "stride"):
            value = entry[key]
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise WeightsError(f"preprocess: {key!r} must be a whole number of at least 1, not {value!r}")
            sizes[key] = value
        if sizes["stride"] > sizes["window"]:
            raise WeightsError("preprocess: 'stride' must not be larger than 'window', or pixels would be left out")
        if sizes["max_long_side"] < sizes["short_side"]:
            raise WeightsError("preprocess: 'max_long_side' must not be smaller than 'short_side'")
        return cls(
            mean=colors["mean"],
            std=colors["std"],
            short_side=sizes["short_side"],
            max_long_side=sizes["max_long_side"],
            window=sizes["window"],
            stride=sizes["stride"],
        )


@dataclass(frozen=True)
class ModelMetadata:
    """The JSON that a model file carries (safetensors metadata key ``tcl_annotate``).

    Attributes:
        name: how the model is called in lists and in COCO's ``info``.
        preprocess: from image to input.
        method: registered name of the method.
        method_config: keyword values of the method's configuration; empty for its defaults.
        clip: ``{"config": {...}}`` (the file holds the CLIP; the value is an open_clip model configuration of a plain
            ViT), ``{"open_clip": "ViT-B-16-quickgelu", "pretrained": "openai"}`` (optionally with ``"sha256"`` of the
            CLIP file it was made for), or ``{}`` (learned tensors alone, of a CLIP that has to be given).
        tokenizer: see :func:`tcl_core.towers.tokenizer.tokenizer_from_dict`.
        templates: name of the prompt template set.
        background_threshold: ``{"pamr": t, "plain": t}``, the constant background score with and without refinement,
            in ``[0, 1]``.
        debiasing: ``{"words": [...], "text_set": "text"}`` of
            :class:`tcl_core.segmentation.text_debiasing.PromptDebiasing`, whose axes are in the file, or ``{}``;
            ``text_set`` names the text set of the method's prompt embeddings that is debiased.
        license: SPDX identifier or a short sentence.
        source: where the weights come from.
        extra: anything else worth keeping (source hash, recipe, tensors that had to be initialized).
    """

    name: str
    preprocess: Preprocess
    method: str = "tcl"
    method_config: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"type": "open_clip"})
    templates: str = "custom"
    background_threshold: dict[str, float] = field(default_factory=lambda: {"pamr": 0.4, "plain": 0.5})
    debiasing: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with ``"format": 2``."""
        # Left out where there is none, so that models without it keep their bytes, and with them their hash.
        debiasing = {"debiasing": self.debiasing} if self.debiasing else {}
        return debiasing | {
            "format": FORMAT,
            "name": self.name,
            "method": self.method,
            "method_config": self.method_config,
            "clip": self.clip,
            "preprocess": self.preprocess.to_dict(),
            "templates": self.templates,
            "background_threshold": self.background_threshold,
            "tokenizer": self.tokenizer,
            "license": self.license,
            "source": self.source,
            "extra": self.extra,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ModelMetadata:
        """Check and read a model file's metadata.

        ``method_config``, ``debiasing``, ``license``, ``source`` and ``extra`` may be absent.

        Raises:
            WeightsError: a key is missing, unknown, of the wrong kind or out of range; the message names it.
        """
        if entry.get("format") != FORMAT:
            raise WeightsError(
                f"model file format {entry.get('format')!r} is not known to this version (it reads {FORMAT})"
            )
        optional = {"method_config": {}, "debiasing": {}, "license": "", "source": "", "extra": {}}
        entry = {**optional, **entry}
        _require_keys(
            entry,
            "metadata",
            {"format", "name", "method", "clip", "preprocess", "templates", "background_threshold", "tokenizer"}
            | set(optional),
        )
        for key in ("name", "method", "templates", "license", "source"):
            if not isinstance(entry[key], str) or (key in ("name", "method", "templates") and not entry[key]):
                raise WeightsError(f"metadata: {key!r} must be a text, not {entry[key]!r}")
        for key in ("method_config", "clip", "preprocess", "background_threshold", "tokenizer", "debiasing", "extra"):
            if not isinstance(entry[key], Mapping):
                raise WeightsError(f"metadata: {key!r} must be a mapping, not {entry[key]!r}")
        thresholds = entry["background_threshold"]
        _require_keys(thresholds, "background_threshold", {"pamr", "plain"})
        for key, value in thresholds.items():
            if not _is_number(value) or not 0 <= value <= 1:
                raise WeightsError(f"background_threshold: {key!r} must be a number from 0 to 1, not {value!r}")
        _check_clip(entry["clip"])
        _check_debiasing(entry["debiasing"])
        return cls(
            name=entry["name"],
            preprocess=Preprocess.from_dict(entry["preprocess"]),
            method=entry["method"],
            method_config=dict(entry["method_config"]),
            clip=dict(entry["clip"]),
            tokenizer=dict(entry["tokenizer"]),
            templates=entry["templates"],
            debiasing=dict(entry["debiasing"]),
            background_threshold={key: float(value) for key, value in thresholds.items()},
            license=entry["license"],
            source=entry["source"],
            extra=dict(entry["extra"]),
        )

    def to_json(self) -> str:
        """The JSON text that is written into the file (sorted, so that equal metadata gives equal bytes)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True, allow_nan=False)


def _check_clip(clip: Mapping[str, Any]) -> None:
    if not clip:
        return
    if "config" not in clip:
        if not {"open_clip", "pretrained"} <= set(clip) <= {"open_clip", "pretrained", "sha256"}:
            raise WeightsError(
                "clip: must hold either 'config' or both 'open_clip' and 'pretrained', not " + ", ".join(sorted(clip))
            )
        return
    _require_keys(clip, "clip", {"config"})
    config = clip["config"]
    if not isinstance(config, Mapping):
        raise WeightsError(f"clip: 'config' must be a mapping, not {config!r}")
    for where, entry, allowed, needed in (
        ("clip.config", config, _CLIP_KEYS, {"embed_dim", "vision_cfg", "text_cfg"}),
        ("clip.config.vision_cfg", config.get("vision_cfg", {}), _VISION_KEYS, {"layers", "width", "patch_size"}),
        ("clip.config.text_cfg", config.get("text_cfg", {}), _TEXT_KEYS, {"layers", "width", "vocab_size"}),
    ):
        if not isinstance(entry, Mapping):
            raise WeightsError(f"{where}: must be a mapping, not {entry!r}")
        unknown, missing = set(entry) - allowed, needed - set(entry)
        if unknown or missing:
            raise WeightsError(
                f"{where}: only a plain ViT and text transformer can be built; "
                f"unknown keys: {_names(unknown)}; missing keys: {_names(missing)}"
            )


def _check_debiasing(entry: Mapping[str, Any]) -> None:
    if not entry:
        return
    _require_keys(entry, "debiasing", {"words", "text_set"})
    if not isinstance(entry["text_set"], str) or not entry["text_set"].isidentifier():
        raise WeightsError(f"debiasing: 'text_set' must be the name of a text set, not {entry['text_set']!r}")
    words = entry["words"]
    if not isinstance(words, list | tuple) or not words or not all(map(_is_word, words)):
        raise WeightsError(f"debiasing: 'words' must be a list of single words in lower case, not {words!r}")


def _require_keys(entry: Mapping[str, Any], where: str, keys: set[str]) -> None:
    unknown, missing = set(entry) - keys, keys - set(entry)
    if unknown or missing:
        raise WeightsError(f"{where}: unknown keys: {_names(unknown)}; missing keys: {_names(missing)}")


def _names(keys: set[str]) -> str:
    return ", ".join(sorted(map(str, keys))) or "none"


def _is_word(value: Any) -> bool:
    """Whether prompts are split into words like this one."""
    return isinstance(value, str) and split_words(value) == [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
