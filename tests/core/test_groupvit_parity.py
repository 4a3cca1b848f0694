"""GroupViT against numbers that the authors' model produced: transformers' encoders with our path, and our head.

The folder is the one that ``GROUPVIT_PARITY_DIR`` names, or ``shared/parity/groupvit/small`` beside the repository. All
sizes are read from its files. The test needs the extra ``groupvit``.
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

from tcl_core.methods.groupvit import GroupViT, GroupViTConfig
from tcl_core.methods.groupvit.encoders import image_groups, project
from tcl_core.methods.groupvit.head import background_plane, group_maps, group_scores, scores_of_pixels
from tcl_core.methods.groupvit.model import GroupPrompts
from tcl_core.methods.groupvit.upstream import config_from_tensors, tensors_by_our_names

BESIDE = Path(__file__).parents[3] / "shared" / "parity" / "groupvit" / "small"
FOLDER = Path(os.environ.get("GROUPVIT_PARITY_DIR") or BESIDE)

if not (FOLDER / "records.json").is_file():
    if "GROUPVIT_PARITY_DIR" in os.environ:
        raise FileNotFoundError(f"GROUPVIT_PARITY_DIR is set, but there is no {FOLDER / 'records.json'}")
    pytest.skip(f"no record of GroupViT at {FOLDER}; name one with GROUPVIT_PARITY_DIR", allow_module_level=True)
pytest.importorskip("transformers", reason="the extra groupvit is not installed")
pytestmark = pytest.mark.slow

NUMBERS: dict[str, Any] = json.loads((FOLDER / "records.json").read_text(encoding="utf-8"))
TENSORS = load_file(FOLDER / "records.safetensors")
IMAGES: dict[str, list[int]] = NUMBERS["sizes"]
THRESHOLDS: list[float] = NUMBERS["bg"]
TOP_K = 5
EXACT, THROUGH_TRANSFORMERS = 1e-5, 2e-5


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = THROUGH_TRANSFORMERS) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def checkpoint() -> dict[str, Tensor]:
    return {name.removeprefix("model/"): x for name, x in TENSORS.items() if name.startswith("model/")}


def config() -> GroupViTConfig:
    """The sizes of the record; heads cannot be seen in the tensors, and these are not of 64 channels."""
    text = NUMBERS["text"]
    found = config_from_tensors(tensors_by_our_names(checkpoint()))
    assert len(set(NUMBERS["num_heads"])) == 1
    values = found.to_dict() | {"heads": NUMBERS["num_heads"][0], "text_heads": text["heads"]}
    return GroupViTConfig.from_dict(values)


@cache
def official() -> GroupViT:
    method = GroupViT(config())
    method.load_learned_state_dict(tensors_by_our_names(checkpoint()))
    return method.requires_grad_(False)


@cache
def head(name: str) -> tuple[Tensor, Tensor]:
    """The map and the scores of groups from the record's own features."""
    side = NUMBERS["patch"]
    grid = tuple(length // side for length in IMAGES[name])
    stages = range(len(NUMBERS["depths"]) - 1)
    maps = group_maps([TENSORS[f"{name}/attn{stage}_soft"][:, 0] for stage in stages], grid)  # type: ignore[arg-type]
    maps = F.interpolate(maps, size=tuple(IMAGES[name]), mode="bilinear")
    groups, image = (F.normalize(TENSORS[f"{name}/{kind}_embedding"], dim=-1) for kind in ("group", "image"))
    scale = TENSORS["model/logit_scale"].exp().clamp(max=100)
    return maps, group_scores(groups, image, TENSORS["class_embedding"], scale, TOP_K)


def test_the_record_is_complete() -> None:
    """A record that lost its tensors must not pass for want of comparisons."""
    assert len(IMAGES) >= 2 and len(THRESHOLDS) >= 2
    assert any(height != width for height, width in IMAGES.values())
    assert TENSORS["class_tokens"].shape[:2] == (NUMBERS["classes"], NUMBERS["templates"])
    assert not NUMBERS["hf_missing"] and not NUMBERS["hf_unexpected"]


def test_sizes_are_read_off_the_tensors() -> None:
    found, text = config(), NUMBERS["text"]
    assert found.width == NUMBERS["embed_dim"] and found.embed_dim == NUMBERS["output_dim"]
    assert list(found.depths) == NUMBERS["depths"] and list(found.group_tokens) == NUMBERS["num_group_tokens"]
    assert list(found.output_groups) == NUMBERS["num_output_groups"]
    assert (found.image_size, found.patch_size) == (NUMBERS["img_size"], NUMBERS["patch"])
    assert (found.text_width, found.text_layers) == (text["width"], text["layers"])
    assert (found.vocab_size, found.context_length) == (text["vocab"], text["context"])
    assert found.hidden_dim == NUMBERS["proj_inner"]


def test_the_official_checkpoint_is_imported() -> None:
    found = GroupViT.from_upstream(checkpoint(), {})
    assert found is not None
    own = official().learned_state_dict()
    assert found.learned.keys() == own.keys()
    assert found.preprocess["window"] == 2 * NUMBERS["img_size"] == 2 * found.preprocess["stride"]


def test_texts() -> None:
    assert_near(official().embed_tokens(TENSORS["class_tokens"]), TENSORS["class_embedding"])
    first = official().embed_tokens(TENSORS["class_tokens"][:, :1])
    assert_near(first, TENSORS["hf/text_embeds"])


@pytest.mark.parametrize("name", IMAGES)
def test_features_of_any_size(name: str) -> None:
    with torch.no_grad():
        assignments, features = image_groups(official().encoders, TENSORS[f"{name}/image"])
        assert len(assignments) == len(NUMBERS["depths"]) - 1
        for stage, found in enumerate(assignments):
            assert_near(found, TENSORS[f"{name}/attn{stage}_soft"][:, 0])
            hard = F.one_hot(found.argmax(dim=1), found.shape[1]).transpose(1, 2).float()
            assert torch.equal(hard, TENSORS[f"{name}/attn{stage}_hard"][:, 0])
        assert_near(features, TENSORS[f"{name}/group_feature"])
        assert_near(features.mean(dim=1), TENSORS[f"{name}/pooled"])
        assert_near(project(official().encoders, features), TENSORS[f"{name}/group_embedding"])
        assert_near(project(official().encoders, features.mean(dim=1)), TENSORS[f"{name}/image_embedding"])


@pytest.mark.parametrize("name", IMAGES)
def test_the_head(name: str) -> None:
    maps, scores = head(name)
    assert_near(maps, TENSORS[f"{name}/group_map"], EXACT)
    pixels = scores_of_pixels(maps, scores)
    assert_near(pixels, TENSORS[f"{name}/logits_nobg"], EXACT)
    assert torch.equal(pixels.argmax(dim=1).byte(), TENSORS[f"{name}/labels_nobg"])
    for threshold in THRESHOLDS:
        plane = torch.cat([background_plane(pixels, threshold), pixels], dim=1)
        assert_near(plane, TENSORS[f"{name}/logits_bg{threshold}"], EXACT)
        assert torch.equal(plane.argmax(dim=1).byte(), TENSORS[f"{name}/labels_bg{threshold}"])


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("name", IMAGES)
def test_the_method_decides_as_the_authors_do(name: str, threshold: float) -> None:
    """From pixels to labels; a height of one half stands for their plane of zeros and ones."""
    method = official().configured({"threshold": threshold, "top_k": TOP_K})
    features, prompts = method.encode(TENSORS[f"{name}/image"]), GroupPrompts(TENSORS["class_embedding"])
    scores = method.similarities(features, prompts)
    assert_near(method.segments(features), TENSORS[f"{name}/group_map"])
    assert torch.equal(scores.argmax(dim=1).byte(), TENSORS[f"{name}/labels_nobg"])
    height = method.background.height(None)
    best = scores.max(dim=1)
    labels = torch.where(best.values > float(height or 0), best.indices + 1, 0).byte()
    assert torch.equal(labels, TENSORS[f"{name}/labels_bg{threshold}"])
    expected = TENSORS[f"{name}/logits_bg{threshold}"]
    assert_near(scores, (1 + expected[:, 1:] - expected[:, :1]) / 2)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_averaged_over_windows(threshold: float) -> None:
    """The mean of differences decides as the difference of means, which the authors compare."""
    name = next(iter(IMAGES))
    method = official().configured({"threshold": threshold})
    images = torch.cat([TENSORS[f"{name}/image"], -TENSORS[f"{name}/image"], TENSORS[f"{name}/image"].flip(3)])
    prompts = GroupPrompts(TENSORS["class_embedding"])
    together = method.encode(images)
    found = method.similarities(together, prompts).mean(dim=0)
    plain = []
    for place in range(len(images)):
        features = together[place : place + 1]
        scores = group_scores(features.groups, features.image, prompts.text, method._scale, TOP_K)
        pixels = scores_of_pixels(features.enlarged(), scores)
        plain.append(torch.cat([background_plane(pixels, threshold), pixels], dim=1))
    mean = torch.cat(plain).mean(dim=0)
    labels = torch.where(found.amax(dim=0) > 0.5, found.argmax(dim=0) + 1, 0)
    assert (labels == mean.argmax(dim=0)).float().mean() > 0.999
    assert_near(2 * found - 1, mean[1:] - mean[:1])


def test_transformers_own_outputs() -> None:
    """What the record says of transformers, so that a change of its internals is told from one of ours."""
    model: Any = official().encoders
    # Of the trained size, the only one that it takes.
    image = TENSORS["sq/image"]
    with torch.no_grad():
        found = model(input_ids=TENSORS["class_tokens"][:, 0], pixel_values=image, output_segmentation=True)
    assert_near(found.image_embeds, TENSORS["hf/image_embeds"])
    assert_near(found.logits_per_image, TENSORS["hf/logits_per_image"], 1e-3)
    assert_near(found.segmentation_logits, TENSORS["hf/segmentation_logits"], 5e-4)
