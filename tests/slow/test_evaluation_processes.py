"""Evaluations in processes of their own: killed, two at once, started by torchrun, and of two thousand images."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.core.evaluation_helpers import write_own_data
from tests.forked import run_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FILES = ("result.json", "classes.csv", "images.csv", "confusion.csv")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> list[str]:
    data = write_own_data(tmp_path_factory.mktemp("own data"), 40)
    words = ["evaluate", "--masks", str(data / "masks"), "--images", str(data / "images"), "--device", "cpu"]
    return [*words, "--labels", str(data / "labels.yaml"), "--model", str(tiny_model_path)]


def results(out: Path) -> dict[str, bytes]:
    folder = next(path.parent for path in out.rglob("result.json"))
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    run_python(["-m", "tcl_core.cli", *words, "--out", out]).check_returncode()
    return results(out)


def test_killed_and_resumed(words: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tcl_core.cli", *words, "--out", str(tmp_path)]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    while True:
        journals = list(tmp_path.rglob("journal-0.jsonl"))
        if journals and len(journals[0].read_bytes().splitlines()) > 20:
            process.send_signal(signal.SIGKILL)
            break
        assert process.poll() is None, "it was over before it could be killed"
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.rglob("result.json"))
    run_python(command[1:]).check_returncode()
    assert results(tmp_path) == whole


def test_two_processes(words: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    run_python(["-m", "tcl_core.cli", *words, "--out", tmp_path, "--processes", "2"]).check_returncode()
    assert results(tmp_path) == whole
    assert len(list(tmp_path.rglob("journal-*.jsonl"))) == 2


def test_an_error_in_one_of_two_processes_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    data = write_own_data(tmp_path / "data", 4)
    broken = data / "images/room/image-1.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    command = ["-m", "tcl_core.cli", "evaluate", "--masks", str(data / "masks"), "--images"]
    command += [str(data / "images"), *words[words.index("--device") :], "--out", str(tmp_path / "out")]
    done = run_python([*command, "--processes", "2"])
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error" in line] == [done.stderr.splitlines()[-1]]
    assert "image-1.png" in done.stderr and "Traceback" not in done.stderr


def test_torchrun(words: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29563"]
    command += ["-m", "tcl_core.cli", *words, "--out", str(tmp_path)]
    done = run_python(command, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == whole
    assert done.stdout.count("mIoU") == 1


def test_memory_stays_flat_over_two_thousand_images(tmp_path: Path, tiny_model_path: Path) -> None:
    """Measured after 200 and after 2,000 images, in processes of their own."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    rng = np.random.default_rng(0)
    (tmp_path / "labels.yaml").write_text("[cat, sofa, tree]\n", encoding="utf-8")
    for number in range(2000):
        # Few regions: what is watched is the number of images.
        blocks = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1)
        Image.fromarray(blocks).save(tmp_path / "images" / f"{number:04}.png")
        mask = rng.integers(0, 4, (2, 1), dtype=np.uint8).repeat(20, axis=0).repeat(40, axis=1)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number:04}.png")
    peaks = []
    for limit in (200, 2000):
        words = [
            "evaluate",
            "--masks",
            str(tmp_path / "masks"),
            "--images",
            str(tmp_path / "images"),
            "--device",
            "cpu",
        ]
        words += ["--labels", str(tmp_path / "labels.yaml"), "--model", str(tiny_model_path), "--limit", str(limit)]
        words += ["--refiner", "none"]
        script = "import resource, sys; from tcl_core.cli.main import run; assert run(sys.argv[1:]) == 0; "
        script += "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        done = run_python(["-c", script, *words, "--out", tmp_path / f"out {limit}"], timeout=1800)
        done.check_returncode()
        peaks.append(int(done.stdout.rsplit("PEAK", 1)[1]) / 1024)
    print(f"peak memory {peaks[0]:.0f} MiB after 200 images, {peaks[1]:.0f} MiB after 2,000")
    assert peaks[1] <= peaks[0] + 60
