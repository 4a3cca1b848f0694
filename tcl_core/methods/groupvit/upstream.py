"""Names of tensors in the checkpoints of the authors and of the Hugging Face hub, mapped to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.methods.groupvit.config import GroupViTConfig
from tcl_core.methods.upstream import UpstreamModel

if TYPE_CHECKING:
    from tcl_core.methods.groupvit.model import GroupViT

__all__ = ["config_from_tensors", "from_upstream", "tensors_by_our_names"]

PREFIX = "encoders."
_PATCHES = "vision_model.embeddings.patch_embeddings.projection.weight"
_CLIP_VOCABULARY = 49408
_HEAD = 64

# The authors' names from the left; the tensors of a fused projection are split before.
_RENAMED = (
    (r"^img_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^img_encoder\.patch_embed\.norm\.", "vision_model.embeddings.layernorm."),
    (r"^img_encoder\.pos_embed$", "vision_model.embeddings.position_embeddings"),
    (r"^img_encoder\.norm\.", "vision_model.layernorm."),
    (r"^img_encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"vision_model.encoder.stages.\1.layers.\2."),
    (r"^img_encoder\.layers\.(\d+)\.", r"vision_model.encoder.stages.\1."),
    (r"^img_projector\.linear_hidden\.", "visual_projection."),
    (r"^img_projector\.linear_out\.", "visual_projection.3."),
    (r"^text_projector\.linear_hidden\.", "text_projection."),
    (r"^text_projector\.linear_out\.", "text_projection.3."),
    (r"^text_encoder\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text_encoder\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^text_encoder\.ln_final\.", "text_model.final_layer_norm."),
    (r"^text_encoder\.transformer\.resblocks\.(\d+)\.", r"text_model.encoder.layers.\1."),
)
_INSIDE = (
    (r"(\.layers\.\d+)\.ln_1\.", r"\1.layer_norm1."),
    (r"(\.layers\.\d+)\.ln_2\.", r"\1.layer_norm2."),
    (r"(\.layers\.\d+)\.norm1\.", r"\1.layer_norm1."),
    (r"(\.layers\.\d+)\.norm2\.", r"\1.layer_norm2."),
    (r"(\.layers\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(\.layers\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
    (r"(\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.out_proj."),
    (r"(\.layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"(\.pre_assign_attn\.attn)\.proj\.", r"\1.out_proj."),
)
_POINTWISE = ("img_projector.", "text_projector.")
_FUSED = re.compile(r"^(.*)\.(?:qkv\.|in_proj_)(weight|bias)$")
# Learned in training alone, and a counter.
_UNUSED = ("multi_label_logit_scale", "num_batches_tracked", "position_ids")


def from_upstream(method: type[GroupViT], state: Mapping[str, Tensor]) -> UpstreamModel | None:
    """Read a checkpoint of the authors' training code, or the tensors of `transformers.GroupViTModel`.

    Returns:
        The model in this project's terms; ``None`` if the tensors are no GroupViT.

    Raises:
        WeightsError: tensors are missing, unknown or of the wrong shape; the message lists them.
    """
    if "img_encoder.layers.0.group_token" not in state and "vision_model.encoder.stages.0.group_token" not in state:
        return None
    tensors = tensors_by_our_names(state)
    config = config_from_tensors(tensors)
    with torch.device("meta"):
        empty = method(config)
    empty.load_learned_state_dict(tensors, assign=True)
    return UpstreamModel(
        learned=tensors,
        config={} if config == GroupViTConfig() else config.to_dict(),
        tower={},
        preprocess=preprocess_of(config),
        tokenizer=config.tokenizer,
        templates="simple",
        background_threshold={"pamr": 0.5, "plain": 0.5},
    )


def tensors_by_our_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of `GroupViT.learned_state_dict`, float32, from the authors' names or transformers'."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_UNUSED):
            continue
        fused = _FUSED.match(name)
        parts = {name: tensor}
        if fused is not None:
            thirds = zip("qkv", tensor.chunk(3), strict=True)
            parts = {f"{fused[1]}.{kind}_proj.{fused[2]}": part.contiguous() for kind, part in thirds}
        for part_name, part in parts.items():
            # The authors project by convolutions of one pixel.
            pointwise = part_name.startswith(_POINTWISE) and part.dim() == 3 and part.shape[2] == 1
            found[PREFIX + _renamed(part_name)] = (part[..., 0] if pointwise else part).float().contiguous()
    return found


def _renamed(name: str) -> str:
    for pattern, new in (*_RENAMED, *_INSIDE):
        name = re.sub(pattern, new, name)
    return name


def config_from_tensors(tensors: Mapping[str, Tensor]) -> GroupViTConfig:
    """Read the sizes off tensors of our names; heads have 64 channels, as those that were published.

    Raises:
        WeightsError: a tensor that tells a size is missing, or the position grid is not square.
    """

    def shape(name: str) -> tuple[int, ...]:
        if PREFIX + name not in tensors:
            raise WeightsError(f"These tensors are no GroupViT; missing: {name}.")
        return tuple(tensors[PREFIX + name].shape)

    stages = _count(tensors, r"vision_model\.encoder\.stages\.(\d+)\.")
    depths = [_count(tensors, rf"vision_model\.encoder\.stages\.{i}\.layers\.(\d+)\.") for i in range(stages)]
    tokens = [
        shape(f"vision_model.encoder.stages.{i}.group_token")[1]
        if f"{PREFIX}vision_model.encoder.stages.{i}.group_token" in tensors
        else 0
        for i in range(stages)
    ]
    groups = [shape(f"vision_model.encoder.stages.{i}.downsample.mlp_inter.fc2.bias")[0] for i in range(stages - 1)]
    width, _, patch, _ = shape(_PATCHES)
    positions = shape("vision_model.embeddings.position_embeddings")[1]
    side = round(positions**0.5)
    if side * side != positions:
        raise WeightsError(f"The position embeddings have {positions} places, which is not a square.")
    vocabulary, text_width = shape("text_model.embeddings.token_embedding.weight")
    context = shape("text_model.embeddings.position_embedding.weight")[0]
    embed, hidden = shape("visual_projection.3.weight")
    tokenizer: dict[str, Any] = {"type": "open_clip"}
    if vocabulary != _CLIP_VOCABULARY:
        tokenizer = {"type": "none", "context_length": context, "vocab_size": vocabulary}
    elif context != GroupViTConfig.context_length:
        tokenizer["context_length"] = context
    return GroupViTConfig(
        width=width,
        heads=max(1, width // _HEAD),
        depths=tuple(depths),
        group_tokens=tuple(tokens),
        output_groups=tuple(groups),
        image_size=side * patch,
        patch_size=patch,
        text_width=text_width,
        text_heads=max(1, text_width // _HEAD),
        text_layers=_count(tensors, r"text_model\.encoder\.layers\.(\d+)\."),
        vocab_size=vocabulary,
        context_length=context,
        embed_dim=embed,
        hidden_dim=hidden,
        tokenizer=tokenizer,
    )


def preprocess_of(config: GroupViTConfig) -> dict[str, Any]:
    """How images are prepared in the authors' evaluation: ImageNet's mean and deviation, windows of twice the size."""
    window = 2 * config.image_size
    return {
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "short_side": window,
        "max_long_side": max(2048, window),
        "window": window,
        "stride": config.image_size,
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(re.escape(PREFIX) + pattern, name))})
