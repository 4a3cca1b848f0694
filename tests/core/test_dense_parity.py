"""Training-free methods against numbers that their authors' programs produced.

The folder is ``tests/data/dense``, or the one that ``DENSE_PARITY_DIR`` names: ``<method>/*.safetensors`` with a
``.json`` beside each, and ``shared/clip_small.safetensors``. All sizes and settings are read from there. Not covered,
because no method here is meant to do so: NACLIP's ``nonly`` (its mean runs over images and heads), ``clip_vanilla``
(CLIP's own attention) and RF-CLIP, whose records are passed over.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tcl_core.methods import create_method
from tcl_core.methods.semantic_unit import PIXELS
from tcl_core.methods.training_free.base import DensePrompts, TrainingFree
from tcl_core.methods.training_free.last_block import LastBlock
from tcl_core.models.metadata import Preprocess
from tcl_core.refinement.pamr import Pamr
from tcl_core.segmentation.argmax import label_map_from_scores
from tcl_core.segmentation.features import FeatureKey, ImageFeatures
from tcl_core.segmentation.segmenter import Segmenter
from tcl_core.segmentation.sliding_window import split_windows
from tcl_core.towers.open_clip_vit import FrozenClip
from tcl_core.vocabulary import Label, Vocabulary
from tests.contract.examples import model_of
from tests.core.clip_records import recorded_clip

FOLDER = Path(os.environ.get("DENSE_PARITY_DIR") or Path(__file__).parents[1] / "data" / "dense")
SHARED = FOLDER / "shared" / "clip_small.safetensors"
NOT_ASKED = {"nonly", "clip_vanilla"}
CLEARCLIP_MODES = {"ClearCLIP", "MaskCLIP", "SCLIP"}
METHODS = ("sclip", "naclip", "clearclip", "scclip", "scclip_square")

if not SHARED.is_file():
    raise FileNotFoundError(f"there is no parity record {SHARED}")


@dataclass(frozen=True)
class Case:
    """A variant of a method in a record file."""

    file: Path
    variant: str

    @property
    def description(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.with_suffix(".json").read_text(encoding="utf-8"))
        return found

    @property
    def record(self) -> dict[str, Tensor]:
        return load_file(self.file)

    def __str__(self) -> str:
        return f"{self.file.parent.name}-{self.file.stem}-{self.variant}"


def recorded_cases() -> list[Case]:
    files = [file for method in METHODS for file in sorted((FOLDER / method).glob("*.safetensors"))]
    cases = []
    for file in files:
        variants = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["variants"]
        cases += [Case(file, name) for name, variant in variants.items() if is_asked(name, variant["model_call"])]
    return cases


def is_asked(name: str, call: dict[str, str]) -> bool:
    other = call.get("attn", "kk") not in ("naclip", "kk") or call.get("model_type", "SCLIP") not in CLEARCLIP_MODES
    return name not in NOT_ASKED and not other


CASES = recorded_cases()
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@cache
def tower() -> FrozenClip:
    sizes = json.loads(SHARED.with_suffix(".json").read_text(encoding="utf-8"))
    assert (sizes["act"], sizes["ln_eps"]) == ("QuickGELU", 1e-5)
    vision = {
        "image_size": sizes["input_resolution"],
        "patch_size": sizes["patch_size"],
        "width": sizes["width"],
        "layers": sizes["layers"],
        "head_width": sizes["width"] // sizes["heads"],
        "mlp_ratio": sizes["mlp_ratio"],
    }
    return recorded_clip(load_file(SHARED), sizes["output_dim"], vision)


def method_of(case: Case) -> TrainingFree:
    """The method as the record's description says; what it does not say is the programs' default."""
    description = case.description
    variant = description["variants"][case.variant]
    call, params = variant["model_call"], variant["params"]
    options: dict[str, Any] = {
        "positions": "scale-factor",
        "scale": params.get("logit_scale", 40),
        "area_threshold": params.get("area_thd") or 0,
    }
    name = case.file.parent.name
    if name == "naclip":
        assert call["attn"] in ("naclip", "kk")
        options |= {
            "residual": call["arch"] == "vanilla",
            "sigma": float(call["gaussian_std"]) if call["attn"] == "naclip" else 0,
            # Its program compares the best names of classes, where the others compare all names.
            "softmax_over": "labels",
        }
    elif name == "clearclip":
        name = call["model_type"].lower()
        options["residual"] = call["ignore_residual"] == "False"
    elif name.startswith("scclip"):
        name = "scclip"
        options |= {"beta": float(call.get("beta", 0.4)), "class_token": float(call.get("res_cls", 0.3))}
        options["upstream_order"] = case.file.parent.name == "scclip"
    size = description["ori_shape"]
    options["finish_pixels"] = size[0] * size[1]
    made = create_method(name, {"clip": tower()}).configured({**options, **PIXELS})
    assert isinstance(made, TrainingFree)
    return made.eval()


def tolerance(case: Case) -> float:
    return float(case.description["tolerance"]["atol"])


def test_the_records_are_complete() -> None:
    """Records that lost their tensors must not pass for want of comparisons."""
    folders = {case.file.parent.name for case in CASES}
    assert folders == {method for method in METHODS if (FOLDER / method).is_dir()}
    assert folders == set(METHODS) or "DENSE_PARITY_DIR" in os.environ and len(folders) > 1
    for case in CASES:
        with safe_open(case.file, framework="pt") as file:
            keys = set(file.keys())
        assert {"image", "text", f"{case.variant}.pre_ln_post"} <= keys
        assert any(key.startswith(f"{case.variant}.logits_window") for key in keys)
    assert any("pamr" in case.variant for case in CASES)
    assert len([case for case in CASES if predictions(case)]) >= len(CASES) // 2


@every_case
def test_tokens(case: Case) -> None:
    record, method = case.record, method_of(case)
    with torch.no_grad():
        found = method.patch_tokens(record["image"])
        if isinstance(method, LastBlock):
            found = method.all_tokens(record["image"])
    torch.testing.assert_close(found, record[f"{case.variant}.pre_ln_post"], rtol=0, atol=tolerance(case))


@every_case
def test_cosines_of_one_window(case: Case) -> None:
    record, method = case.record, method_of(case)
    found = method.similarities(method.encode(record["image"]), DensePrompts(record["text"]))
    keys = [key for key in record if key.startswith(f"{case.variant}.logits_window_every")]
    assert keys
    for key in keys:
        step = int(key.rpartition("every")[2])
        torch.testing.assert_close(found[..., ::step, ::step], record[key], rtol=0, atol=tolerance(case))


def predictions(case: Case) -> list[tuple[int, int]]:
    """Window and stride of the recorded pipelines; a window of 0 is the whole image."""
    with safe_open(case.file, framework="pt") as file:
        matches = [re.fullmatch(rf"{case.variant}\.predict_slide(\d+)_(\d+)\.labels", key) for key in file.keys()]
    return [(int(match[1]), int(match[2])) for match in matches if match]


PIPELINES = [(case, window, stride) for case in CASES for window, stride in predictions(case)]


@pytest.mark.parametrize(("case", "window", "stride"), PIPELINES, ids=lambda value: str(value))
def test_pipeline(case: Case, window: int, stride: int) -> None:
    """Windows, merging, enlargement, PAMR, softmax, area rule and decision, as `Segmenter` runs them."""
    record, description, method = case.record, case.description, method_of(case)
    params = description["variants"][case.variant]["params"]
    image, size = record["image"], (int(description["ori_shape"][0]), int(description["ori_shape"][1]))
    height, width = int(image.shape[-2]), int(image.shape[-1])
    preprocess = Preprocess((0, 0, 0), (1, 1, 1), min(height, width), max(height, width), window or 10**6, stride)
    refine = "pamr" in case.variant
    segmenter = Segmenter(model_of(method, preprocess=preprocess), refine=refine, refiner=Pamr(dilations=(8, 16)))
    windows, origins = split_windows(image[0], preprocess.window, preprocess.stride)
    features = ImageFeatures(
        windows=method.encode(windows),
        guide=None,
        image_guide=None if segmenter.refiner is None else method.image_guide(segmenter.refiner, image, size),
        origins=tuple(origins),
        working_size=(height, width),
        score_size=method.score_size((height, width), size),
        size=size,
        key=FeatureKey("", segmenter.model.weights_sha256, segmenter._encoder.settings),
    )
    assert features.score_size == size
    # The records' class 0 is the background.
    labels = [owner - 1 for owner in description["query_to_class"]]
    merged = segmenter.similarities(features, DensePrompts(record["text"]))
    scores = segmenter.finish(features, merged, labels)
    by_class = torch.cat([scores[-1:], scores[:-1]])
    name = f"{case.variant}.predict_slide{window}_{stride}"
    keys = [key for key in record if key.startswith(f"{name}.scores_every")]
    assert keys
    for key in keys:
        step = int(key.rpartition("every")[2])
        torch.testing.assert_close(by_class[:, ::step, ::step], record[key], rtol=0, atol=tolerance(case))
    least = float(params.get("prob_thd", 0))
    vocabulary = Vocabulary(tuple(Label(f"label {k}") for k in range(1, max(labels) + 2)), background_threshold=least)
    label_map, _ = label_map_from_scores(scores, vocabulary, None, size)
    differing = torch.from_numpy(label_map) != record[f"{name}.labels"][0]
    best = by_class.topk(2, dim=0).values
    tied = (best[0] - best[1] < 2 * tolerance(case)) | ((best[0] - least).abs() < 2 * tolerance(case))
    assert not (differing & ~tied).any()
    assert differing.float().mean() < 1e-3
