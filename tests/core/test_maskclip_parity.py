"""MaskCLIP and its refinements against numbers that the authors' program produced with CLIP's arithmetic.

The folder is ``tests/data/maskclip``, or the one that ``MASKCLIP_PARITY_DIR`` names; it holds ``records.json`` and
``records.safetensors``. All sizes are read from there. The records' ``official`` half has another activation and
another epsilon of the layer norms than CLIP was trained with, and is not asked for.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.methods.training_free import MaskCLIP, MaskCLIPRefined
from tcl_core.methods.training_free.base import DensePrompts
from tcl_core.methods.training_free.maskclip_refined import JudgedPrompts, key_affinity, smooth_by_keys
from tcl_core.towers.open_clip_vit import FrozenClip
from tests.core.clip_records import recorded_clip

FOLDER = Path(os.environ.get("MASKCLIP_PARITY_DIR") or Path(__file__).parents[1] / "data" / "maskclip")
NUMBERS: dict[str, Any] = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
RECORD = load_file(FOLDER / "records.safetensors")
SIZES = sorted(NUMBERS["sizes"])
SETTINGS = sorted(set(NUMBERS["settings"]) - {"plain"})
PLAIN, SMOOTH = 1e-5, 1e-4


@cache
def tower() -> FrozenClip:
    assert NUMBERS["eps"]["quickgelu"] == 1e-5
    vision = {
        "image_size": NUMBERS["grid"] * NUMBERS["patch"],
        "patch_size": NUMBERS["patch"],
        "width": NUMBERS["width"],
        "layers": NUMBERS["layers"],
        "head_width": NUMBERS["width"] // NUMBERS["heads"],
    }
    visual = {key.removeprefix("clip/"): tensor for key, tensor in RECORD.items() if key.startswith("clip/")}
    return recorded_clip(visual, NUMBERS["embed"], vision)


def recorded(size: str, name: str) -> Tensor:
    return RECORD[f"{size}/quickgelu/{name}"]


def prompts() -> JudgedPrompts:
    text = RECORD["text_embeddings"]
    return JudgedPrompts(text, torch.ones(len(text), dtype=torch.bool))


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def labels_agree(maps: Tensor, size: str, setting: str) -> None:
    """Labels at the image's size, where no two classes tie."""
    height, width = NUMBERS["sizes"][size]
    large = F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    best = large.topk(2, dim=1).values
    differing = large.argmax(dim=1) != recorded(size, f"labels_{setting}")
    assert not (differing & (best[:, 0] - best[:, 1] > SMOOTH)).any()


@pytest.mark.parametrize("size", SIZES)
def test_value_path(size: str) -> None:
    method, image = MaskCLIP(tower()).configured(PIXELS), RECORD[f"{size}/image"]
    value, feature = recorded(size, "value"), recorded(size, "feature")
    with torch.no_grad():
        tokens = method.patch_tokens(image)
        maps = tokens.unflatten(1, method.clip.grid(image)).permute(0, 3, 1, 2)
        near(method.clip.visual.ln_post(tokens).transpose(1, 2).view_as(value), value, PLAIN)
        near(method.clip.project_dense(maps), feature, PLAIN)
    features = method.encode(image)
    near(features.dense, F.normalize(feature, dim=1), PLAIN)
    maps = method.patch_maps(features, DensePrompts(RECORD["text_embeddings"]))
    near(maps, recorded(size, "logits_plain"), PLAIN)
    labels_agree(maps, size, "plain")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("size", SIZES)
def test_refinements(size: str, setting: str) -> None:
    denoising, smoothing = NUMBERS["settings"][setting]
    options = {"prompt_denoising": denoising, "key_smoothing": smoothing, "upstream_key_norm": True}
    method = MaskCLIPRefined(tower()).configured({**options, **PIXELS})
    features = method.encode(RECORD[f"{size}/image"])
    near(features.keys, recorded(size, "key"), PLAIN)
    # Prompts are dropped for each image.
    images = [features[place : place + 1] for place in range(len(features))]
    maps = torch.cat([method.patch_scores(image, method.prompts_for_image(image, prompts())) for image in images])
    near(maps, recorded(size, f"logits_{setting}"), SMOOTH if smoothing else PLAIN)
    labels_agree(maps, size, setting)


@pytest.mark.parametrize("size", SIZES)
def test_key_smoothing_over_channels(size: str) -> None:
    """What the paper describes; not the program's output."""
    shares = torch.softmax(100 * recorded(size, "logits_plain"), dim=1).flatten(2)
    found = smooth_by_keys(shares, key_affinity(recorded(size, "key")), below=float("inf"))
    expected = recorded(size, "not_official/ks_channel_norm")
    near(found.view_as(expected), expected, SMOOTH)


@pytest.mark.parametrize("size", SIZES)
def test_similarities_keep_the_order_of_smoothed_shares(size: str) -> None:
    """Dividing by the weights, so that windows can be averaged, changes no label of a patch."""
    method = MaskCLIPRefined(tower()).configured({"prompt_denoising": 0, **PIXELS})
    features = method.encode(RECORD[f"{size}/image"])
    assert torch.equal(
        method.patch_maps(features, prompts()).argmax(dim=1), method.patch_scores(features, prompts()).argmax(dim=1)
    )
