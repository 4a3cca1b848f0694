"""Memory of a training step of TCL on this machine's CPU: ``python -m benchmarks.training_memory``.

Every figure is of a process of its own: the highest resident memory while the step runs, less what the process held
before. The operating system reports it, so the program runs on Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare_revision import BenchmarkError, worktree

__all__ = ["LOSS_SIZES", "Step", "loss_units", "main", "parts_figures", "step_figures"]

REPOSITORY = Path(__file__).resolve().parents[1]
LOSS_SIZES = {"images": 32, "texts": 512, "dim": 64, "side": 56}
"""Of the loss alone: one process of sixteen."""

Step = dict[str, Any]
"""Sizes of a step: ``images``, ``size`` in pixels, and ``clip``, an architecture of open_clip."""

_PEAK = """
import gc, json, resource, sys, time
import torch
sizes = json.loads(sys.argv[1])

def held(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024

def measured(run):
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")
    before, began = held("VmRSS"), time.process_time()
    run()
    print(json.dumps({"bytes": held("VmHWM") - before, "seconds": time.process_time() - began}))
"""

_LOSS = """
from tcl_core.methods.tcl import TCL
from tcl_core.methods.tcl.mask_terms import mask_terms
from tcl_core.methods.tcl.training import Batch, Compared, Embeddings
from tcl_core.methods.tcl.losses import unit, variations
tcl = TCL.example()
tcl.trainable("full")
images, texts, side = sizes["images"], sizes["texts"], sizes["side"]

def run(parts=True):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    pixels = draw(images, sizes["dim"], side, side).requires_grad_()
    captions = unit(draw(texts, sizes["dim"]), dim=-1)
    regions = unit(draw(images, sizes["dim"]), dim=-1).requires_grad_()
    batch = Batch(torch.zeros(images, 3, 1, 1), torch.zeros(images, 1, dtype=torch.long), texts=captions)
    if parts:
        losses = tcl.loss(Embeddings(pixels, captions[:images], regions), batch)
    else:
        terms = mask_terms(pixels, captions, tcl.masker.sim2mask.w, tcl.masker.sim2mask.b)
        losses = tcl.objective(Compared(*terms, variations(pixels), regions), batch)
    losses["total"].backward()

measured(lambda: run(sizes["parts"]))
"""

# Also runs in the trees of older revisions.
_STEP = """
import open_clip
try:
    from tcl_core.towers.open_clip_vit import FrozenClip
except ImportError:
    from tcl_core.clip import FrozenClip
from tcl_core.methods.tcl import TCL
torch.manual_seed(0)
config = open_clip.get_model_config(sizes["clip"])
config = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu") if key in config}
tcl = TCL(FrozenClip(open_clip.CLIP(**config)))
getattr(tcl, "trainable", getattr(tcl, "set_stage", None))("full")
images = torch.randn(sizes["images"], 3, sizes["size"], sizes["size"])
tokens = torch.randint(1, config["text_cfg"]["vocab_size"] - 2, (sizes["images"], config["text_cfg"]["context_length"]))
tokens[:, -1] = config["text_cfg"]["vocab_size"] - 1

def run():
    tcl.zero_grad()
    tcl.losses(images, tokens)["total"].backward()

if sizes["warm"]:
    run()
measured(run)
"""


_PARTS = """
import dataclasses
from training.gpu_check import PAPER, build, draw_batch, phase
from training.step import Stepper
chosen = dataclasses.replace(PAPER, clip=sizes["clip"], batch=sizes["images"], pixels=sizes["size"])
tcl, device = build(chosen), torch.device("cpu")
batch = draw_batch(tcl, chosen.batch, chosen.pixels, device)
stepper = Stepper(tcl, phase(chosen, "float32"), device, sizes["parts"])
stepper.step(0, batch)
measured(lambda: stepper.step(1, batch))
"""


def _measure(code: str, sizes: Step, tree: Path = REPOSITORY) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    # What malloc keeps for later would count as used.
    environment |= {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PEAK + code, json.dumps(sizes)],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchmarkError(f"The measurement in {tree} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def loss_units(sizes: Step, *, parts: bool) -> float:
    """Peak memory of the loss, forward and backward, with its inputs.

    Args:
        sizes: such as `LOSS_SIZES`.
        parts: a few images at a time, as training does, or all masks at once.

    Returns:
        In units of one float32 tensor ``[images, texts, side, side]``.
    """
    unit = 4 * sizes["images"] * sizes["texts"] * sizes["side"] ** 2
    return _measure(_LOSS, {**sizes, "parts": parts})["bytes"] / unit


def step_figures(step: Step, tree: Path = REPOSITORY) -> tuple[float, float]:
    """MiB that a step adds, and CPU seconds of a later step, on one thread.

    Args:
        step: sizes.
        tree: checkout that is measured.
    """
    added = _measure(_STEP, {**step, "warm": False}, tree)["bytes"] / 2**20
    return added, _measure(_STEP, {**step, "warm": True}, tree)["seconds"]


def parts_figures(step: Step, parts: int) -> tuple[float, float]:
    """MiB that a whole step of the engine adds, and its CPU seconds, on one thread.

    Args:
        step: sizes.
        parts: of its batch, a divisor of the number of images.
    """
    found = _measure(_PARTS, {**step, "parts": parts})
    return found["bytes"] / 2**20, found["seconds"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_memory", description=__doc__)
    parser.add_argument("--against", metavar="REVISION", help="also measure the step of this revision")
    parser.add_argument("--clip", default="ViT-B-16-quickgelu", help="architecture of the step's CLIP")
    parser.add_argument("--images", type=int, default=8, help="images of the step")
    parser.add_argument("--size", type=int, default=224, help="side of the step's images in pixels")
    parser.add_argument("--parts", type=int, metavar="N", help="only compare a step in N parts (--accumulate) with one")
    options = parser.parse_args(arguments)
    step = {"clip": options.clip, "images": options.images, "size": options.size}
    try:
        if options.parts:
            print(f"step of the engine, {options.images} images of {options.size} pixels, {options.clip}")
            figures = {count: parts_figures(step, count) for count in (1, options.parts)}
            for count, (memory, seconds) in figures.items():
                print(f"  {f'parts: {count}':<20} {memory:7.0f} MiB added, {seconds:6.1f} CPU seconds")
            memory, seconds = (cut / whole for cut, whole in zip(figures[options.parts], figures[1], strict=True))
            print(f"  {'ratio':<20} {memory:7.2f} of the memory, {seconds:.2f} of the time")
            return 0
        unit = 4 * LOSS_SIZES["images"] * LOSS_SIZES["texts"] * LOSS_SIZES["side"] ** 2 / 2**20
        print(f"loss, 32 images, 512 texts, 56 x 56 masks (one tensor of all masks: {unit:.0f} MiB)")
        for parts, name in ((True, "in parts"), (False, "all masks at once")):
            print(f"  {name:<20} {loss_units(LOSS_SIZES, parts=parts):6.2f} tensors of all masks")
        print(f"step, {options.images} images of {options.size} pixels, {options.clip}")
        memory, seconds = step_figures(step)
        print(f"  {'this checkout':<20} {memory:7.0f} MiB added, {seconds:6.1f} CPU seconds")
        if options.against:
            with worktree(options.against) as tree:
                old_memory, old_seconds = step_figures(step, tree)
            print(f"  {options.against:<20} {old_memory:7.0f} MiB added, {old_seconds:6.1f} CPU seconds")
            print(f"  {'ratio':<20} {memory / old_memory:7.2f} of the memory, {seconds / old_seconds:.2f} of the time")
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
