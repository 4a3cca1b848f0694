from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.errors import WeightsError
from tcl_core.methods.tcl import (
    TCL,
    TCLConfig,
    config_from_state_dict,
    frozen_clip_state_dict,
    learned_keys,
    learned_state_dict_from_upstream,
)
from tests.core.tcl_models import small_clip, small_tcl

FOLDER = Path(__file__).parents[1] / "data" / "tcl_mini"
DEPTH = 3
BLOCK = "masker.image_encoder.backbone.transformer.resblocks."


def upstream(name: str) -> dict[str, Tensor]:
    return torch.load(FOLDER / name, weights_only=True)["model"]


def renumber(state: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    return {re.sub(re.escape(BLOCK) + r"\d+", f"{BLOCK}{number}", name): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("name", ["full.pth", "minimal.pth"])
@pytest.mark.parametrize("number", [0, DEPTH - 1])
def test_both_forms_and_both_numberings(name: str, number: int) -> None:
    state = renumber(upstream(name), number) | {f"pamr.aff_{part}.kernel": torch.zeros(1) for part in ("x", "m", "std")}
    learned = learned_state_dict_from_upstream(state, DEPTH)
    expected = set(learned_keys(TCLConfig(), DEPTH))
    if name == "minimal.pth":
        expected -= TCL.optional_keys
    assert set(learned) == expected
    original = upstream("full.pth")
    assert all(torch.equal(tensor, original[key]) for key, tensor in learned.items())
    assert config_from_state_dict(learned, DEPTH) == TCLConfig(ie_freeze=DEPTH - 1)


def test_unknown_tensors_are_passed_on_to_be_reported() -> None:
    learned = learned_state_dict_from_upstream(upstream("minimal.pth") | {"masker.novelty": torch.zeros(1)}, DEPTH)
    assert "masker.novelty" in learned


def test_a_checkpoint_of_another_tower_or_model() -> None:
    with pytest.raises(WeightsError, match="blocks \\[2\\].*tower of 12"):
        learned_state_dict_from_upstream(upstream("minimal.pth"), 12)
    for function in (learned_state_dict_from_upstream, config_from_state_dict):
        with pytest.raises(WeightsError, match="not a TCL checkpoint"):
            function({"layer.weight": torch.zeros(1)}, 12)


def test_frozen_towers_are_the_clip_after_upstreams_rounding() -> None:
    frozen, original = frozen_clip_state_dict(upstream("full.pth")), load_file(FOLDER / "clip.safetensors")
    assert set(frozen) == set(original) - {"logit_scale"}
    rounded = re.compile(
        r"(conv1|c_fc|c_proj|out_proj)\.(weight|bias)$|in_proj_(weight|bias)$|(^|\.)(text_)?proj(ection)?$"
    )
    for name, tensor in frozen.items():
        expected = original[name].half().float() if rounded.search(name) else original[name]
        assert torch.equal(tensor, expected), name
    assert frozen_clip_state_dict(upstream("minimal.pth")) == {}


@pytest.mark.parametrize(
    "config",
    [
        TCLConfig(ie_freeze=2),
        TCLConfig(ie_freeze=1),
        TCLConfig(ie_freeze=2, decoder_double=False),
        TCLConfig(ie_freeze=2, decoder_layers=3, decoder_kernel=1),
        TCLConfig(ie_freeze=2, decoder_layers=0),
    ],
    ids=str,
)
def test_structure_is_read_off_the_tensors(config: TCLConfig) -> None:
    state, first_block = small_tcl(config).learned_state_dict(), config.ie_freeze or 0
    assert config_from_state_dict(state, DEPTH) == config
    from_zero = {
        re.sub(re.escape(BLOCK) + r"(\d+)", lambda m: f"{BLOCK}{int(m[1]) - first_block}", name): tensor
        for name, tensor in state.items()
    }
    tcl = TCL(small_clip(), config)
    tcl.load_learned_state_dict(learned_state_dict_from_upstream(from_zero, DEPTH))
    assert all(torch.equal(tensor, state[name]) for name, tensor in tcl.learned_state_dict().items())
