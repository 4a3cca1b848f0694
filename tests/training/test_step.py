"""One step, whole and in parts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tcl_core.errors import SettingsError
from tcl_core.methods.tcl.training import Batch
from tcl_core.methods.trainable import Trainable
from tcl_core.towers.open_clip_vit import FrozenClip
from tests.core.tcl_models import captions, small_tcl
from training.config import OptimizerSettings, ScheduleSettings, Stage, TrainPhase
from training.step import NotFiniteError, Stepper

CPU = torch.device("cpu")


def phase(precision: str = "float32", **changes: Any) -> TrainPhase:
    settings = {
        "name": "test",
        "stages": [Stage(stage="ust", steps=2), Stage(stage="full", steps=10)],
        "batch": 6,
        "schedule": ScheduleSettings(lr=1e-3),
        "precision": precision,
    }
    return TrainPhase.model_validate({**settings, **changes})


def batch(negatives: Tensor | None = None) -> Batch:
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, captions(6), negatives=negatives)


def gradients(parts: int, precision: str = "float32", negatives: Tensor | None = None) -> tuple[Any, dict[str, Tensor]]:
    stepper = Stepper(small_tcl(), phase(precision, clip_norm=None), CPU, parts, seed=3)
    done = stepper.step(4, batch(negatives))
    return done, {name: p.grad for name, p in stepper.named.items() if p.grad is not None}


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_caching_is_exact(weighted: bool) -> None:
    negatives = torch.rand(6, 6, generator=torch.Generator().manual_seed(5)) if weighted else None
    whole, expected = gradients(1, negatives=negatives)
    for parts in (2, 3, 6):
        done, grads = gradients(parts, negatives=negatives)
        assert done.losses == pytest.approx(whole.losses, abs=1e-6)
        assert set(grads) == set(expected)
        scale = max(float(value.norm()) for value in expected.values())
        for name, value in expected.items():
            # What cancels is only as exact as the largest of its parts.
            assert float((grads[name] - value).norm()) <= 1e-5 * float(value.norm()) + 1e-6 * scale, name


def test_half_precision_takes_nearly_the_same_step() -> None:
    whole, _ = gradients(1)
    for precision in ("bfloat16", "float16"):
        done, grads = gradients(2, precision)
        assert done.losses["total"] == pytest.approx(whole.losses["total"], rel=0.02)
        assert done.grad_norm == pytest.approx(whole.grad_norm, rel=0.1), precision
        assert all(bool(grad.isfinite().all()) for grad in grads.values())


def test_noise_follows_from_seed_and_step() -> None:
    def total(seed: int, step: int) -> float:
        return Stepper(small_tcl(), phase(), CPU, seed=seed).step(step, batch()).losses["tcli_loss"]

    assert total(1, 3) == total(1, 3) != total(2, 3)
    assert total(1, 3) != total(1, 4)


def test_stages_freeze_and_moments_begin_late() -> None:
    stepper = Stepper(small_tcl(), phase(), CPU)
    block = next(p for name, p in stepper.named.items() if "resblocks" in name)
    before = block.detach().clone()
    for step in range(2):
        stepper.step(step, batch())
    assert torch.equal(block, before) and block not in stepper.optimizer.state
    stepper.step(2, batch())
    assert not torch.equal(block, before) and int(stepper.optimizer.state[block]["step"]) == 1


def test_what_is_not_finite_changes_nothing() -> None:
    stepper = Stepper(small_tcl(), phase(), CPU)
    stepper.step(0, batch())
    before = {name: p.detach().clone() for name, p in stepper.named.items()}
    bad = batch()
    bad.images[2] = float("nan")
    with pytest.raises(NotFiniteError, match="losses of step 1 are not finite: tcli_loss"):
        stepper.step(1, bad)
    assert all(torch.equal(p, before[name]) for name, p in stepper.named.items())


def test_a_scale_that_is_too_large_skips_steps_and_is_resumed() -> None:
    """The state of the scaler is that of a run that was never stopped."""
    batches = [batch() for _ in range(4)]
    whole = Stepper(small_tcl(), phase("float16"), CPU, seed=1)
    whole.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, growth_interval=3)
    done = [whole.step(step, each) for step, each in enumerate(batches[:2])]
    assert done[0].skipped and not math.isfinite(done[0].grad_norm)
    before = {name: value.clone() for name, value in whole.method.state_dict().items()}  # type: ignore[attr-defined]
    again = Stepper(small_tcl(), phase("float16"), CPU, seed=1)
    again.method.load_state_dict(before)  # type: ignore[attr-defined]
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert again.scaler.get_scale() == whole.scaler.get_scale() < 2.0**19
    for step in (2, 3):
        assert again.step(step, batches[step]) == whole.step(step, batches[step])
    assert again.scaler.state_dict() == whole.scaler.state_dict()
    assert all(torch.equal(p, again.named[name]) for name, p in whole.named.items())


@pytest.mark.slow
def test_a_scale_that_falls_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = Stepper(small_tcl(), phase("float16"), CPU)

    def infinite(parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.fill_(float("inf"))

    monkeypatch.setattr("training.step.average_gradients", infinite)
    with pytest.raises(NotFiniteError, match="gradient of step .* is not finite"):
        for _ in range(40):
            assert stepper.step(0, batch()).skipped


def test_settings_of_the_recipe_win_over_those_of_a_checkpoint() -> None:
    old = Stepper(small_tcl(), phase("float16"), CPU)
    old.step(0, batch())
    changed = {"betas": (0.8, 0.9), "weight_decay": 0.3, "scalar_scale": 7.0}
    new = Stepper(small_tcl(), phase(optimizer=OptimizerSettings(**changed)), CPU)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert [group["weight_decay"] for group in new.optimizer.param_groups] == [0.3, 0.0, 0.3]
    assert all(group["betas"] == (0.8, 0.9) for group in new.optimizer.param_groups)
    new.step(1, batch())
    rates = [group["lr"] for group in new.optimizer.param_groups]
    assert rates[2] == pytest.approx(7 * rates[0]) and int(new.optimizer.state[new.parameters[-1]]["step"]) == 2
    # A scaler begins anew where there was none.
    half = Stepper(small_tcl(), phase("float16"), CPU)
    half.load_state_dict(copy.deepcopy(new.state_dict()))
    half.step(2, batch())


def test_frozen_blocks_run_once_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are embedded twice, but not what no gradient passes through."""
    stepper = Stepper(small_tcl(), phase(), CPU, 3)
    counted = []
    tokens = FrozenClip.tokens_after

    def counting(self: FrozenClip, image: Tensor, blocks: int) -> Tensor:
        if blocks == stepper.method.first_block:  # type: ignore[attr-defined]
            counted.append(len(image))
        return tokens(self, image, blocks)

    monkeypatch.setattr(FrozenClip, "tokens_after", counting)
    stepper.step(0, batch())
    assert counted == [2, 2, 2]


