"""Names of tensors in upstream's checkpoints, and how they map to this project's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.methods.tcl.config import TCLConfig

__all__ = ["config_from_state_dict", "frozen_clip_state_dict", "learned_keys", "learned_state_dict_from_upstream"]

_BLOCK = re.compile(r"^(masker\.image_encoder\.backbone\.transformer\.resblocks\.)(\d+)(\..+)$")
_STAGE = re.compile(r"^masker\.image_encoder\.decoder\.decoder\.net\.(\d+)\.")
_LOSSES = ("tcli_loss.logit_scale", "tclf_loss.logit_scale")
_FROZEN = {
    "clip_text_encoder.": "",
    "clip_image_encoder.clip_proj.proj": "visual.proj",
    "clip_image_encoder.clip_proj.ln.": "visual.ln_post.",
    "clip_image_encoder.clip_visual.": "visual.",
}


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
