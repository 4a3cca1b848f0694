from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.methods import Method, create_method, list_methods, register_method
from tcl_core.methods.tcl import TCL, TCLConfig, learned_keys
from tcl_core.methods.tcl.losses import info_nce
from tcl_core.refinement.pamr import refine_masks
from tcl_core.towers.open_clip_vit import FrozenClip
from tests.core.tcl_models import captions, pamr_guide, score_maps, small_clip, small_tcl

VARIANTS: list[dict[str, Any]] = [
    {},
    {"decoder_double": False},
    {"decoder_layers": 1, "decoder_kernel": 1},
    {"decoder_layers": 0},
    {"ie_freeze": 1},
    {"decoder_layers": 1, "refine_scale": 5},
]


def random_images(count: int, height: int = 32, width: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_windows_as_a_batch_are_the_windows_one_by_one(variant: dict[str, Any]) -> None:
    tcl, windows = small_tcl(TCLConfig(**variant)), random_images(3, 37, 50)
    text = tcl.embed_tokens(captions(6).unflatten(0, (2, 3)))
    scores = score_maps(tcl, tcl.encode(windows), text, pamr_guide(tcl, windows), kp_weight=0.3)
    assert scores.shape == (3, 2, 37, 50) and scores.dtype == torch.float32
    for index in range(3):
        one = windows[index : index + 1]
        alone = score_maps(tcl, tcl.encode(one), text, pamr_guide(tcl, one), kp_weight=0.3)
        torch.testing.assert_close(scores[index : index + 1], alone, rtol=0, atol=2e-6)


def test_prompts_do_not_influence_each_other() -> None:
    tcl, windows = small_tcl(), random_images(1)
    text = tcl.embed_tokens(captions(5)[:, None])
    emb, affinity = tcl.encode(windows), pamr_guide(tcl, windows)
    together = score_maps(tcl, emb, text, affinity, kp_weight=0.3)
    for index in range(5):
        alone = score_maps(tcl, emb, text[index : index + 1], affinity, kp_weight=0.3)
        torch.testing.assert_close(together[:, index : index + 1], alone, rtol=0, atol=1e-6)


def test_masks_are_refined_at_the_scale_of_the_settings() -> None:
    """The finer masks are what PAMR makes of the masks by themselves."""
    windows, scale = random_images(1, 32, 40), 6
    own, finer = small_tcl(), small_tcl(TCLConfig(refine_scale=scale))
    finer.load_state_dict(own.state_dict())
    rows, columns = finer.clip.grid(windows)
    affinity = pamr_guide(finer, windows)
    assert affinity.size == (scale * rows, scale * columns)
    assert pamr_guide(own, windows).size == (4 * rows, 4 * columns)
    text = own.embed_tokens(captions(2)[:, None])
    masks = torch.sigmoid(own.masker.sim2mask(own.encode(windows).image_emb, text))
    expected = F.interpolate(refine_masks(affinity, masks), size=(32, 40), mode="bilinear")
    scores = score_maps(finer, finer.encode(windows), text, affinity)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (7, 33), (200, 3)])
def test_any_size_of_window(size: tuple[int, int]) -> None:
    tcl, windows = small_tcl(), random_images(1, *size)
    text = tcl.embed_tokens(captions(2)[:, None])
    scores = score_maps(tcl, tcl.encode(windows), text, pamr_guide(tcl, windows), kp_weight=0.5)
    assert scores.shape == (1, 2, *size)
    assert bool(scores.isfinite().all()) and 0 <= float(scores.min()) and float(scores.max()) <= 1


def test_before_training_the_grounder_is_clips_own_dense_map() -> None:
    """Closed gates make the decoder a nearest-neighbor up-sampler."""
    clip = small_clip()
    tcl, windows = TCL(clip), random_images(2)
    emb = tcl.encode(windows)
    enlarged = emb.dense.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(emb.image_emb, enlarged, rtol=0, atol=1e-5)
    text = tcl.embed_tokens(captions(2)[:, None])
    cosine = torch.einsum("behw,ne->bnhw", emb.dense, text)
    expected = F.interpolate(torch.sigmoid(10 * (cosine - 0.25)), size=(16, 20), mode="bilinear")
    expected = F.interpolate(expected, size=(32, 40), mode="bilinear")
    torch.testing.assert_close(score_maps(tcl, emb, text, kp_weight=1.0), expected, rtol=0, atol=1e-5)


