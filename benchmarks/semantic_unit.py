"""Cost of the adaptive semantic unit beside encoding a window: ``python -m benchmarks.semantic_unit``.

On a CLIP ViT-B/16 with random weights, because time does not depend on them. Prints the shortest time of several
repeats of each, and their ratio.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import open_clip
import torch
from torch import Tensor

from tcl_core.methods import create_method
from tcl_core.methods.capabilities import DenseEmbedding
from tcl_core.methods.semantic_unit import semantic_units
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["main", "shortest"]

_METHODS = ("tcl", "mgca-style", "naclip", "maskclip")


def shortest(action: Callable[[], object], repeats: int) -> float:
    """Seconds of the shortest of several calls, after one that warms up.

    Args:
        action: what is called.
        repeats: calls that are timed, at least one.
    """
    action()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_unit", description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), help="names of methods")
    parser.add_argument("--architecture", default="ViT-B-16-quickgelu", help="of the CLIP, a name of open_clip")
    parser.add_argument("--window", type=int, default=448, help="side in pixels")
    parser.add_argument("--points", type=int, nargs="+", default=[49, 196, 784], help="meta-points of the window")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = FrozenClip(cast(Any, open_clip.create_model(options.architecture, pretrained=None)))
    window = torch.rand(1, 3, options.window, options.window, device=options.device)
    print("| method | pixels | points | encoding in s | unit in s | ratio |\n|---|---|---|---|---|---|")
    for name in options.methods:
        method = create_method(name, {"clip": clip}).eval().to(options.device)
        pixels: Tensor = cast(DenseEmbedding, method).pixels(method.encode(window))
        encoding = shortest(lambda method=method: method.encode(window), options.repeats)  # type: ignore[misc]
        for points in options.points:
            unit = shortest(lambda pixels=pixels, points=points: semantic_units(pixels, points, 0.6), options.repeats)  # type: ignore[misc]
            size = f"{pixels.shape[2]} x {pixels.shape[3]}"
            print(f"| {name} | {size} | {points} | {encoding:.3f} | {unit:.3f} | {unit / encoding:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
