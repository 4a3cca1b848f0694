"""TCL against numbers that the official model produced.

The record folder is ``tests/data/tcl_mini``, or the one that the environment variable ``TCL_PARITY_DIR`` names. All
sizes are read from the record, so that a record of any other model serves as well.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods.tcl import TCL, TCLConfig, frozen_clip_state_dict, learned_state_dict_from_upstream
from tcl_core.methods.tcl.grounder import cosine_maps
from tcl_core.refinement.pamr import pamr
from tcl_core.segmentation.sliding_window import background_plane, merge_windows, split_windows
from tcl_core.towers.clip_blocks import diagonal_attention_block
from tcl_core.towers.clip_config import clip_config_from_state_dict
from tcl_core.towers.open_clip_vit import FrozenClip
from tests.core.tcl_models import pamr_guide, score_maps

FOLDER = Path(os.environ.get("TCL_PARITY_DIR") or Path(__file__).parents[1] / "data" / "tcl_mini")
TENSORS = FOLDER / "records.safetensors"

if "TCL_PARITY_DIR" in os.environ and not TENSORS.is_file():
    raise FileNotFoundError(f"TCL_PARITY_DIR is set, but there is no {TENSORS}")
if not TENSORS.is_file():
    pytest.skip(f"no parity record at {FOLDER}", allow_module_level=True)

with safe_open(TENSORS, framework="pt") as _file:
    KEYS = sorted(_file.keys())
NUMBERS: dict[str, Any] = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
STAGES = sorted({match[1] for key in NUMBERS if (match := re.match(r"train_(\w+)/losses/", key))})


def matching(pattern: str) -> list[str]:
    return [key for key in KEYS if re.fullmatch(pattern, key)]


@dataclass(frozen=True)
class Official:
    clip: FrozenClip
    method: TCL
    record: dict[str, Tensor]


def read_config() -> TCLConfig:
    config = {key.removeprefix("config/"): value for key, value in NUMBERS.items() if key.startswith("config/")}
    decoder, mask = "masker/decoder/", "masker/sim2mask/"
    assert config["ie_ignore_last_attn"]
    assert (config[f"{decoder}act"], config[f"{decoder}norm"]) == ("gelu", "ln")
    return TCLConfig(
        ie_freeze=config["ie_freeze"],
        decoder_layers=config[f"{decoder}n_layers"],
        decoder_double=config[f"{decoder}double"],
        decoder_kernel=config[f"{decoder}kernel_size"],
        init_w=config[f"{mask}init_w"],
        init_b=config[f"{mask}init_b"],
        gumbel_tau=config[f"{mask}gumbel_tau"],
        tcl_weight=config["tcl_w"],
        area_weight=config["area_w"],
        tv_weight=config["tv_w"],
    )


@cache
def checkpoint(name: str) -> dict[str, Tensor]:
    return torch.load(FOLDER / name, weights_only=True, map_location="cpu")["model"]


@cache
def official() -> Official:
    state = checkpoint("full.pth")
    frozen = frozen_clip_state_dict(state)
    # The arguments of OpenAI's constructor; the heads of the text tower are the only size the tensors do not show.
    text_heads = NUMBERS["clip_args"][8]
    model = open_clip.CLIP(**clip_config_from_state_dict(frozen, text_heads=text_heads))
    result = model.load_state_dict(frozen, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["logit_scale"], [])
    clip = FrozenClip(model)
    method = TCL(clip, read_config())
    method.load_learned_state_dict(learned_state_dict_from_upstream(state, clip.depth))
    return Official(clip, method, {key: tensor for key, tensor in load_file(TENSORS).items()})


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to ``tolerance``, which is absolute up to values of 1 and relative to the largest value above."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(1.0, float(expected.abs().max())))


def test_the_record_is_complete() -> None:
    """A record that lost its tensors must not pass for want of comparisons."""
    assert len(STAGES) == 2
    assert {"inter/text_emb", "inter/image_emb", "class_emb", "pamr/mask_out", "slide/logits", "slide/argmax"} <= set(
        KEYS
    )
    for setting in ("pamr0", "pamr1", r"pamr\d_kp0\.0", r"pamr\d_kp0\.3"):
        assert len(matching(rf"seg/\w+/mask_{setting}.*")) >= 2, setting


def test_sizes_match_the_record() -> None:
    clip = official().clip
    embed, image, layers, width, patch, context, vocabulary, text_width, _, text_layers = NUMBERS["clip_args"]
    visual, text = clip.visual, cast(open_clip.CLIP, clip.model)
    assert (clip.embed_dim, clip.depth, clip.width, clip.patch_size) == (embed, layers, width, patch)
    assert (visual.image_size, clip.context_length) == ((image, image), context)
    assert tuple(text.token_embedding.weight.shape) == (vocabulary, text_width)
    assert len(text.transformer.resblocks) == text_layers


def test_minimal_checkpoint_holds_the_same_learned_tensors() -> None:
    method = official().method
    fresh = TCL(official().clip, method.config)
    fresh.load_learned_state_dict(learned_state_dict_from_upstream(checkpoint("minimal.pth"), official().clip.depth))
    expected = method.learned_state_dict()
    for name, tensor in fresh.learned_state_dict().items():
        if name.startswith("masker."):
            assert torch.equal(tensor, expected[name]), name


@torch.no_grad()
def intermediate(name: str) -> Tensor | None:
    clip, method, record = official().clip, official().method, official().record
    image, encoder = record["train_image"], method.masker.image_encoder
    grid = clip.grid(image)
    tokens = clip.tokens_after(image, method.first_block)
    before_last = clip.tokens_before_last(image)
    masker_tokens = encoder.backbone(tokens).unflatten(1, grid).permute(0, 3, 1, 2)
    last_block = clip.visual.transformer.resblocks[-1]
    return {
        "text_emb": lambda: clip.encode_text(record["train_text"].long()),
        "block_feat": lambda: tokens.transpose(0, 1),
        "clip_last_feat": lambda: diagonal_attention_block(last_block, before_last).transpose(0, 1),
        "clip_dense_preproj": lambda: clip.last_block_diagonal(before_last, grid),
        "clip_global": lambda: clip.encode_image(image),
        "masker_tokens": lambda: masker_tokens,
        "decoder_out": lambda: encoder.decoder.decoder(masker_tokens),
        "image_emb": lambda: encoder(tokens, grid),
    }.get(name, lambda: None)()


@pytest.mark.parametrize("key", matching(r"inter/.*"))
def test_intermediate(key: str) -> None:
    actual = intermediate(key.removeprefix("inter/"))
    if actual is None:
        pytest.skip(f"{key} has no counterpart here")
    assert_near(actual, official().record[key], 1e-5)


def test_class_embeddings() -> None:
    record = official().record
    assert_near(official().method.embed_tokens(record["class_tokens"].long()), record["class_emb"], 1e-5)


@pytest.mark.parametrize("key", matching(r"seg/\w+/mask_pamr[01]_kp[\d.]+"))
def test_masks(key: str) -> None:
    method, record = official().method, official().record
    folder, settings = key.rsplit("/", 1)
    use_pamr, kp_weight = settings.removeprefix("mask_pamr").split("_kp")
    image = record[f"{folder}/image"]
    affinity = pamr_guide(method, image) if use_pamr == "1" else None
    scores = score_maps(method, method.encode(image), record["class_emb"], affinity, float(kp_weight))
    assert_near(scores, record[key], 1e-5)


@pytest.mark.parametrize("key", matching(r"seg/\w+/simmap"))
def test_similarity(key: str) -> None:
    record = official().record
    embeddings = official().method.encode(record[key.replace("simmap", "image")])
    assert_near(cosine_maps(embeddings.image_emb, record["class_emb"]), record[key], 1e-5)


def test_pamr_alone() -> None:
    record = official().record
    assert_near(pamr(record["pamr/image"], record["pamr/mask_in"]), record["pamr/mask_out"], 1e-6)


def sliding_window_logits(image: Tensor) -> Tensor:
    method, record = official().method, official().record
    windows, origins = split_windows(image, NUMBERS["slide/crop"], NUMBERS["slide/stride"])
    affinity = pamr_guide(method, windows) if NUMBERS["slide/pamr"] else None
    scores = score_maps(method, method.encode(windows), record["class_emb"], affinity, kp_weight=NUMBERS["slide/kp_w"])
    if NUMBERS["slide/bg"] is not None:
        scores = background_plane(scores, NUMBERS["slide/bg"])
    return merge_windows(scores, origins, (image.shape[-2], image.shape[-1]))


def test_sliding_window() -> None:
    record = official().record
    logits = torch.stack([sliding_window_logits(image) for image in record["slide/image"]])
    assert_near(logits, record["slide/logits"], 1e-5)
    full = F.interpolate(logits, size=tuple(NUMBERS["slide/ori_shape"]), mode="bilinear", align_corners=False)
    expected = record["slide/argmax"].long().reshape(full.shape[0], 1, *full.shape[2:])
    best = full.argmax(dim=1, keepdim=True)
    assert best.unique().numel() > 1, "the record would not notice a constant answer"
    deficit = full.gather(1, best) - full.gather(1, expected)
    assert float(deficit.max()) <= 1e-5, "a pixel differs by more than a tie"


@cache
def training_step(stage: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    method, record = official().method, official().record
    trainable = method.trainable(stage)
    method.zero_grad(set_to_none=True)
    losses = method.losses(record["train_image"], record["train_text"].long(), noise=record["gumbel_u"])
    losses["total"].backward()
    grads = {name: p.grad for name, p in method.named_parameters() if p.requires_grad and p.grad is not None}
    assert len(grads) == len(trainable)
    method.zero_grad(set_to_none=True)
    return {name: float(value.detach()) for name, value in losses.items()}, grads


def own_name(name: str) -> str:
    """This project's name of a tensor whose block may be counted from 0."""
    method = official().method
    if name in dict(method.named_parameters()):
        return name
    return re.sub(r"(backbone.*resblocks\.)(\d+)", lambda m: f"{m[1]}{int(m[2]) + method.first_block}", name)


