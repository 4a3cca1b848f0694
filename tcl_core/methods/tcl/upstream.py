"""Names of tensors in upstream's checkpoints, and how they map to this project's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import open_clip
import torch
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.methods.tcl.config import TCLConfig
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.towers.clip_config import clip_config_from_state_dict
from tcl_core.towers.open_clip_vit import FrozenClip

if TYPE_CHECKING:
    from tcl_core.methods.tcl.model import TCL

__all__ = [
    "CLIP_VIT_B16",
    "config_from_state_dict",
    "from_upstream",
    "frozen_clip_state_dict",
    "learned_keys",
    "learned_state_dict_from_upstream",
    "preprocess_of",
    "tokenizer_of",
]

# ImageNet's statistics, which the authors' training used instead of CLIP's own.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_LONG_SIDE = 2048
_CLIP_TOKENS = 49408
CLIP_VIT_B16 = {"open_clip": "ViT-B-16-quickgelu", "pretrained": "openai"}
_MOST_BLOCKS = 512
_PROJECTION = "masker.image_encoder.decoder.image_proj.proj"

_BLOCK = re.compile(r"^(masker\.image_encoder\.backbone\.transformer\.resblocks\.)(\d+)(\..+)$")
_STAGE = re.compile(r"^masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.")
_LOSSES = ("tcli_loss.logit_scale", "tclf_loss.logit_scale")
_FROZEN = {
    "clip_text_encoder.": "",
    "clip_image_encoder.clip_proj.proj": "visual.proj",
    "clip_image_encoder.clip_proj.ln.": "visual.ln_post.",
    "clip_image_encoder.clip_visual.": "visual.",
}


class _Sizes(NamedTuple):
    """What tells one CLIP from another."""

    width: int
    embed_dim: int
    depth: int
    patch: int
    vocabulary: int


_VIT_B16 = _Sizes(768, 512, 12, 16, _CLIP_TOKENS)


def from_upstream(
    method: type[TCL], state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]
) -> UpstreamModel | None:
    """Read a checkpoint of the authors' training code, minimal (learned tensors alone) or training-style.

    Args:
        method: the class to be filled.
        state: the ``model`` part of the checkpoint.
        towers: the frozen CLIP under ``"clip"``, by OpenAI's names, where the user gave its file.

    Returns:
        The model in this project's terms; ``None`` if no tensor is one of TCL's.

    Raises:
        WeightsError: tensors are missing, unknown or of the wrong shape; the message lists them.
    """
    if not any(name.startswith(("masker.", *_FROZEN)) for name in state):
        return None
    state = {name: tensor for name, tensor in state.items() if not name.startswith("pamr.")}
    frozen = dict(towers["clip"]) if "clip" in towers else frozen_clip_state_dict(state)
    if frozen:
        # The method never uses CLIP's own temperature, so the authors do not keep it; this is OpenAI's trained value.
        frozen = {"logit_scale": torch.tensor(math.log(100.0)), **_as_float32(frozen)}
    config = clip_config_from_state_dict(frozen) if frozen else None
    sizes = _sizes(state, config)
    is_vit_b16 = sizes == _VIT_B16
    learned = _as_float32(learned_state_dict_from_upstream(_with_blocks(state, sizes), sizes.depth))
    structure = TCLConfig() if is_vit_b16 else config_from_state_dict(learned, sizes.depth)
    _empty_method(method, sizes, structure).load_learned_state_dict(learned)
    return UpstreamModel(
        learned=learned,
        config={} if structure == TCLConfig() else structure.to_dict(),
        tower=CLIP_VIT_B16 if is_vit_b16 else {},
        preprocess=preprocess_of(config),
        tokenizer=tokenizer_of(config),
        tower_config=config,
        tower_tensors=frozen,
    )


def learned_keys(config: TCLConfig, depth: int) -> list[str]:
    """Names of all learned tensors of a TCL on an image tower of ``depth`` blocks, in upstream's spelling.

    Example:
        >>> len(learned_keys(TCLConfig(), depth=12))
        39
        >>> learned_keys(TCLConfig(), depth=12)[0]
        'masker.image_encoder.backbone.transformer.resblocks.11.attn.in_proj_weight'
    """
    affine = ("weight", "bias")
    block = [f"attn.in_proj_{kind}" for kind in affine] + [
        f"{layer}.{kind}" for layer in ("attn.out_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2") for kind in affine
    ]
    conv = [f"{layer}.{kind}" for layer in ("norm", "conv") for kind in affine] + ["gate.gate"]
    first = depth - 1 if config.ie_freeze is None else config.ie_freeze
    encoder = "masker.image_encoder"
    keys = [f"{encoder}.backbone.transformer.resblocks.{i}.{name}" for i in range(first, depth) for name in block]
    for stage in range(config.decoder_layers):
        for half in ("conv", "conv2") if config.decoder_double else ("conv",):
            keys += [f"{encoder}.decoder.decoder.net.{stage}.{half}.{name}" for name in conv]
    keys += [f"{encoder}.decoder.image_proj.{name}" for name in ("proj", "ln.weight", "ln.bias")]
    return [*keys, "masker.sim2mask.w", "masker.sim2mask.b", *_LOSSES]


def learned_state_dict_from_upstream(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Pick the learned tensors out of an upstream checkpoint and give them their final names.

    Frozen towers (``clip_*``) and PAMR's constant kernels (``pamr.*``) are left out. The copied blocks may be
    numbered as in the whole tower (11 of 12) or from 0.

    Args:
        state: the ``model`` part of a training-style or of a minimal checkpoint.
        depth: number of blocks of the image tower.

    Returns:
        Tensors as ``TCL.load_learned_state_dict`` takes them; unknown ones are passed on for it to report.

    Raises:
        WeightsError: there is no copied block, or its numbers fit neither numbering.
    """
    kept = {name: x for name, x in state.items() if not name.startswith(("pamr.", *_FROZEN))}
    numbers = sorted({int(match[2]) for match in map(_BLOCK.match, kept) if match})
    if not numbers:
        raise WeightsError("This is not a TCL checkpoint: it has no masker.image_encoder.backbone tensors.")
    shift = depth - len(numbers) if numbers[0] == 0 else 0
    if [number + shift for number in numbers] != list(range(depth - len(numbers), depth)):
        raise WeightsError(
            f"The checkpoint's backbone has the blocks {numbers}, which are not the last blocks of an image tower of "
            f"{depth}; it was trained on another CLIP."
        )
    return {
        _BLOCK.sub(lambda match: f"{match[1]}{int(match[2]) + shift}{match[3]}", name): x for name, x in kept.items()
    }


