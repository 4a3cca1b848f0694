"""How many images a second some cores and devices label, from what each stage takes here.

The stages of a job are measured one by one in a job of one process. What a pipeline makes of them is arithmetic: stages
that share cores add up, and the slowest of those that do not sets the pace.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tcl_core.errors import SettingsError
from tcl_core.export.coco import CocoExporter
from tcl_core.images import image_size
from tcl_core.jobs.inputs import ImageList, find_images
from tcl_core.jobs.job import run_prelabel
from tcl_core.jobs.ray_cluster import RayCluster
from tcl_core.jobs.times import STAGES
from tcl_core.playground.export import write_scenes
from tcl_core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tcl_core.segmentation.segmenter import Segmenter

__all__ = ["Throughput", "format_pipelines", "format_stages", "make_images", "measure", "measure_ray"]

_SECONDS_OF_HOUR = 3600


@dataclass(frozen=True)
class Throughput:
    """Seconds that an image takes in each stage.

    Attributes:
        read: decoding and resizing, on one core.
        network: network, scores and arg-max, on one device, or on one core.
        trace: regions and polygons, on one core.
        write: the journal, by the one process that has it.
        export: the final file, by the same process after all images.
        shared: whether the network runs on the cores that read and trace, for want of a device.
        bytes_of_image: that an image takes in the final file.

    Example:
        >>> gpu = Throughput(read=0.02, network=0.01, trace=0.02, write=0.001, export=0.0005)
        >>> gpu.rate(cores=2, devices=1), gpu.rate(cores=8, devices=1), gpu.rate(cores=8, devices=2)
        (50.0, 100.0, 200.0)
        >>> gpu.bottleneck(2, 1), gpu.bottleneck(8, 1), gpu.cores_of_device
        ('cores', 'devices', 4.0)
        >>> gpu.rate(cores=10_000, devices=10_000), gpu.bottleneck(10_000, 10_000)
        (1000.0, 'writing')
        >>> Throughput(read=0.02, network=0.46, trace=0.02, write=0.001, export=0.0005, shared=True).rate(4)
        8.0
    """

    read: float
    network: float
    trace: float
    write: float
    export: float
    shared: bool = False
    bytes_of_image: float = 0.0

    def _limits(self, cores: int, devices: int) -> dict[str, float]:
        on_cores = self.read + self.trace + (self.network if self.shared else 0.0)
        limits = {"cores": cores / on_cores, "writing": 1 / self.write}
        return limits if self.shared else {**limits, "devices": devices / self.network}

    def rate(self, cores: int, devices: int = 0) -> float:
        """Images a second, while there are images.

        Args:
            cores: that read and trace, and run the network if `shared`.
            devices: that run the network, unless `shared`.
        """
        return round(min(self._limits(cores, devices).values()), 6)

    def bottleneck(self, cores: int, devices: int = 0) -> str:
        """What the others wait for: ``cores``, ``devices`` or ``writing``."""
        limits = self._limits(cores, devices)
        return min(limits, key=lambda name: limits[name])

    def hours(self, images: int, cores: int, devices: int = 0) -> float:
        """Hours that so many images take, with the final file."""
        return images * (1 / self.rate(cores, devices) + self.export) / _SECONDS_OF_HOUR

    @property
    def cores_of_device(self) -> float:
        """With so many cores for each device, more do not help."""
        return (self.read + self.trace) / self.network

    @property
    def most(self) -> int:
        """Devices, or cores if `shared`, from which on one process cannot write what they make."""
        each = self.read + self.trace + self.network if self.shared else self.network
        return math.ceil(each / self.write)


class _Timed(CocoExporter):
    """COCO; knows how long its file took."""

    seconds = 0.0

    def open(self, *arguments: Any, **options: Any) -> None:
        self._begun = time.perf_counter()
        super().open(*arguments, **options)

    def close(self, *arguments: Any, **options: Any) -> None:
        super().close(*arguments, **options)
        self.seconds = time.perf_counter() - self._begun


def make_images(folder: Path, count: int, size: tuple[int, int]) -> tuple[ImageList, Vocabulary]:
    """Draw scenes of the playground, as JPEG files, and take the labels of what they show.

    Args:
        folder: for them.
        count: how many.
        size: height and width in pixels.
    """
    for path in write_scenes(folder, count, seed=0, size=size):
        with Image.open(path) as image:
            image.save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    return find_images([str(folder)], exclude=[folder / "labels.yaml"]), Vocabulary.from_file(folder / "labels.yaml")


def measure(segmenter: Segmenter, vocabulary: Vocabulary, images: ImageList, repeats: int = 3) -> Throughput:
    """Label images in one process, and take the shortest time of each stage.

    Args:
        segmenter: the model and its settings; on the processor it should have one thread.
        vocabulary: the labels.
        images: what to label; as many as make a few batches.
        repeats: how often, besides a first time that does not count.

    Raises:
        SettingsError: an image cannot be labeled.
    """
    runs = [_run(segmenter, vocabulary, images) for _ in range(repeats + 1)][1:]
    shortest = {name: min(run[name] for run in runs) for name in (*STAGES, "export")}
    shared = segmenter.model.device.type == "cpu"
    return Throughput(**shortest, shared=shared, bytes_of_image=runs[0]["bytes_of_image"])


def _run(segmenter: Segmenter, vocabulary: Vocabulary, images: ImageList) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        out, exporter = Path(folder) / "out.json", _Timed()
        summary = run_prelabel(images, segmenter, vocabulary, out, exporter)
        size = out.stat().st_size
    if summary.failed:
        name, reason = next(iter(summary.failed.items()))
        raise SettingsError(f"{name}: {reason}; measure with images that can be labeled")
    seconds = {name: float(getattr(summary.stages, name)) for name in STAGES}
    return {
        name: value / len(images)
        for name, value in {**seconds, "export": exporter.seconds, "bytes_of_image": float(size)}.items()
    }


def measure_ray(segmenter: Segmenter, vocabulary: Vocabulary, images: ImageList, cluster: RayCluster) -> float:
    """Images a second of a job on a cluster, from the first worker that is ready to the last image."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        summary = run_prelabel(images, segmenter, vocabulary, out, CocoExporter(), cluster=cluster)
    return summary.done / summary.stages.elapsed