class Tiny(nn.Module, Trainable):
    """A method whose batches are mappings and whose embeddings are small: the contract's defaults do the rest."""

    stages = ("only",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def trainable(self, stage: str) -> list[nn.Parameter]:
        if stage not in self.stages:
            raise SettingsError(stage)
        return list(self.parameters())

    def prepare(self, sample: Any, rng: Any) -> dict[str, Any]:
        return dict(sample)

    def embed(self, batch: Any) -> dict[str, Tensor]:
        return {"rows": self.layer(batch["x"]), "number": batch["number"]}

    def loss(self, embeddings: Any, batch: Any) -> dict[str, Tensor]:
        rows = embeddings["rows"]
        total = (self.scale * rows @ rows.T - batch["number"][None]).square().mean()
        return {"total": total}


def test_any_method_can_be_trained_in_parts() -> None:
    generator = torch.Generator().manual_seed(1)
    given = {"x": torch.randn(6, 3, generator=generator), "number": torch.arange(6), "name": "six"}
    found = []
    for parts in (1, 3):
        stepper = Stepper(Tiny(), phase(stages=[Stage(stage="only", steps=3)], clip_norm=None), CPU, parts)
        done = stepper.step(0, given)
        found.append([torch.tensor(done.losses["total"]), *(p.grad for p in stepper.parameters)])
    for whole, cached in zip(*found, strict=True):
        torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-6)
