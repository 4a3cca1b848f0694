"""MGCA-style as a method: its objective against loops, its stages, and two processes against one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tcl_core.errors import SettingsError
from tcl_core.methods import create_method, list_methods
from tcl_core.methods.mgca import MGCAStyle, MGCAStyleConfig
from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.caption_training import CaptionBatch
from tests.core.tcl_models import captions, small_clip
from tests.forked import run_ranks

PROCESSES, PER_PROCESS = 2, 3
# Small enough for choices to be choices on masks of 16 x 20 pixels.
CONFIG = MGCAStyleConfig(
    regions=3, region_negatives=4, hard_pixels=5, margin=0.02, same_text=0.999, init_b=-0.2, area_prior=0.29
)


def small_model(config: MGCAStyleConfig = CONFIG) -> MGCAStyle:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MGCAStyle(small_clip(), config)
        model.masker.open_gates()
        with torch.no_grad():
            for name, parameter in model.masker.named_parameters():
                if not name.startswith("sim2mask") and not name.endswith("gate.gate"):
                    parameter.add_(0.1 * parameter.std(unbiased=False) * torch.randn_like(parameter))
            for number, scale in enumerate((model.object_loss, model.region_loss, model.pixel_loss)):
                scale.logit_scale.fill_(2.0 + number / 4)  # type: ignore[union-attr]
    return model


def pairs(count: int = PROCESSES * PER_PROCESS) -> tuple[Tensor, Tensor]:
    images = torch.randn(count, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    tokens = captions(count)
    # Two captions that say the same.
    tokens[3] = tokens[1]
    return images, tokens


def slow_info_nce(positive: Tensor, negatives: list[Tensor], scale: Tensor) -> Tensor:
    return -(scale * positive) + torch.stack([(scale * value).exp() for value in [positive, *negatives]]).sum().log()


def top(values: list[Tensor], count: int) -> list[Tensor]:
    return sorted(values, key=lambda value: -float(value.detach()))[:count]


def slow_losses(model: MGCAStyle, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The formulas of the docs, an image, a text and a pixel at a time."""
    config, count = model.config, len(images)
    w, b = model.masker.sim2mask.w, model.masker.sim2mask.b
    with torch.no_grad():
        texts = F.normalize(model.clip.encode_text(tokens), dim=-1)
        found = model.clip.tokens_after(images, model.first_block)
    features = model.masker.image_encoder(found, model.clip.grid(images))
    vectors = F.normalize(features, dim=1).flatten(2)
    cosines = [[texts[n] @ vectors[i] for n in range(count)] for i in range(count)]
    masks = [[torch.sigmoid(w * cosines[i][n] + b) for n in range(count)] for i in range(count)]

    pooled = torch.stack(
        [
            torch.stack(
                [
                    F.normalize((features[i].flatten(1) * masks[i][n]).sum(1) / masks[i][n].sum(), dim=0) @ texts[n]
                    for n in range(count)
                ]
            )
            for i in range(count)
        ]
    )
    scale = model.object_loss()
    objects = [
        slow_info_nce(pooled[i, i], [row[n] for n in range(count) if n != i], scale)
        for rows in (pooled, pooled.T)
        for i, row in enumerate(rows)
    ]

    same = [[float(texts[i] @ texts[n]) > config.same_text for n in range(count)] for i in range(count)]
    others = [[n for n in range(count) if n != i and not same[i][n]] for i in range(count)]
    foregrounds, guarded = [], []
    for i in range(count):
        above = [p for p, value in enumerate(masks[i][i].tolist()) if value > 0.5]
        guarded.append(len(above) < config.foreground_least)
        if guarded[-1]:
            size = max(config.foreground_least, math.ceil(config.foreground_share * len(masks[i][i])))
            above = cosines[i][i].detach().argsort(descending=True)[:size].tolist()
        foregrounds.append(sorted(above))

    parts = []
    for i in range(count):
        points = [max(foregrounds[i], key=lambda p: float(cosines[i][i][p].detach()))]
        while len(points) < config.regions:
            gram = (vectors[i].T @ vectors[i]).detach()
            points.append(min(foregrounds[i], key=lambda p: max(float(gram[p, q]) for q in points)))
        inside = vectors[i][:, foregrounds[i]]
        weights = [((vectors[i][:, p] @ inside) / config.region_temperature).softmax(0) for p in points]
        parts.append([F.normalize(inside @ weight, dim=0) for weight in weights])
    scale = model.region_loss()
    regions = []
    for i in range(count):
        for part in parts[i]:
            own = part @ texts[i]
            regions.append(
                slow_info_nce(own, top([part @ texts[n] for n in others[i]], config.region_negatives), scale)
            )
            hard = top([other @ texts[i] for n in others[i] for other in parts[n]], config.region_negatives)
            regions.append(slow_info_nce(own, hard, scale))

    scale, pixels = model.pixel_loss(), []
    for i in range(count):
        own, soft = cosines[i][i], masks[i][i].tolist()
        labeled = {p for p, value in enumerate(soft) if abs(value - 0.5) >= config.margin}
        inside = [own[p] for p in foregrounds[i] if p in labeled or guarded[i]]
        outside = [own[p] for p in labeled if p not in foregrounds[i]]
        elsewhere = [value for n in others[i] for value in cosines[n][i]]
        against = top(outside, config.hard_pixels) + top(elsewhere, config.hard_pixels)
        hard = top([-value for value in inside], config.hard_pixels)
        losses = [slow_info_nce(-value, against, scale) for value in hard]
        pixels.append(torch.stack(losses).mean() if losses else torch.zeros(()))

    square = [[mask.view(features.shape[2:]) for mask in row] for row in masks]
    areas = torch.stack([torch.stack([mask.mean() for mask in row]) for row in square])
    apart = ~torch.eye(count, dtype=torch.bool)
    steps = [(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) for row in square for x in row]
    smooth = features.diff(dim=-1).abs().mean() + features.diff(dim=-2).abs().mean()
    return {
        "object_loss": config.object_weight * torch.stack(objects).mean(),
        "region_loss": config.region_weight * torch.stack(regions).mean(),
        "pixel_loss": config.pixel_weight * torch.stack(pixels).mean(),
        "area_loss": config.area_weight * (areas.diagonal().mean() - config.area_prior).abs(),
        "neg_area_loss": config.area_weight * areas[apart].mean(),
        "tv_img_loss": config.tv_weight * smooth,
        "tv_mask_loss": config.tv_weight * torch.stack(steps).mean(),
        "guarded": torch.tensor(guarded, dtype=torch.float32).mean(),
    }