def format_stages(found: Throughput, images: ImageList) -> str:
    """A table of the stages, and what follows from it alone."""
    where = "core" if found.shared else "device"
    rows = [
        ("read", found.read, "core"),
        ("network", found.network, where),
        ("trace", found.trace, "core"),
        ("write", found.write, "job"),
        ("final file", found.export, "job"),
    ]
    height, width = image_size(images.path(0))
    lines = [f"{len(images)} images, the first of {width} x {height}", "stage        ms an image   images a second"]
    lines += [f"{name:<12} {1000 * value:>11.2f} {1 / value:>9.1f} per {unit}" for name, value, unit in rows]
    if not found.shared:
        lines.append(f"a device is busy with {found.cores_of_device:.1f} cores or more")
    lines.append(
        f"one process can write for {found.most:,} {where}s; an image takes {found.bytes_of_image / 1e3:.1f} kB"
    )
    return "\n".join(lines)


def format_pipelines(
    found: Throughput, pipelines: Sequence[tuple[int, int]], images: int, price: float | None = None
) -> str:
    """A table of what many images take on several pipelines.

    Args:
        found: the stages.
        pipelines: cores and devices of each.
        images: how many.
        price: of an hour of the first pipeline; the others cost in proportion to their cores.

    Returns:
        One line for each.
    """
    lines = ["cores devices  images a second  limit     " + f"hours for {images:,}" + ("      cost" if price else "")]
    for cores, devices in pipelines:
        hours = found.hours(images, cores, devices)
        line = f"{cores:>5} {devices:>7} {found.rate(cores, devices):>16.1f}  {found.bottleneck(cores, devices):<9} "
        line += f"{hours:>{len(f'hours for {images:,}')}.1f}"
        lines.append(line + (f"{hours * price * cores / pipelines[0][0]:>10.2f}" if price else ""))
    return "\n".join(lines)
