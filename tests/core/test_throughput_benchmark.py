"""What a pipeline is said to do is what a simulation of it does, from stages that were measured."""

from __future__ import annotations

import heapq
import time
from pathlib import Path

import pytest
import torch

from tcl_core.benchmarks.throughput import Throughput, format_pipelines, format_stages, make_images, measure
from tcl_core.cli.main import run
from tcl_core.errors import SettingsError
from tcl_core.jobs.inputs import find_images
from tcl_core.models import load_model
from tcl_core.segmentation.segmenter import Segmenter
from tests.core.test_prelabel import VOCABULARY, save_image


def simulated_rate(stages: Throughput, cores: int, devices: int, images: int = 3000) -> float:
    """Images a second of a queue for each resource; whoever is free takes what is furthest."""
    network_on = "core" if stages.shared else "device"
    route = [("core", stages.read), (network_on, stages.network), ("core", stages.trace), ("writer", stages.write)]
    free = {"core": cores, "device": devices, "writer": 1}
    waiting: list[list[int]] = [[] for _ in route]
    waiting[0] = list(range(images))
    running: list[tuple[float, int, int]] = []
    now = 0.0
    while running or any(waiting):
        for stage in reversed(range(len(route))):
            where, seconds = route[stage]
            while waiting[stage] and free[where]:
                free[where] -= 1
                heapq.heappush(running, (now + seconds, waiting[stage].pop(), stage))
        now, image, stage = heapq.heappop(running)
        free[route[stage][0]] += 1
        if stage + 1 < len(route):
            waiting[stage + 1].append(image)
    return images / now


@pytest.mark.parametrize(
    ("cores", "devices", "shared", "limit"),
    [
        (1, 1, False, "cores"),
        (3, 1, False, "cores"),
        (12, 1, False, "devices"),
        (30, 4, False, "devices"),
        (200, 40, False, "writing"),
        (1, 0, True, "cores"),
        (16, 0, True, "cores"),
    ],
)
def test_rates_are_those_of_a_simulation(cores: int, devices: int, shared: bool, limit: str) -> None:
    stages = Throughput(read=0.03, network=0.008, trace=0.02, write=0.0009, export=0.0, shared=shared)
    assert stages.rate(cores, devices) == pytest.approx(simulated_rate(stages, cores, devices), rel=0.03)
    assert stages.bottleneck(cores, devices) == limit


def test_saturation_is_where_more_do_not_help() -> None:
    stages = Throughput(read=0.03, network=0.008, trace=0.02, write=0.0009, export=0.0)
    enough = stages.cores_of_device
    assert stages.rate(int(enough), 1) < stages.rate(int(enough) + 1, 1) == stages.rate(1000, 1)
    assert stages.bottleneck(10**6, stages.most) == "writing" != stages.bottleneck(10**6, stages.most - 1)


def test_hours_and_cost() -> None:
    stages = Throughput(read=0.1, network=0.05, trace=0.1, write=0.001, export=0.036)
    assert stages.hours(100_000, cores=2, devices=1) == pytest.approx(100_000 * (0.1 + 0.036) / 3600)
    lines = format_pipelines(stages, [(2, 1), (4, 1)], 100_000, price=3.0).splitlines()
    assert lines[1].split() == ["2", "1", "10.0", "cores", "3.8", "11.33"]
    # Twice the cores, twice the price of an hour.
    assert lines[2].split() == ["4", "1", "20.0", "cores", "2.4", "14.33"]


def test_stages_are_measured(tmp_path: Path, tiny_model_path: Path) -> None:
    images, vocabulary = make_images(tmp_path, 3, (96, 128))
    assert [path.suffix for path in images.local_paths()] == [".jpg"] * 3 and len(vocabulary.labels) > 1
    segmenter = Segmenter(load_model(tiny_model_path, device="cpu"), refine=False, batch_size=2)
    begin = time.perf_counter()
    found = measure(segmenter, VOCABULARY, images, repeats=1)
    seconds = (time.perf_counter() - begin) / len(images)
    stages = (found.read, found.network, found.trace, found.write, found.export)
    # They do not overlap, and one of two runs is left out.
    assert min(stages) > 0 and sum(stages) < seconds and found.shared
    assert f"{1000 * found.trace:.2f}" in format_stages(found, images)
    save_image(tmp_path / "scene-0002.jpg")
    (tmp_path / "scene-0003.jpg").write_text("broken")
    with pytest.raises(SettingsError, match="scene-0003.jpg: .*; measure with images that can be labeled"):
        measure(segmenter, VOCABULARY, find_images([str(tmp_path)], exclude=[tmp_path / "labels.yaml"]), repeats=1)


def test_the_command(tmp_path: Path, tiny_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels.yaml").write_text("labels: [cat, sofa]\n")
    words = ["benchmark", "throughput", "--model", str(tiny_model_path), "--device", "cpu", "--no-refine"]
    words += ["--images", str(tmp_path / "images")]
    try:
        assert run([*words, "--labels", str(tmp_path / "labels.yaml"), "--repeats", "1", "--pipeline", "8"]) == 0
        printed = capsys.readouterr().out
        assert (
            "on cpu with" in printed
            and "hours for 1,000,000" in printed
            and printed.splitlines()[-1].startswith("    8 ")
        )
        assert run(words) == 2
        assert "--images and --labels belong together" in capsys.readouterr().err
        assert run([*words, "--pipeline", "0"]) == 2
        assert "CORES:DEVICES" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
