from __future__ import annotations

import sys

import pytest

from benchmarks.training_memory import loss_units, main, parts_figures, step_figures

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")]


def test_losses_in_parts_need_a_fraction_of_the_masks() -> None:
    sizes = {"images": 16, "texts": 256, "dim": 64, "side": 56}
    parts, whole = loss_units(sizes, parts=True), loss_units(sizes, parts=False)
    # All masks at once are kept together with their derivatives.
    assert 0.1 < parts < 3.5 and parts < whole / 2


def test_a_step_of_a_small_clip() -> None:
    memory, seconds = step_figures({"clip": "ViT-S-32-alt", "images": 2, "size": 64})
    assert memory > 1 and seconds > 0


def test_a_step_in_parts_of_a_small_clip() -> None:
    step = {"clip": "ViT-S-32-alt", "images": 4, "size": 64}
    whole, parts = parts_figures(step, 1), parts_figures(step, 4)
    assert whole[0] > 0 and parts[1] > 0 and parts[0] < whole[0]


def test_unknown_architectures_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--images", "two"])
    assert "invalid int value" in capsys.readouterr().err