def test_prompts_average_unnormalized_templates() -> None:
    tcl, tokens = small_tcl(), captions(6).unflatten(0, (2, 3))
    raw = torch.stack([tcl.clip.encode_text(template) for template in tokens.unbind(1)], dim=1)
    expected = F.normalize(raw.mean(dim=1), dim=-1)
    torch.testing.assert_close(tcl.embed_tokens(tokens), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tcl.embed_tokens(tokens).norm(dim=-1), torch.ones(2))


def test_many_templates_are_encoded_in_parts() -> None:
    tcl, tokens = small_tcl(), captions(300)
    whole = tcl.embed_tokens(tokens[None])
    mean = tcl.clip.encode_text(tokens).mean(dim=0)
    torch.testing.assert_close(whole[0], F.normalize(mean, dim=0), rtol=1e-4, atol=1e-5)


def test_half_precision_cache_changes_little() -> None:
    tcl, windows = small_tcl(), random_images(1)
    text, emb, affinity = tcl.embed_tokens(captions(2)[:, None]), tcl.encode(windows), pamr_guide(tcl, windows)
    half = emb.to(dtype=torch.float16)
    assert half.nbytes * 2 == emb.nbytes and len(half[0:1]) == 1
    expected = score_maps(tcl, emb, text, affinity, 0.3)
    actual = score_maps(tcl, half, text, affinity.to(dtype=torch.float16), 0.3)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.01)


def test_bfloat16_inference_stays_near() -> None:
    tcl, windows = small_tcl(), random_images(2)
    tokens = captions(2)[:, None]
    expected = score_maps(tcl, tcl.encode(windows), tcl.embed_tokens(tokens), pamr_guide(tcl, windows), 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        emb = tcl.encode(windows)
        actual = score_maps(tcl, emb, tcl.embed_tokens(tokens), pamr_guide(tcl, windows), 0.3)
    assert actual.dtype == emb.image_emb.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.06)


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


# -- training ----------------------------------------------------------------------------------------------------


