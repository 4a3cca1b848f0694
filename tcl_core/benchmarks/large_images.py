"""Memory and time of pre-labeling images of several sizes, to see that time grows with the pixels and no faster.

Every size is measured in processes of its own: one is ``tcl-annotate prelabel`` as a user runs it, whose highest
resident memory the operating system reports; another times the stages. Times are of the processor, so that other
programs on the machine count as little as possible.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tcl_core.errors import SettingsError
from tcl_core.playground import KINDS, STUFF_NAMES, draw_scene, scene_rng

__all__ = ["STAGES", "SizeRow", "draw_large_image", "format_sizes", "run_sizes"]

STAGES = ("read", "network", "labels", "polygons", "COCO")
"""Reading the file; resizing and the network; scores and arg-max; regions and polygons; annotations and their file."""

_LABELS = (*STUFF_NAMES, *KINDS[::6])
_SCENES = 4
_NOISE = 6
_ROWS = 512
_ASPECT = 1.28
_QUALITY = 88
_UNLIMITED = 1 << 40
_PROGRAM = "import sys; from tcl_core.benchmarks.large_images import _print_stages; _print_stages(*sys.argv[1:])"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SizeRow:
    """What an image of one size takes.

    Attributes:
        size: height and width in pixels.
        peak_bytes: highest resident memory of ``tcl-annotate prelabel``.
        regions: how many it found.
        seconds: processor time of each of the `STAGES`.
    """

    size: tuple[int, int]
    peak_bytes: int
    regions: int
    seconds: Mapping[str, float]

    @property
    def megapixels(self) -> float:
        """Millions of pixels."""
        return self.size[0] * self.size[1] / 1e6

    @property
    def seconds_per_megapixel(self) -> float:
        """Processor time of all stages."""
        return sum(self.seconds.values()) / self.megapixels


def draw_large_image(megapixels: float, seed: int = 0) -> NDArray[np.uint8]:
    """Scenes of the playground side by side, enlarged and noisy: uint8 ``[H, W, 3]`` of about so many pixels.

    Every size shows the same, so that there are as many regions, with borders as long as the sides.
    """
    width = max(1, round((megapixels * 1e6 * _ASPECT) ** 0.5))
    height = max(1, round(megapixels * 1e6 / width))
    scenes = [
        [draw_scene(scene_rng(seed, row * _SCENES + column)).image for column in range(_SCENES)]
        for row in range(_SCENES)
    ]
    mosaic = Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in scenes]))
    image = np.array(mosaic.resize((width, height), Image.Resampling.BICUBIC))
    rng = np.random.default_rng(seed)
    for top in range(0, height, _ROWS):
        rows = image[top : top + _ROWS]
        noise = rng.integers(-_NOISE, _NOISE + 1, rows.shape, dtype=np.int16)
        rows[:] = np.clip(rows + noise, 0, 255)
    return image


def run_sizes(
    model: str, megapixels: Sequence[float], *, progress: Callable[[str], None] | None = None
) -> list[SizeRow]:
    """Measure images of several sizes, on the CPU.

    Args:
        model: name or path of a model.
        megapixels: sizes, in millions of pixels.
        progress: is told what is measured.

    Returns:
        A row for each size.

    Raises:
        SettingsError: a size is not positive, this system does not report the memory of processes, or a run failed.
    """
    if not megapixels or min(megapixels) <= 0:
        raise SettingsError("--megapixels: give sizes above 0")
    if not hasattr(os, "wait4"):
        raise SettingsError("this system does not report how much memory a process took; measure on Linux or macOS")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "image.jpg", Path(folder) / "labels.json"
        for size in megapixels:
            if progress is not None:
                progress(f"{size:g} megapixels")
            image = draw_large_image(size)
            Image.fromarray(image).save(path, quality=_QUALITY)
            height, width = image.shape[:2]
            del image
            stages = _output_of([sys.executable, "-c", _PROGRAM, model, str(path), str(out)])
            labels = [part for name in _LABELS for part in ("--label", name)]
            command = ["prelabel", str(path), "--model", model, *labels, "--out", str(out), "--overwrite", "--quiet"]
            limit = ["--max-pixels", str(_UNLIMITED), "--device", "cpu"]
            peak = _peak_of([sys.executable, "-m", "tcl_core.cli", *command, *limit])
            rows.append(SizeRow((height, width), peak, stages["regions"], stages["seconds"]))
    return rows


def format_sizes(rows: Sequence[SizeRow]) -> str:
    """The rows as a plain table; the last column compares the time of a megapixel with that of the first row.

    >>> row = SizeRow((1000, 2000), 1_500_000_000, 7, dict.fromkeys(STAGES, 0.2))
    >>> print(format_sizes([row]).splitlines()[1].strip())
    2 MP    2000 x 1000    1.50 GB        7     0.20     0.20     0.20     0.20     0.20     0.500   1.00
    """
    stages = "".join(f"{name:>9}" for name in STAGES)
    lines = [f"{'size':>19}{'':8}{'peak':>5}  regions{stages}      s/MP  ratio"]
    for row in rows:
        shown = f"{row.megapixels:>5.3g} MP{f'{row.size[1]} x {row.size[0]}':>15}{row.peak_bytes / 1e9:>8.2f} GB"
        seconds = "".join(f"{row.seconds[name]:>9.2f}" for name in STAGES)
        ratio = row.seconds_per_megapixel / rows[0].seconds_per_megapixel
        lines.append(f"{shown}{row.regions:>9}{seconds}{row.seconds_per_megapixel:>10.3f}{ratio:>7.2f}")
    return "\n".join(lines)


def _print_stages(model_name: str, path: str, out: str) -> None:
    """The program of the process that times the stages."""
    from tcl_core.export.base import ImageRegions, create_exporter
    from tcl_core.images import load_image
    from tcl_core.models import load_model
    from tcl_core.regions import label_map_to_regions
    from tcl_core.segmentation.segmenter import Segmenter
    from tcl_core.vocabulary import Vocabulary

    model = load_model(model_name, device="cpu")
    vocabulary, segmenter = Vocabulary.from_options(_LABELS), Segmenter(model)
    # Texts, and whatever is loaded with the first image.
    small = segmenter.segment_image(draw_scene(scene_rng(0, 0)).image, vocabulary)
    label_map_to_regions(small)
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], _Result]) -> _Result:
        started = time.process_time()
        result = work()
        seconds[stage] = time.process_time() - started
        return result

    image = timed("read", lambda: load_image(path, max_pixels=_UNLIMITED))
    features = timed("network", lambda: segmenter.encode(image))
    found = timed("labels", lambda: segmenter.segment(features, vocabulary))
    least = segmenter.speck_area(found.size)
    regions = timed("polygons", lambda: label_map_to_regions(found, min_area=least, small="merge"))

    def write() -> None:
        exporter = create_exporter("coco")
        exporter.open(Path(out), vocabulary, {})
        exporter.add(ImageRegions(Path(path).name, *found.size, regions))
        exporter.close(complete=True, failed=[])

    timed("COCO", write)
    print(json.dumps({"regions": len(regions), "seconds": seconds}))


def _output_of(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SettingsError(f"the stages could not be measured: {_last_line(done.stderr)}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _peak_of(command: Sequence[str]) -> int:
    """Highest resident memory of a program, in bytes."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SettingsError(f"prelabel failed: {_last_line(said.read().decode('utf-8', 'replace'))}")
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
