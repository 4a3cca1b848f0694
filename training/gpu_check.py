"""A short check of training on a device: ``python -m training.gpu_check --out FILE``, or ``make test-gpu``.

Compares one step with the CPU's in float32, and takes 20 steps of the paper's size (ViT-B/16, 64 pairs of 224 pixels,
bfloat16) with and without ``torch.compile``. Weights and images are random, so nothing is downloaded. The report is
written after each part, so that what was measured is kept whatever happens later.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch

from tcl_core.devices import select_device
from tcl_core.errors import TclError
from tcl_core.methods.tcl import TCL, TCLConfig
from tcl_core.methods.tcl.training import Batch
from tcl_core.towers.open_clip_vit import FrozenClip
from training.config import ScheduleSettings, Stage, TrainPhase
from training.step import Stepper

__all__ = ["PAPER", "SMALL", "Sizes", "check", "main"]

TOLERANCE = 1e-3
_WARM = 3


@dataclass(frozen=True)
class Sizes:
    """What is run.

    Attributes:
        clip: architecture of open_clip; empty for a tiny one.
        pixels: side of the images.
        batch: pairs of a timed step.
        steps: timed steps.
        compared: pairs of the step that is compared with the CPU's.
        parts: of a batch, for the run with gradient caching.
    """

    clip: str
    pixels: int
    batch: int
    steps: int
    compared: int
    parts: int


PAPER = Sizes(clip="ViT-B-16-quickgelu", pixels=224, batch=64, steps=20, compared=4, parts=4)
SMALL = Sizes(clip="", pixels=32, batch=4, steps=2, compared=4, parts=2)


def build(sizes: Sizes) -> TCL:
    """A TCL with random weights, the same ones at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config: dict[str, Any] = (
            dict(open_clip.get_model_config(sizes.clip) or {})
            if sizes.clip
            else {
                "embed_dim": 12,
                "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 3},
                "text_cfg": {"context_length": 6, "vocab_size": 30, "width": 16, "heads": 2, "layers": 1},
            }
        )
        tcl = TCL(FrozenClip(open_clip.CLIP(**config)), TCLConfig())
        with torch.no_grad():
            for name, parameter in tcl.masker.named_parameters():
                # Silent branches would hide their faults.
                if name.endswith("gate.gate"):
                    parameter.fill_(0.5)
    return tcl


def draw_batch(tcl: TCL, pairs: int, pixels: int, device: torch.device) -> Batch:
    """Random images, captions and noise, the same ones on every device."""
    generator = torch.Generator().manual_seed(1)
    model: Any = tcl.clip.model
    words = model.token_embedding.num_embeddings
    side = pixels // tcl.clip.patch_size * 2**tcl.config.decoder_layers
    images = torch.randn(pairs, 3, pixels, pixels, generator=generator)
    tokens = torch.randint(1, words - 2, (pairs, tcl.clip.context_length), generator=generator)
    tokens[:, -1] = words - 1
    noise = torch.rand(pairs, side, side, generator=generator).clamp(0.01, 0.99)
    return Batch(images.to(device), tokens.to(device), noise.to(device))


def phase(sizes: Sizes, precision: str) -> TrainPhase:
    """Both stages, the second one at once."""
    return TrainPhase.model_validate(
        {
            "name": "check",
            "stages": [Stage(stage="full", steps=1000)],
            "batch": sizes.batch,
            "schedule": ScheduleSettings(lr=7.5e-5, min_lr=1e-5, warmup=100),
            "precision": precision,
        }
    )


def compare_with_cpu(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """One step in float32 on both, and in bfloat16 on the device."""
    found = {}
    for name, where, precision in (
        ("cpu", torch.device("cpu"), "float32"),
        ("float32", device, "float32"),
        ("bfloat16", device, "bfloat16"),
    ):
        tcl = build(sizes).to(where)
        batch = draw_batch(tcl, sizes.compared, sizes.pixels, where)
        done = Stepper(tcl, phase(sizes, precision), where).step(0, batch)
        found[name] = done.losses | {"grad_norm": done.grad_norm}
    expected = found["cpu"]
    differences = {
        name: max(abs(found[name][key] - value) for key, value in expected.items() if key != "grad_norm")
        for name in ("float32", "bfloat16")
    }
    return {
        "losses": found,
        "largest_difference": differences,
        "tolerance": TOLERANCE,
        "passed": differences["float32"] <= TOLERANCE,
    }


def timed_steps(
    sizes: Sizes, device: torch.device, compiled: bool, parts: int = 1, recompute: bool = True
) -> dict[str, Any]:
    """Images per second and peak memory of some steps, in bfloat16 on a GPU."""
    tcl = build(sizes).to(device)
    tcl.clip.recompute = recompute
    if compiled:
        tcl.compile_training()
    batch = draw_batch(tcl, sizes.batch, sizes.pixels, device)
    # Convolutions in bfloat16 are very slow on most CPUs, where these steps only try the script.
    stepper = Stepper(tcl, phase(sizes, "bfloat16" if device.type == "cuda" else "float32"), device, parts)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    totals = [stepper.step(step, batch).losses["total"] for step in range(_WARM)]
    _wait(device)
    first, began = time.perf_counter() - began, time.perf_counter()
    totals += [stepper.step(step, batch).losses["total"] for step in range(_WARM, _WARM + sizes.steps)]
    _wait(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    return {
        "steps": sizes.steps,
        "seconds_of_first_steps": round(first, 2),
        "seconds_per_step": round(seconds / sizes.steps, 4),
        "images_per_second": round(sizes.batch * sizes.steps / seconds, 1),
        "peak_gib": None if peak is None else round(peak, 2),
        "first_total": totals[0],
        "last_total": totals[-1],
        "passed": all(total == total for total in totals),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check(sizes: Sizes, device: torch.device, out: Path, compiled: bool = True) -> dict[str, Any]:
    """Run all parts, and keep the report as it grows.

    Args:
        sizes: of the paper, or small ones.
        device: what is checked.
        out: JSON file of the report.
        compiled: also run with ``torch.compile``.
    """
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "sizes": asdict(sizes),
    }
    # Of the comparison: TF32 would not be the CPU's arithmetic.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "against_cpu": lambda: compare_with_cpu(sizes, device),
        "eager": lambda: timed_steps(sizes, device, compiled=False),
        "eager_in_parts": lambda: timed_steps(sizes, device, compiled=False, parts=sizes.parts),
        "eager_keeping_all": lambda: timed_steps(sizes, device, compiled=False, recompute=False),
        "compiled": lambda: timed_steps(sizes, device, compiled=True),
    }
    if not compiled:
        del parts["compiled"]
    for name, run in parts.items():
        began = time.perf_counter()
        try:
            report[name] = run()
        except Exception as error:
            # The other parts are still worth knowing.
            text = " ".join(str(error).split())
            report[name] = {"passed": False, "error": f"{type(error).__name__}: {text[:400]}"}
        report[name]["seconds"] = round(time.perf_counter() - began, 1)
        print(name, json.dumps(report[name]), flush=True)
        report["passed"] = all(report[done]["passed"] for done in parts if done in report)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m training.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the report")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script itself")
    parser.add_argument("--skip-compile", action="store_true", help="leave out the steps with torch.compile")
    options = parser.parse_args(arguments)
    try:
        sizes = SMALL if options.small else PAPER
        report = check(sizes, select_device(options.device), options.out, not options.skip_compile)
    except TclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {options.out}: cannot be written: {error.strerror or error}", file=sys.stderr)
        return 2
    print("passed" if report["passed"] else "failed", os.fspath(options.out))
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
