"""Names of tensors in the authors' checkpoints, and how they map to this project's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import open_clip
import torch
from torch import Tensor

from tcl_core.methods.code.config import CoDeConfig
from tcl_core.methods.tcl.upstream import (
    CLIP_VIT_B16,
    config_from_state_dict,
    learned_state_dict_from_upstream,
    preprocess_of,
    tokenizer_of,
)
from tcl_core.methods.upstream import UpstreamModel
from tcl_core.towers.clip_config import clip_config_from_state_dict
from tcl_core.towers.open_clip_vit import FrozenClip

if TYPE_CHECKING:
    from tcl_core.methods.code.model import CoDe

__all__ = ["from_upstream", "frozen_clip_state_dict", "learned_code_from_upstream"]

_CONTEXT = "clip_text_encoder.prompt_learner.ctx"
_REGION_PROMPT = "learnable_image_bg"
_CLIP = "frozen_clip."
# The frozen towers again, by other names, and constants of the refinement.
_COPIES = ("clip_text_encoder.", "clip_image_encoder.", "pamr.")


def from_upstream(
    method: type[CoDe], state: Mapping[str, Tensor], towers: Mapping[str, Mapping[str, Tensor]]
) -> UpstreamModel | None:
    """Read a checkpoint of the authors' training code.

    It holds the frozen CLIP as well, which becomes part of the model file, so that nothing has to be downloaded.

    Args:
        method: the class to be filled.
        state: the ``model`` part of the checkpoint.
        towers: the frozen CLIP under ``"clip"``, by OpenAI's names, where the user gave its file.

    Returns:
        The model in this project's terms; ``None`` if there is no learned prompt among the tensors.

    Raises:
        WeightsError: tensors are missing, unknown or of the wrong shape; the message lists them.
    """
    if _CONTEXT not in state:
        return None
    frozen = dict(towers["clip"]) if "clip" in towers else frozen_clip_state_dict(state)
    config = None
    if frozen:
        # Neither training nor inference needs CLIP's own temperature; this is OpenAI's trained value.
        start = {"logit_scale": torch.tensor(math.log(100.0))}
        frozen = start | {key: tensor.float() for key, tensor in frozen.items()}
        config = clip_config_from_state_dict(frozen)
    sizes = config or dict(open_clip.get_model_config(CLIP_VIT_B16["open_clip"]) or {})
    learned = learned_code_from_upstream(state, sizes["vision_cfg"]["layers"])
    structure = _structure(learned, sizes)
    with torch.device("meta"):
        empty = method(FrozenClip(open_clip.CLIP(**cast(Any, sizes))), structure)
    empty.load_learned_state_dict(learned)
    return UpstreamModel(
        learned=learned,
        config={} if structure == CoDeConfig() else structure.to_dict(),
        tower={} if frozen else CLIP_VIT_B16,
        preprocess=preprocess_of(config),
        tokenizer=tokenizer_of(config),
        tower_config=config,
        tower_tensors=frozen,
    )


def learned_code_from_upstream(state: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Pick the learned tensors out of a checkpoint, float32 and under their final names.

    Args:
        state: the ``model`` part of a checkpoint.
        depth: number of blocks of the image tower.

    Raises:
        WeightsError: there is no copied block, or its number does not fit.
    """
    kept = {name: x for name, x in state.items() if not name.startswith((_CLIP, *_COPIES))}
    learned = learned_state_dict_from_upstream(kept, depth)
    return {name: tensor.float() for name, tensor in {**learned, _CONTEXT: state[_CONTEXT]}.items()}


def frozen_clip_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The frozen CLIP inside a checkpoint, under open_clip's names; empty where there is none."""
    return {name.removeprefix(_CLIP): tensor for name, tensor in state.items() if name.startswith(_CLIP)}


def _structure(learned: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> CoDeConfig:
    found = config_from_state_dict(learned, sizes["vision_cfg"]["layers"])
    behind = learned.get(_REGION_PROMPT)
    side = sizes["vision_cfg"]["image_size"] if behind is None else int(behind.shape[-1])
    return CoDeConfig(
        ie_freeze=None if found.ie_freeze == sizes["vision_cfg"]["layers"] - 1 else found.ie_freeze,
        decoder_layers=found.decoder_layers,
        decoder_double=found.decoder_double,
        decoder_kernel=found.decoder_kernel,
        context_tokens=int(learned[_CONTEXT].shape[0]),
        region_prompt_size=None if side == sizes["vision_cfg"]["image_size"] else side,
    )