def test_losses_under_bfloat16_autocast_are_finite_and_near() -> None:
    tcl, images, tokens = small_tcl(), random_images(4), captions(4)
    noise = torch.rand(4, 16, 20, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99)
    expected = tcl.losses(images, tokens, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = tcl.losses(images, tokens, noise=noise)
    actual["total"].backward()
    for name, value in actual.items():
        assert value.dtype == torch.float32, name
        assert float(value.detach()) == pytest.approx(float(expected[name].detach()), rel=0.1, abs=0.02), name
    assert all(bool(p.grad.isfinite().all()) for p in tcl.parameters() if p.grad is not None)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    tcl = small_tcl()
    for stage in ("ust", "full"):
        tcl.zero_grad(set_to_none=True)
        trainable = tcl.trainable(stage)
        tcl.losses(random_images(3), captions(3))["total"].backward()
        for name, parameter in tcl.named_parameters():
            member = any(parameter is other for other in trainable)
            assert (parameter.grad is not None) == member == parameter.requires_grad, name
            assert parameter.grad is None or float(parameter.grad.abs().max()) > 0, name


def test_stages_also_thaw_a_model_loaded_for_inference() -> None:
    tcl = small_tcl()
    names = {name for name, _ in tcl.named_parameters() if not name.startswith("clip.")}
    tcl.requires_grad_(False)
    tcl.trainable("full")
    assert {name for name, parameter in tcl.named_parameters() if parameter.requires_grad} == names
    assert len(tcl.trainable("ust")) == len(names) - 12


def test_unknown_stage() -> None:
    with pytest.raises(SettingsError, match="'half'.*ust, full"):
        small_tcl().trainable("half")  # type: ignore[arg-type]


def test_released_size_has_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        config = open_clip.get_model_config("ViT-B-16-quickgelu")
        tcl = TCL(FrozenClip(open_clip.CLIP(**config)))
    assert sum(parameter.numel() for parameter in tcl.trainable("ust")) == 21_637_640
    assert sum(parameter.numel() for parameter in tcl.trainable("full")) == 28_725_512


def test_noise_can_be_given_for_the_matching_pairs_or_for_all() -> None:
    tcl, images, tokens = small_tcl(), random_images(3), captions(3)
    noise = torch.rand(3, 3, 16, 20)
    everything = numbers(tcl.losses(images, tokens, noise=noise))
    matching = numbers(tcl.losses(images, tokens, noise=noise[range(3), range(3)]))
    assert everything == matching
    with pytest.raises(ValueError, match="noise has shape"):
        tcl.losses(images, tokens, noise=noise[:, :, :8])


def test_generator_makes_the_losses_repeatable() -> None:
    tcl, images, tokens = small_tcl(), random_images(3), captions(3)
    first, again, other = (
        numbers(tcl(images, tokens, generator=torch.Generator().manual_seed(seed)))["tcli_loss"] for seed in (5, 5, 6)
    )
    assert first == again != other


def test_weights_and_prior_come_from_the_settings() -> None:
    images, tokens, noise = random_images(3), captions(3), torch.full((3, 16, 20), 0.5)
    plain = numbers(small_tcl().losses(images, tokens, noise=noise))
    config = TCLConfig(tcl_weight=0.2, area_weight=0.8, tv_weight=3.0, area_prior=0.1)
    other = numbers(small_tcl(config).losses(images, tokens, noise=noise))
    for name, factor in {"tcli": 2, "tclf": 2, "neg_area": 2, "tv_img": 3, "tv_mask": 3}.items():
        assert other[f"{name}_loss"] == pytest.approx(factor * plain[f"{name}_loss"], rel=1e-5)
    assert other["area_loss"] == pytest.approx(0.8 * abs(other["mask"] - 0.1), rel=1e-5)
    assert other["total"] == pytest.approx(sum(value for name, value in other.items() if "loss" in name), rel=1e-6)


def test_pairs_that_never_count_split_the_batch() -> None:
    tcl, images, tokens = small_tcl(), random_images(4), captions(4)
    noise = torch.full((4, 16, 20), 0.5)
    halves = [numbers(tcl.losses(images[part], tokens[part], noise=noise[part])) for part in (slice(2), slice(2, 4))]
    apart = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    together = numbers(tcl.losses(images, tokens, noise=noise, negatives=apart))
    for name in ("tcli_loss", "tclf_loss", "neg_area_loss", "tv_img_loss", "mask", "neg_mask"):
        assert together[name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, rel=1e-4)
    everything = numbers(tcl.losses(images, tokens, noise=noise))
    assert numbers(tcl.losses(images, tokens, noise=noise, negatives=torch.ones(4, 4))) == pytest.approx(everything)
    assert everything["tcli_loss"] != pytest.approx(together["tcli_loss"], rel=1e-2)
    # What matches is a match, whatever is said of it.
    silent = numbers(tcl.losses(images, tokens, noise=noise, negatives=apart.clone().fill_diagonal_(0)))
    assert silent == pytest.approx(together)
    for wrong, message in ((apart[:2], "negatives have shape"), (-apart, "from 0 to 1"), (2 * apart, "from 0 to 1")):
        with pytest.raises(ValueError, match=message):
            tcl.losses(images, tokens, negatives=wrong)


def test_negatives_are_images_by_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    tcl, images, tokens = small_tcl(), random_images(3), captions(3)
    negatives = torch.tensor([[1, 0.25, 0], [0, 1, 0], [0, 0.5, 1]])
    given: list[tuple[Tensor, Tensor]] = []

    def record(rows: Tensor, columns: Tensor, scale: Tensor, offset: int, weights: tuple[Tensor, Tensor]) -> Tensor:
        given.append(weights)
        return info_nce(rows, columns, scale, offset, weights)

    monkeypatch.setattr("tcl_core.methods.tcl.training.info_nce", record)
    neg_mask = tcl.losses(images, tokens, negatives=negatives)["neg_mask"]
    assert len(given) == 2
    for rows, columns in given:
        assert torch.equal(rows, negatives) and torch.equal(columns, negatives.T)
    with torch.no_grad():
        text = F.normalize(tcl.clip.encode_text(tokens[1:2]), dim=-1)
        first, _, last = tcl.masker.sim2mask(tcl.encode(images).image_emb, text).sigmoid().mean(dim=(1, 2, 3))
    assert neg_mask.item() == pytest.approx((0.25 * first.item() + 0.5 * last.item()) / 0.75, rel=1e-4)


def test_one_pair_alone() -> None:
    """There is nothing to contrast with, and no mask of another pair."""
    losses = numbers(small_tcl().losses(random_images(1), captions(1)))
    assert losses["tcli_loss"] == losses["tclf_loss"] == losses["neg_area_loss"] == 0
    assert 0 < losses["total"] < 100


def test_mismatched_batches_are_errors() -> None:
    tcl = small_tcl()
    with pytest.raises(ValueError, match="3 images, but 2 captions"):
        tcl.losses(random_images(3), captions(2))
    with pytest.raises(ValueError, match="patch size"):
        tcl.losses(random_images(2, 33), captions(2))


def test_a_few_steps_lower_the_loss() -> None:
    tcl, images, tokens = small_tcl(), random_images(4), captions(4)
    optimizer = torch.optim.AdamW(tcl.trainable("full"), lr=1e-3)
    noise = torch.rand(4, 16, 20, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99)
    totals = []
    for _ in range(8):
        optimizer.zero_grad()
        total = tcl.losses(images, tokens, noise=noise)["total"]
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.9 * totals[0]


def test_temperature_is_capped() -> None:
    tcl = small_tcl()
    assert tcl.tcli_loss().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        tcl.tcli_loss.logit_scale.fill_(9.0)
    assert tcl.tcli_loss().item() == 100


# -- settings, registry, state -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"area_prior": 1.5}, "area_prior is 1.5.*between 0 and 1"),
        ({"tv_weight": -1}, "tv_weight is -1.*0 or more"),
        ({"gumbel_tau": 0}, "gumbel_tau"),
        ({"init_w": float("nan")}, "init_w"),
        ({"kp_weight": "0.3"}, "kp_weight"),
        ({"decoder_double": 1}, "decoder_double"),
        ({"decoder_kernel": 2}, "decoder_kernel"),
        ({"decoder_layers": -1}, "decoder_layers"),
        ({"ie_freeze": 0}, "ie_freeze"),
        ({"refine_scale": 0}, "refine_scale is 0.*1 to 32, or null"),
        ({"ie_freeze": 3}, "between 1 and 2"),
        ({"area_priors": 0.4}, "Unknown TCL settings: area_priors"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        create_method("tcl", {"clip": small_clip()}, settings)


def test_settings_survive_the_round_trip() -> None:
    method = create_method("tcl", {"clip": small_clip()}, {"area_prior": 0.2, "decoder_double": False})
    again = create_method("tcl", {"clip": small_clip()}, method.config_to_dict())
    assert isinstance(again, TCL) and again.config == TCLConfig(area_prior=0.2, decoder_double=False)


def test_registry() -> None:
    assert "tcl" in list_methods()
    with pytest.raises(SettingsError, match="no method 'tlc'.*tcl"):
        create_method("tlc", {"clip": small_clip()})
    with pytest.raises(ValueError, match="taken by TCL"):
        register_method("tcl")(Method)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_learned_tensors_survive_the_round_trip(variant: dict[str, Any]) -> None:
    config = TCLConfig(**variant)
    trained, fresh = small_tcl(config), TCL(small_clip(), config)
    state = trained.learned_state_dict()
    assert sorted(state) == sorted(learned_keys(config, depth=3))
    fresh.load_learned_state_dict(state)
    windows = random_images(1)
    assert torch.equal(fresh.encode(windows).image_emb, trained.encode(windows).image_emb)


def test_loading_the_wrong_tensors_lists_them() -> None:
    tcl = small_tcl()
    before = {name: tensor.clone() for name, tensor in tcl.learned_state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    del state["masker.sim2mask.w"]
    state["masker.extra"] = torch.zeros(1)
    state["masker.sim2mask.b"] = torch.zeros(2)
    with pytest.raises(WeightsError) as error:
        tcl.load_learned_state_dict(state)
    for part in ("missing: masker.sim2mask.w", "unknown: masker.extra", "masker.sim2mask.b [2] instead of []"):
        assert part in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tcl.learned_state_dict().items())


def test_temperatures_may_be_missing_and_halves_are_widened() -> None:
    tcl, state = small_tcl(), small_tcl().learned_state_dict()
    half = {name: tensor.half() for name, tensor in state.items() if "logit_scale" not in name}
    tcl.load_learned_state_dict(half)
    loaded = tcl.learned_state_dict()["masker.image_encoder.decoder.image_proj.proj"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, half["masker.image_encoder.decoder.image_proj.proj"].float())
