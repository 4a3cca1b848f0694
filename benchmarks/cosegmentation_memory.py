"""Memory and time of co-segmentation on this machine's CPU: ``python -m benchmarks.cosegmentation_memory``.

Every figure is of a process of its own: the highest resident memory while references are found, less what the process
held before with the feature maps in memory. The operating system reports it, so the program runs on Linux alone. The
default is the paper's 50 images, at 448 pixels in patches of 16. The product of all pixels with all pixels would take
6 GB there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["main", "measure"]

_PROGRAM = """
import json, sys, time
import torch
from tcl_core.methods.reco.cosegmentation import BLOCK_BYTES, cosegment

images, side, channels, megabytes = json.loads(sys.argv[1])
block = BLOCK_BYTES if megabytes is None else megabytes << 20
generator = torch.Generator().manual_seed(0)
grid = side // 16

def held(field):
    line = next(line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024

def maps(count, size):
    features = torch.randn(count, channels, size, size, generator=generator)
    return features, torch.rand(count, size, size, generator=generator)

# Libraries take memory of their own with their first product.
cosegment(*maps(2, 2), block_bytes=block)
features, weights = maps(images, grid)
before = held("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
started = time.process_time()
cosegment(features, weights, block_bytes=block)
seconds = time.process_time() - started
pixels = images * grid * grid
print(json.dumps({"images": images, "side": side, "channels": channels, "pixels": pixels, "block": block,
    "peak": held("VmHWM") - before, "features": features.nbytes, "whole_product": 4 * pixels * pixels,
    "cpu_seconds": round(seconds, 1)}))
"""


def measure(images: int, side: int, channels: int, block_megabytes: int | None = None) -> dict[str, Any]:
    """Peak memory in bytes and CPU time of one reference, in a process of its own.

    Args:
        images: k.
        side: of the images in pixels, in patches of 16.
        channels: of the features.
        block_megabytes: bound of a block; ``None`` for the default.
    """
    sizes = json.dumps([images, side, channels, block_megabytes])
    done = subprocess.run([sys.executable, "-c", _PROGRAM, sizes], capture_output=True, encoding="utf-8", check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--block-megabytes", type=int)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    text = json.dumps(measure(given.images, given.side, given.channels, given.block_megabytes), indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
