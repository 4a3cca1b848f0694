"""The sizes of a CLIP, read off its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tcl_core.errors import WeightsError

__all__ = ["clip_config_from_state_dict"]


def clip_config_from_state_dict(
    state: Mapping[str, Tensor], *, head_width: int = 64, text_heads: int | None = None, quick_gelu: bool = True
) -> dict[str, Any]:
    """Read the sizes of a CLIP with a ViT image tower off its tensors.

    Args:
        state: tensors under OpenAI's (and open_clip's) names.
        head_width: channels per attention head of the image tower; not visible in the tensors.
        text_heads: attention heads of the text tower; ``None`` takes one head per 64 channels, as OpenAI does.
        quick_gelu: whether the model was trained with QuickGELU.

    Returns:
        Keyword arguments of ``open_clip.CLIP``.

    Raises:
        WeightsError: a tensor that tells a size is missing, or the position grid is not square.
    """
    needed = (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "visual.proj",
        "visual.transformer.resblocks.0.mlp.c_fc.weight",
        "transformer.resblocks.0.mlp.c_fc.weight",
        "positional_embedding",
        "token_embedding.weight",
    )
    missing = [name for name in needed if name not in state]
    if missing:
        raise WeightsError(f"These tensors are not a CLIP with a ViT image tower; missing: {', '.join(missing)}.")
    odd = [x for x in needed if state[x].dim() != (4 if "conv1" in x else 2) or not state[x].numel()]
    if odd:
        sizes = ", ".join(f"{name} {list(state[name].shape)}" for name in odd)
        raise WeightsError(f"These tensors are not a CLIP with a ViT image tower; wrong shapes: {sizes}.")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    positions = state["visual.positional_embedding"].shape[0] - 1
    side = round(positions**0.5)
    if side * side != positions:
        raise WeightsError(f"visual.positional_embedding has {positions} grid positions, which is not a square.")
    vocabulary, text_width = state["token_embedding.weight"].shape
    vision_blocks, text_blocks = "visual.transformer.resblocks.", "transformer.resblocks."
    return {
        "embed_dim": state["visual.proj"].shape[1],
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": side * patch,
            "patch_size": patch,
            "width": width,
            "head_width": head_width,
            "layers": _count_blocks(state, vision_blocks),
            "mlp_ratio": state[f"{vision_blocks}0.mlp.c_fc.weight"].shape[0] / width,
        },
        "text_cfg": {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text_heads if text_heads is not None else max(text_width // 64, 1),
            "layers": _count_blocks(state, text_blocks),
            "mlp_ratio": state[f"{text_blocks}0.mlp.c_fc.weight"].shape[0] / text_width,
        },
    }


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