@pytest.mark.parametrize("stage", STAGES)
def test_losses(stage: str) -> None:
    losses, _ = training_step(stage)
    names = [key.rsplit("/", 1)[1] for key in NUMBERS if key.startswith(f"train_{stage}/losses/")]
    assert set(names) | {"total"} == set(losses)
    for name in names:
        assert losses[name] == pytest.approx(NUMBERS[f"train_{stage}/losses/{name}"], abs=1e-5, rel=1e-5), name
    assert losses["total"] == pytest.approx(NUMBERS[f"train_{stage}/total"], abs=1e-5, rel=1e-5)
    assert losses["total"] == pytest.approx(sum(v for name, v in losses.items() if "loss" in name), rel=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_soft_masks_of_training(stage: str) -> None:
    method, record = official().method, official().record
    with torch.no_grad():
        text = F.normalize(record["inter/text_emb"], dim=-1)
        embeddings = method.encode(record["train_image"])
        masks = torch.sigmoid(method.masker.sim2mask(embeddings.image_emb, text))
    same = torch.eye(len(masks), dtype=torch.bool)
    for key, mine in ((f"train_{stage}/mask", masks[same]), (f"train_{stage}/neg_mask", masks[~same])):
        if key in record:
            assert_near(mine, record[key].reshape(mine.shape), 1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_gradients(stage: str) -> None:
    _, grads = training_step(stage)
    record = official().record
    assert set(grads) == {own_name(name) for name in NUMBERS[f"train_{stage}/trainable"]}
    # A gradient that is a sum of cancelling parts is only as exact as the largest of them.
    floor = 1e-5 * NUMBERS[f"train_{stage}/grad_norm"]
    prefix, norms = f"train_{stage}/grads/", f"train_{stage}/grads_norms/"
    keys = [key for key in KEYS if key.startswith(prefix)]
    assert keys
    for key in keys:
        expected, actual = record[key], grads[own_name(key.removeprefix(prefix))]
        assert actual.shape == expected.shape, key
        assert float((actual - expected).norm()) <= 1e-3 * float(expected.norm()) + floor, key
    names = [key.removeprefix(norms) for key in NUMBERS if key.startswith(norms)]
    assert {own_name(name) for name in names} == set(grads)
    for name in names:
        norm = float(grads[own_name(name)].norm())
        assert norm == pytest.approx(NUMBERS[norms + name], rel=1e-3, abs=floor), name
    total = float(torch.stack([grad.norm() for grad in grads.values()]).norm())
    assert total == pytest.approx(NUMBERS[f"train_{stage}/grad_norm"], rel=1e-3)