def frozen_clip_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen CLIP inside a training-style checkpoint, under open_clip's names.

    Args:
        state: the ``model`` part of a checkpoint.

    Returns:
        Tensors for ``open_clip.CLIP`` (without its ``logit_scale``, which upstream does not keep); empty for a
        minimal checkpoint.
    """
    frozen = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in _FROZEN if name.startswith(prefix)), None)
        if prefix is not None:
            frozen[_FROZEN[prefix] + name.removeprefix(prefix)] = tensor
    return frozen


def config_from_state_dict(state: Mapping[str, Tensor], depth: int) -> TCLConfig:
    """The structure of a TCL as its tensors show it; everything else is as in the released model.

    Args:
        state: learned tensors under their final names.
        depth: number of blocks of the image tower.

    Raises:
        WeightsError: there is no copied block.
    """
    blocks = {int(match[2]) for match in map(_BLOCK.match, state) if match}
    if not blocks:
        raise WeightsError("This is not a TCL checkpoint: it has no masker.image_encoder.backbone tensors.")
    stages = {int(match[1]) for match in map(_STAGE.match, state) if match}
    kernel = state.get("masker.image_encoder.decoder.decoder.net.0.conv.conv.weight")
    return TCLConfig(
        ie_freeze=depth - len(blocks),
        decoder_layers=len(stages),
        decoder_double=any(".conv2." in name for name in state) or not stages,
        decoder_kernel=TCLConfig.decoder_kernel if kernel is None else int(kernel.shape[-1]),
    )


def _sizes(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> _Sizes:
    """Sizes of the CLIP, or where it is not there what the learned tensors show of them."""
    if config is not None:
        vision, text = config["vision_cfg"], config["text_cfg"]
        return _Sizes(vision["width"], config["embed_dim"], vision["layers"], vision["patch_size"], text["vocab_size"])
    projection = state.get(_PROJECTION)
    if projection is None or projection.dim() != 2 or tuple(projection.shape) == _VIT_B16[:2]:
        return _VIT_B16
    blocks = {int(match[2]) for key in state if (match := _BLOCK.match(key))}
    # Counted from 0, the blocks do not tell how many others came before; one is the fewest that is possible.
    depth = max(blocks, default=0) + (2 if 0 in blocks else 1)
    return _VIT_B16._replace(width=projection.shape[0], embed_dim=projection.shape[1], depth=depth)


def _with_blocks(state: Mapping[str, Tensor], sizes: _Sizes) -> Mapping[str, Tensor]:
    if any(_BLOCK.match(key) for key in state):
        if sizes.depth > _MOST_BLOCKS:
            raise WeightsError(f"has a transformer block numbered {sizes.depth - 1}, which no image tower has")
        return state
    wanted = set(learned_keys(TCLConfig(), sizes.depth))
    unknown = sorted(state.keys() - wanted - {key for key in state if key.startswith("clip_")})
    raise WeightsError(
        f"this is not a TCL checkpoint; missing: {', '.join(sorted(wanted - state.keys()))}; "
        f"unknown: {', '.join(unknown) or 'none'}"
    )


def _empty_method(method: type[TCL], sizes: _Sizes, structure: TCLConfig) -> TCL:
    """TCL on a CLIP of these sizes, without memory: it knows the names and shapes of its tensors."""
    with torch.device("meta"):
        clip = open_clip.CLIP(
            embed_dim=sizes.embed_dim,
            vision_cfg={
                "image_size": sizes.patch,
                "patch_size": sizes.patch,
                "width": sizes.width,
                "head_width": sizes.width,
                "layers": sizes.depth,
            },
            text_cfg={"vocab_size": sizes.vocabulary, "width": 8, "heads": 1, "layers": 1},
        )
        return method(FrozenClip(clip), structure)


def _as_float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in tensors.items()}


def preprocess_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``preprocess`` entry of a model file of the authors' weights.

    Args:
        config: open_clip's configuration of the CLIP; ``None`` for ViT-B/16.
    """
    # The authors trained at 224 pixels and evaluate with windows of 448 and a stride of 224.
    side = 224 if config is None else config["vision_cfg"]["image_size"]
    return {
        "mean": _MEAN,
        "std": _STD,
        "short_side": 2 * side,
        "max_long_side": max(_MAX_LONG_SIDE, 2 * side),
        "window": 2 * side,
        "stride": side,
    }


def tokenizer_of(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``tokenizer`` entry of a model file of the authors' weights; ``none`` where the vocabulary is not CLIP's.

    Args:
        config: open_clip's configuration of the CLIP; ``None`` for ViT-B/16.
    """
    if config is None:
        return {"type": "open_clip", "context_length": 77}
    context_length, vocab_size = config["text_cfg"]["context_length"], config["text_cfg"]["vocab_size"]
    if vocab_size == _CLIP_TOKENS:
        return {"type": "open_clip", "context_length": context_length}
    return {"type": "none", "context_length": context_length, "vocab_size": vocab_size}