@pytest.mark.parametrize("offset", [-4.0, -9.0])
def test_objective_against_loops(offset: float) -> None:
    """With masks of which some have no foreground, and with masks that are all empty."""
    model = small_model(dataclasses.replace(CONFIG, init_b=offset))
    parameters = model.trainable("all")
    images, tokens = pairs()
    actual, expected = model.losses(images, tokens), slow_losses(model, images, tokens)
    assert 0 < float(expected["guarded"]) <= 1 and (offset < -4) == (float(expected["guarded"]) == 1)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)
    weighted = [name for name in expected if name != "guarded"]
    torch.testing.assert_close(actual["total"], torch.stack([expected[name] for name in weighted]).sum())
    assert all(float(expected[f"{name}_loss"].detach()) > 0.01 for name in ("region", "pixel"))
    for name in ("object_loss", "region_loss", "pixel_loss", "total"):
        whole = torch.stack([expected[each] for each in weighted]).sum() if name == "total" else expected[name]
        mine = torch.autograd.grad(actual[name], parameters, retain_graph=True, allow_unused=True)
        wanted = torch.autograd.grad(whole, parameters, retain_graph=True, allow_unused=True)
        for got, right in zip(mine, wanted, strict=True):
            right = torch.zeros(()) if right is None else right
            got = torch.zeros_like(right) if got is None else got
            assert got.isfinite().all()
            assert float((got - right).norm()) <= 1e-3 * max(float(right.norm()), 1e-3), name


def test_terms_of_the_stages() -> None:
    model, (images, tokens) = small_model(), pairs()
    early = model.trainable("object")
    assert not any(p.requires_grad for p in model.masker.image_encoder.backbone.parameters())
    first = model.losses(images, tokens)
    assert "object_loss" in first and not {"region_loss", "pixel_loss"} & set(first)
    late = model.trainable("all")
    # Later stages train the temperatures of their terms, and nothing else besides.
    assert {id(p) for p in late} - {id(p) for p in early} == {
        id(p) for part in (model.region_loss, model.pixel_loss) for p in part.parameters()
    }
    second = model.losses(images, tokens)
    assert {"region_loss", "pixel_loss"} <= set(second)
    torch.testing.assert_close(first["object_loss"], second["object_loss"])


