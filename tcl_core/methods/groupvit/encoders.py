"""The encoders of transformers (Apache-2.0), by parts of it that take images of any size.

`GroupViTModel` itself refuses every size but the trained one. Its embeddings, encoder and norm do not, and the maps by
which tokens are assigned to groups come out of the encoder.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.groupvit.config import GroupViTConfig

__all__ = ["image_groups", "make_encoders", "project", "text_features"]

# With this id transformers takes the largest token of a text for its end, as the authors do.
_LARGEST_TOKEN_ENDS = 2


def make_encoders(config: GroupViTConfig) -> nn.Module:
    """A `transformers.GroupViTModel` with random weights.

    Raises:
        SettingsError: transformers is not installed, or is broken.
    """
    try:
        # Its import takes seconds, so that nobody else should pay for it.
        from transformers.models.groupvit import GroupViTConfig as Config
        from transformers.models.groupvit import GroupViTModel
    # A torchvision that was built for another PyTorch raises something else while transformers is imported.
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"GroupViT needs transformers ({reason}); run: pip install 'tcl-annotate[groupvit]'"
        ) from error
    settings = Config(
        text_config={
            "vocab_size": config.vocab_size,
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.context_length,
            "bos_token_id": None,
            "eos_token_id": _LARGEST_TOKEN_ENDS,
            "pad_token_id": None,
        },
        vision_config={
            "hidden_size": config.width,
            "intermediate_size": 4 * config.width,
            "num_hidden_layers": sum(config.depths),
            "depths": list(config.depths),
            "num_group_tokens": list(config.group_tokens),
            "num_output_groups": [*config.output_groups, config.output_groups[-1]],
            "num_attention_heads": config.heads,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
        },
        projection_dim=config.embed_dim,
        projection_intermediate_dim=config.hidden_dim,
    )
    return cast(nn.Module, GroupViTModel(settings).eval())


def image_groups(encoders: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Groups of images.

    Args:
        encoders: from `make_encoders`.
        images: float32 ``[B, 3, H, W]``, normalized; H and W multiples of the patch size.

    Returns:
        The soft assignments float32 ``[B, G_i, N_i]`` of the tokens of each stage to groups, and the features of the
        last groups float32 ``[B, G, C]`` after the final norm.
    """
    vision = cast(Any, encoders).vision_model
    tokens = vision.embeddings(images, interpolate_pos_encoding=True)
    found = vision.encoder(hidden_states=tokens, output_attentions=True, return_dict=True)
    # One head.
    return [maps[:, 0] if maps.dim() == 4 else maps for maps in found.attentions], vision.layernorm(found[0])


def text_features(encoders: nn.Module, tokens: Tensor) -> Tensor:
    """Embeddings float32 ``[N, E]`` of token ids int64 ``[N, L]``, not normalized."""
    parts = cast(Any, encoders)
    # Without a mask of the padding, as the authors do; no token sees a later one.
    found = parts.text_model(input_ids=tokens, attention_mask=None)
    return cast(Tensor, parts.text_projection(found.pooler_output))


def project(encoders: nn.Module, features: Tensor) -> Tensor:
    """Features float32 ``[..., C]`` of groups or images in the joint space ``[..., E]``, not normalized."""
    rows = features.reshape(-1, features.shape[-1])
    found: Tensor = cast(Any, encoders).visual_projection(rows)
    return found.view(*features.shape[:-1], -1)
