"""Sizes of a GroupViT and its options; the defaults are those of the published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field, model_validator

from tcl_core.errors import SettingsError
from tcl_core.methods.options import MethodOptions, option
from tcl_core.validation import WholeNumber, checked, validated

__all__ = ["GroupViTConfig", "GroupViTOptions"]

_Size = Annotated[WholeNumber, Field(ge=1, le=1 << 20)]
_Count = Annotated[WholeNumber, Field(ge=0, le=4096)]


class GroupViTOptions(MethodOptions):
    """How groups become labels."""

    threshold: float = option(
        0.95,
        "Groups whose best score is below this are background; the authors take 0.95 for things, 0.35 with stuff.",
        affects="scores",
        ge=0,
        le=1,
    )
    top_k: int = option(
        5, "Names that are kept in a window, those nearest to the whole of it; 0 keeps all.", affects="scores", ge=0
    )
    pamr: bool = option(
        False, "Let score maps follow the edges of the image where refinement is on.", affects="features"
    )


@checked("groupvit", SettingsError)
class GroupViTConfig:
    """Sizes that the tensors must have.

    Attributes:
        width: channels of the image tower.
        heads: attention heads of the image tower.
        depths: blocks of each stage.
        group_tokens: learned tokens of each stage; 0 for the last.
        output_groups: groups after each stage but the last.
        image_size: side in pixels of the images it was trained on.
        patch_size: side of a patch in pixels.
        text_width: channels of the text tower.
        text_heads: attention heads of the text tower.
        text_layers: blocks of the text tower.
        vocab_size: number of tokens that it knows.
        context_length: tokens of a text.
        embed_dim: dimension of the joint space.
        hidden_dim: width of the two projections.
        tokenizer: as in a model file, see `tcl_core.towers.tokenizer.tokenizer_from_dict`.
    """

    width: _Size = 384
    heads: _Size = 6
    depths: tuple[_Size, ...] = (6, 3, 3)
    group_tokens: tuple[_Count, ...] = (64, 8, 0)
    output_groups: tuple[_Size, ...] = (64, 8)
    image_size: _Size = 224
    patch_size: _Size = 16
    text_width: _Size = 256
    text_heads: _Size = 4
    text_layers: _Size = 12
    vocab_size: _Size = 49408
    context_length: _Size = 77
    embed_dim: _Size = 256
    hidden_dim: _Size = 4096
    tokenizer: dict[str, Any] = Field(default_factory=lambda: {"type": "open_clip"})

    @model_validator(mode="after")
    def _fit(self) -> GroupViTConfig:
        stages = len(self.depths)
        if stages < 2 or len(self.group_tokens) != stages or len(self.output_groups) != stages - 1:
            raise ValueError("depths and group_tokens need a number for each stage, output_groups one less")
        if self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError("a width must be a multiple of its heads")
        return self

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> GroupViTConfig:
        """Check and read plain settings.

        Raises:
            SettingsError: a setting is unknown or out of range.
        """
        return validated(cls, entry, "groupvit", SettingsError)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
