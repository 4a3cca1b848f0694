"""The main job in a process of its own: 2,000 images watched for memory, and some killed, interrupted, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tcl_core.export.coco.validate.validate import validate_coco
from tcl_core.jobs.journal import journal_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

NUMBER = 2000
PART = 150  # images that are enough to be killed, interrupted and resumed among
BAD = ("0120 corrupt.png", "0900 empty.png", "1500 text.jpg", "1900 truncated.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(NUMBER - len(BAD)):
        # Few regions: what is watched is the number of images.
        blocks = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        pixels = blocks.repeat(20, axis=0).repeat(20, axis=1)[:, : 38 if number % 5 else 34]
        Image.fromarray(pixels).save(folder / f"{number:04d}.png", compress_level=1)
    whole = (folder / "0000.png").read_bytes()
    contents = [whole[:40] + bytes(reversed(whole[40:])), b"", b"these are words, not an image\n", whole[:-60]]
    for name, content in zip(BAD, contents, strict=True):
        (folder / name).write_bytes(content)
    return folder


class Run:
    """A run of the command line as a process."""

    def __init__(self, images: Path, model: Path, out: Path, *more: str) -> None:
        self.journal = journal_path(out)
        command = [sys.executable, "-m", "tcl_core.cli", "prelabel", str(images), "--label", "Cat=cat,dog"]
        # Without the decoder, which takes a third of the time and is the same for every image.
        command += ["--label", "Sofa=sofa", "--label", "Tree=tree", "--model", f"maskclip:{model}", "--device", "cpu"]
        command += ["--no-refine", "--out", str(out), "--preview", str(out.with_suffix("")), *more]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.log = open(out.with_suffix(".log"), "a+", encoding="utf-8")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)

    def progress(self) -> Iterator[int]:
        """Images that stand in the journal, again and again until the process ends."""
        lines, position = 0, 0
        while self.process.poll() is None:
            if self.journal.exists():
                with open(self.journal, "rb") as journal:
                    journal.seek(position)
                    new = journal.read()
                lines, position = lines + new.count(b"\n"), position + len(new)
            yield max(0, lines - 1)
            time.sleep(0.02)

    def stop_at(self, count: int, number: signal.Signals) -> int:
        """Send a signal once ``count`` images are done; returns the exit code."""
        for done in self.progress():
            if done >= count:
                self.process.send_signal(number)
                break
        return self.process.wait(timeout=300)

    def resident_megabytes(self) -> float:
        """Of the process and its workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return sum(_resident_megabytes(pid) for pid in (self.process.pid, *map(int, children)))

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()


def _resident_megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def said_and_done(images: Path, model: Path, out: Path) -> dict[str, Any]:
    """The COCO file of a run in one go, after its exit code."""
    whole = Run(images, model, out)
    assert whole.process.wait(timeout=900) == 1, whole.said()
    return json.loads(out.read_text())


def test_memory_stays_flat_over_two_thousand_images(images: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "whole.json"
    # The fitting of polygons takes half of the time and holds nothing from image to image.
    run = Run(images, tiny_model_path, out, "--tolerance", "exact")
    after_200, after_2000 = 0.0, 0.0
    for done in run.progress():
        if done >= 200 and not after_200:
            after_200 = run.resident_megabytes()
        # Once the journal is gone the process only takes itself apart, which brings in pages of its libraries.
        if done >= NUMBER - 60 and run.journal.exists():
            after_2000 = max(after_2000, run.resident_megabytes())
    assert run.process.returncode == 1, run.said()
    assert after_200 > 50 and after_2000 > 50
    print(f"resident memory: {after_200:.0f} MB after 200 images, {after_2000:.0f} MB after {NUMBER}")
    assert after_2000 - after_200 < 50

    data = json.loads(out.read_text())
    assert len(data["images"]) == NUMBER - len(BAD)
    assert [failure["file_name"] for failure in data["info"]["failed"]] == list(BAD)
    assert len(data["annotations"]) > NUMBER - len(BAD)
    assert validate_coco(out, images) == []


def test_killed_interrupted_and_resumed_equals_one_run(images: Path, tiny_model_path: Path, tmp_path: Path) -> None:
    some = tmp_path / "images"
    some.mkdir()
    for path in sorted(images.iterdir())[:PART]:
        (some / path.name).symlink_to(path)
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    assert len(said_and_done(some, tiny_model_path, whole)["info"]["failed"]) == 1

    killed = Run(some, tiny_model_path, parts)
    assert killed.stop_at(PART // 3, signal.SIGKILL) == -signal.SIGKILL
    assert not parts.exists()
    interrupted = Run(some, tiny_model_path, parts, "--resume")
    assert interrupted.stop_at(2 * PART // 3, signal.SIGINT) == 130, interrupted.said()
    partial = json.loads(parts.read_text())
    assert PART // 2 <= len(partial["images"]) < PART - 1
    assert partial["info"]["complete"] is False and validate_coco(parts, some) == []
    resumed = Run(some, tiny_model_path, parts, "--resume")
    assert resumed.process.wait(timeout=900) == 1, resumed.said()

    assert parts.read_bytes() == whole.read_bytes()
    pages = [sorted((tmp_path / name).glob("*.html")) for name in ("whole", "parts")]
    assert len(pages[0]) == len(pages[1]) == -(-PART // 100)
    for one, other in zip(*pages, strict=True):
        assert one.read_text().replace("whole", "parts") == other.read_text()
    assert "Traceback" not in resumed.said()
