"""Cost of the adaptive semantic unit beside encoding a window: ``python -m benchmarks.semantic_unit``.

On a CLIP ViT-B/16 with random weights, because time does not depend on them. Prints the shortest time of several
repeats, of encoding and of the cosines of twenty prompts: with pixels, with parts that are made for them, and with
parts that are kept, by methods that do (or made again, where they are too large).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from tcl_core.methods import create_method
from tcl_core.methods.capabilities import DenseEmbedding
from tcl_core.methods.semantic_unit import PIXELS, Parts, UnitOptions, cosines_in_units
from tcl_core.methods.tcl.grounded import Grounded
from tcl_core.towers.open_clip_vit import FrozenClip

__all__ = ["main", "shortest"]

_PROMPTS = 20
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
    parser.add_argument("--points", type=int, nargs="+", default=[64, 196, 784], help="meta-points of the window")
    parser.add_argument("--repeats", type=int, default=3, help="calls that are timed")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clip = FrozenClip(cast(Any, open_clip.create_model(options.architecture, pretrained=None)))
    window = torch.rand(1, 3, options.window, options.window, device=options.device)
    print("| method | pixels | points | encoding, ms | prompts | with the unit | again | unit / encoding |")
    print(f"|{'---|' * 8}")
    for name in options.methods:
        method = create_method(name, {"clip": clip}).configured(PIXELS).eval().to(options.device)
        pixels: Tensor = cast(DenseEmbedding, method).pixels(method.encode(window))
        rows = F.normalize(torch.randn(_PROMPTS, pixels.shape[1], device=options.device), dim=1)
        keeps = isinstance(method, Grounded)
        encoding = shortest(partial(method.encode, window), options.repeats)
        for points in options.points:
            unit = UnitOptions(unit_points=points)
            parts = Parts.of(pixels, unit)
            plain, first, again = (
                shortest(partial(cosines_in_units, pixels, rows, chosen, kept), options.repeats)
                for chosen, kept in ((UnitOptions(), None), (unit, None), (unit, parts))
            )
            cells = [name, f"{pixels.shape[2]} x {pixels.shape[3]}", str(points)]
            cells += [f"{1000 * seconds:.1f}" for seconds in (encoding, plain, first)]
            cells.append(f"{1000 * again:.1f}" if keeps else "–")
            print(f"| {' | '.join(cells)} | {(first - plain) / encoding:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
