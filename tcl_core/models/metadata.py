"""What a model file says about itself: method, CLIP, preprocessing, tokenizer, license."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tcl_core.errors import WeightsError
from tcl_core.segmentation.preprocess import Preprocess
from tcl_core.towers.tokenizer import split_words
from tcl_core.validation import FiniteNumber, KeysOf, Text, checked, validated

__all__ = ["FORMAT", "METADATA_KEY", "ModelMetadata", "Preprocess"]

METADATA_KEY = "tcl_annotate"
FORMAT = 2

_REQUIRED = ("format", "name", "method", "clip", "preprocess", "templates", "background_threshold", "tokenizer")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# open_clip's configuration can also name timm or Hugging Face towers, which it would then download: only the plain
# ViT and text transformer are let through. What the values may be, the tensors decide when the model is built.
class _VisionConfig(_Entry):
    layers: Any
    width: Any
    patch_size: Any
    head_width: Any = None
    mlp_ratio: Any = None
    image_size: Any = None
    pool_type: Any = None
    ls_init_value: Any = None
    patch_dropout: Any = None
    no_ln_pre: Any = None
    final_ln_after_pool: Any = None
    pos_embed_type: Any = None


class _TextConfig(_Entry):
    layers: Any
    width: Any
    vocab_size: Any
    context_length: Any = None
    heads: Any = None
    mlp_ratio: Any = None
    pool_type: Any = None
    ls_init_value: Any = None
    no_causal_mask: Any = None
    pad_id: Any = None
    eos_id: Any = None
    final_ln_after_pool: Any = None


class _ClipConfig(_Entry):
    embed_dim: Any
    vision_cfg: _VisionConfig
    text_cfg: _TextConfig
    quick_gelu: Any = None
    init_logit_scale: Any = None


class _Clip(_Entry):
    config: _ClipConfig | None = None
    open_clip: str | None = None
    pretrained: str | None = None
    model: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> _Clip:
        reference = {"open_clip", "pretrained"}
        given = {name for name in self.model_fields_set if getattr(self, name) is not None}
        if "model" in given:
            if given != {"model", "sha256"} or self.model_fields_set != given:
                raise ValueError("must contain 'model' with 'sha256' and nothing else, where it names a model")
            return self
        if given != self.model_fields_set or given - {"sha256"} not in (set(), {"config"}, reference):
            raise ValueError("must contain either 'config' or both 'open_clip' and 'pretrained'")
        if "sha256" in given and not given > reference:
            raise ValueError("'sha256' belongs to 'open_clip' and 'pretrained'")
        return self


class _ImageEncoder(_Entry):
    timm: Text
    file: Text
    sha256: Text


def _single_word(value: str) -> str:
    # Prompts are split into words like this one.
    if split_words(value) != [value]:
        raise ValueError("must be a single lower-case word")
    return value


def _identifier(value: str) -> str:
    if not value.isidentifier():
        raise ValueError("must be the name of a text set")
    return value


class _Debiasing(_Entry):
    words: Annotated[list[Annotated[str, AfterValidator(_single_word)]], Field(min_length=1)]
    text_set: Annotated[str, AfterValidator(_identifier)]


_Share = Annotated[FiniteNumber, Field(ge=0, le=1)]


class _Thresholds(_Entry):
    pamr: _Share
    plain: _Share


@checked("metadata", WeightsError)
class ModelMetadata:
    """The JSON that a model file carries (safetensors metadata key ``tcl_annotate``).

    Attributes:
        name: how the model is called in lists and in COCO's ``info``.
        preprocess: from image to input.
        method: registered name of the method.
        method_config: keyword values of the method's configuration; empty for its defaults.
        clip: ``{"config": {...}}`` (the file holds the CLIP; the value is an open_clip model configuration of a plain
            ViT), ``{"open_clip": "ViT-B-16-quickgelu", "pretrained": "openai"}`` (optionally with ``"sha256"`` of the
            CLIP file it was made for), ``{"model": NAME, "sha256": ...}`` (the CLIP of another model, whose weights
            must have this hash), or ``{}`` (learned tensors alone, of a CLIP that has to be given, or of none).
        tokenizer: see :func:`tcl_core.towers.tokenizer.tokenizer_from_dict`.
        templates: name of the prompt template set.
        background_threshold: ``{"pamr": t, "plain": t}``, the constant background score with and without refinement,
            in ``[0, 1]``.
        debiasing: ``{"words": [...], "text_set": "text"}`` of
            :class:`tcl_core.segmentation.text_debiasing.PromptDebiasing`, whose axes are in the file, or ``{}``;
            ``text_set`` names the text set of the method's prompt embeddings that is debiased.
        image_encoder: ``{"timm": ..., "file": ..., "sha256": ...}`` of an image encoder beside the CLIP, see
            `tcl_core.models.image_encoders`; empty where there is none.
        background_names: everything that a closed world holds, see :class:`tcl_core.models.Model`; empty otherwise.
        license: SPDX identifier or a short sentence.
        source: where the weights come from.
        extra: anything else worth keeping (source hash, recipe, tensors that had to be initialized).
    """

    name: Text
    preprocess: Preprocess
    method: Text = "tcl"
    method_config: dict[str, Any] = field(default_factory=dict)
    clip: Annotated[dict[str, Any], KeysOf(_Clip)] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=lambda: {"type": "open_clip"})
    templates: Text = "custom"
    background_threshold: Annotated[dict[str, float], KeysOf(_Thresholds)] = field(
        default_factory=lambda: {"pamr": 0.4, "plain": 0.5}
    )
    debiasing: Annotated[dict[str, Any], KeysOf(_Debiasing, or_empty=True)] = field(default_factory=dict)
    image_encoder: Annotated[dict[str, Any], KeysOf(_ImageEncoder, or_empty=True)] = field(default_factory=dict)
    background_names: list[Text] = field(default_factory=list)
    license: str = ""
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with ``"format": 2``."""
        # Left out where there is none, so that models without it keep their bytes, and with them their hash.
        debiasing = {"debiasing": self.debiasing} if self.debiasing else {}
        names = {"background_names": self.background_names} if self.background_names else {}
        encoder = {"image_encoder": self.image_encoder} if self.image_encoder else {}
        return (
            debiasing
            | names
            | encoder
            | {
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
        )

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> ModelMetadata:
        """Check and read a model file's metadata.

        ``method_config``, ``debiasing``, ``image_encoder``, ``background_names``, ``license``, ``source`` and ``extra``
        may be absent.

        Raises:
            WeightsError: a key is missing, unknown, of the wrong kind or out of range; the message names it.
        """
        if entry.get("format") != FORMAT:
            raise WeightsError(
                f"model file format {entry.get('format')!r} is not known to this version (it reads {FORMAT})"
            )
        # The constructor has defaults for these; a file has to say them.
        missing = sorted(set(_REQUIRED) - set(entry))
        if missing:
            raise WeightsError(f"metadata: missing keys: {', '.join(missing)}")
        values = {key: value for key, value in entry.items() if key != "format"}
        return validated(cls, values, "metadata", WeightsError)

    def to_json(self) -> str:
        """The JSON text that is written into the file (sorted, so that equal metadata gives equal bytes)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True, allow_nan=False)
