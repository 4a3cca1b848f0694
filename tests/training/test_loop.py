from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.core.tcl_models import captions, small_tcl
from training.loop import Schedule, half_precision, learning_rate, step_generators, train

SCHEDULE = Schedule(steps=30, lr=0.05, min_lr=0.001, warmup=5)


def _problem(folder, stop_at: int | None = None, recipe: str = "toy") -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)

    def losses(step: int):
        if step == stop_at:
            raise KeyboardInterrupt
        _, generator = step_generators(7, step)
        x = torch.randn(8, 3, generator=generator)
        return {"total": (module(x) - x[:, :2]).square().mean()}

    train("toy", module, list(module.parameters()), SCHEDULE, losses, folder, recipe, log_every=10, save_every=4)
    return module


def test_it_learns_and_logs(tmp_path) -> None:
    _problem(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "toy.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert lines[-1]["total"] < 0.5 * lines[0]["total"]


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path) -> None:
    whole = _problem(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _problem(tmp_path / "cut", stop_at=17)
    resumed = _problem(tmp_path / "cut")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    logs = [(tmp_path / name / "toy.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    steps, cut_steps = ([json.loads(line)["step"] for line in log] for log in logs)
    assert steps == cut_steps


def test_a_changed_recipe_is_not_resumed(tmp_path) -> None:
    _problem(tmp_path)
    with pytest.raises(SystemExit, match="another recipe"):
        _problem(tmp_path, recipe="toy with a larger batch")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path) -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="step 0 is not finite"):
        train(
            "bad",
            module,
            list(module.parameters()),
            SCHEDULE,
            lambda _: {"total": torch.tensor(float("nan"))},
            tmp_path,
            "bad",
        )


def test_half_precision_reaches_attention_and_ends_with_it() -> None:
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    before = allowed()
    query, key, value = torch.randn(3, 2, 4, 65, 32).unbind()
    expected = F.scaled_dot_product_attention(query, key, value)
    with pytest.raises(KeyboardInterrupt), half_precision():
        assert allowed()
        half = [part.bfloat16() for part in (query, key, value)]
        torch.testing.assert_close(F.scaled_dot_product_attention(*half).float(), expected, rtol=0.05, atol=0.02)
        assert (query[0, 0] @ key[0, 0].T).dtype == torch.bfloat16
        raise KeyboardInterrupt
    assert allowed() == before
    assert (query[0, 0] @ key[0, 0].T).dtype == torch.float32


def test_gradients_may_follow_after_half_precision() -> None:
    """What is computed again in the backward pass is computed as it was."""
    losses = []
    for inside in (True, False):
        tcl = small_tcl()
        tcl.trainable("full")
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with half_precision():
            total = tcl.losses(images, captions(3), generator=torch.Generator().manual_seed(1))["total"]
            if inside:
                total.backward()
        if not inside:
            total.backward()
        losses.append([p.grad for p in tcl.parameters() if p.grad is not None])
    for first, second in zip(*losses, strict=True):
        torch.testing.assert_close(first, second, rtol=0.05, atol=0.05 * float(first.abs().max()) + 1e-6)


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(SCHEDULE, step) for step in range(SCHEDULE.steps + 1)]
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert max(rates) == pytest.approx(SCHEDULE.lr) and rates[-1] == pytest.approx(SCHEDULE.min_lr)