def test_the_copied_block_is_trained_where_the_setting_says_so() -> None:
    model = small_model(dataclasses.replace(CONFIG, train_last_block=True))
    block = {id(p) for p in model.masker.image_encoder.backbone.parameters()}
    assert not block & {id(p) for p in model.trainable("object")}
    assert block <= {id(p) for p in model.trainable("all")}


@pytest.mark.parametrize("name", ["region", "pixel"])
def test_a_weight_of_zero_leaves_a_term_out(name: str) -> None:
    model, (images, tokens) = small_model(dataclasses.replace(CONFIG, **{f"{name}_weight": 0.0})), pairs()
    model.trainable("all")
    found, whole = model.losses(images, tokens), small_model().losses(images, tokens)
    assert set(whole) - set(found) == {f"{name}_loss"}
    for other in set(found) - {"total"}:
        torch.testing.assert_close(found[other], whole[other], msg=other)


def test_one_pair_alone() -> None:
    """There is nothing to contrast with but the pixels outside of the mask."""
    losses = small_model().losses(*(tensor[:1] for tensor in pairs()))
    assert losses["object_loss"] == losses["region_loss"] == 0
    assert losses["total"].isfinite()


def test_mismatched_batches_are_errors() -> None:
    images, tokens = pairs()
    with pytest.raises(ValueError, match="6 images, but 2 captions"):
        small_model().losses(images, tokens[:2])


def test_a_few_steps_lower_the_loss() -> None:
    model, (images, tokens) = small_model(), pairs()
    optimizer = torch.optim.AdamW(model.trainable("all"), lr=1e-3)
    totals = []
    for _ in range(8):
        optimizer.zero_grad()
        total = model.losses(images, tokens)["total"]
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.95 * totals[0]


# -- processes -------------------------------------------------------------------------------------------------------


def step(wrap: bool, part: slice, shared: bool) -> dict[str, Tensor]:
    """Losses and gradients of a part, by the wrapped module or as the engine's step calls the method."""
    model = small_model()
    model.trainable("all")
    module = DistributedDataParallel(model) if wrap and not shared else model
    images, tokens = (tensor[part] for tensor in pairs())
    if shared:
        batch = model.share(CaptionBatch(images, tokens))
        losses = model.objective(model.compare(model.embed(batch), batch), batch)
    else:
        losses = module(images, tokens)
    losses["total"].backward()
    grads = {f"grad/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach() for name, value in losses.items()} | grads


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    try:
        own = slice(rank * PER_PROCESS, (rank + 1) * PER_PROCESS)
        torch.save([step(True, own, shared) for shared in (False, True)], f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(tmp_path: Path) -> None:
    run_ranks(work, PROCESSES, str(tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    whole = step(False, slice(None), False)
    assert {"grad/region_loss.logit_scale", "grad/pixel_loss.logit_scale"} <= set(whole)
    for shared in (0, 1):
        assert set(whole) == set(parts[0][shared])
        for name, expected in whole.items():
            # Losses are means over a process' part; gradients were averaged already, or are summed by the engine.
            actual = torch.stack([part[shared][name] for part in parts]).mean(dim=0)
            assert float((actual - expected).norm()) <= 1e-4 * max(float(expected.norm()), 1e-3), name


# -- settings, registry, checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regions": 0}, "The MGCA-style setting regions is 0.*whole number from 1"),
        ({"hard_pixels": 2.5}, "hard_pixels is 2.5"),
        ({"region_weight": -1}, "region_weight is -1.*0 or more"),
        ({"margin": 0.5}, "margin is 0.5.*less than 0.5"),
        ({"same_text": 2}, "same_text is 2.*between -1 and 1"),
        ({"region_temperature": 0}, "region_temperature is 0.*more than 0"),
        ({"foreground_share": 1.5}, "foreground_share is 1.5.*between 0 and 1"),
        ({"train_last_block": 1}, "train_last_block is 1.*true or false"),
        ({"tcl_weight": 0.1}, "Unknown MGCA-style settings: tcl_weight"),
        ({"gumbel_tau": 1.0}, "Unknown MGCA-style settings: gumbel_tau"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        create_method("mgca-style", {"clip": small_clip()}, settings)


def test_the_name_says_that_it_is_no_reproduction() -> None:
    assert "mgca-style" in list_methods() and "mgca" not in list_methods()


def test_checkpoints_of_others_are_not_claimed() -> None:
    """A checkpoint of TCL's authors is TCL's."""
    state = TCL.example().learned_state_dict()
    assert MGCAStyle.from_upstream(state, {}) is None
