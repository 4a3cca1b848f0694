"""A package whose entry points cannot be imported costs only itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.forked import run_python

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "data" / "tcl_mini"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with such a package, which also claims names of this one."""
    folder = tmp_path_factory.mktemp("broken package")
    info = folder / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    groups = {"commands": ("aaa", "prelabel"), "methods": ("aaa", "tcl"), "exporters": ("aaa", "coco")}
    lines = []
    for group, names in groups.items():
        lines += [f"[tcl_annotate.{group}]", *(f"{name} = no_such_module:thing" for name in names)]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_python(["-m", "tcl_core.cli", *arguments], env=environment)


def test_the_list_of_commands_shows_it_as_broken(broken: dict[str, str]) -> None:
    done = run(broken, "--help")
    assert done.returncode == 0 and "(cannot be loaded; run it to see why)" in done.stdout
    assert "Label images from text and write a COCO file." in done.stdout


@pytest.mark.parametrize(
    "arguments", [("aaa",), ("segment", DATA / "none.png", "--label", "cup", "--model", "aaa:playground")], ids=str
)
def test_what_is_broken_is_one_sentence_with_the_package(broken: dict[str, str], arguments: tuple[str, ...]) -> None:
    image = Path(broken["PYTHONPATH"]) / "none.png"
    from PIL import Image

    Image.new("RGB", (20, 20)).save(image)
    done = run(broken, *(image if argument == DATA / "none.png" else argument for argument in arguments))
    assert done.returncode == 2
    assert "'aaa' of the package broken cannot be loaded" in done.stderr and done.stderr.count("\n") == 1


def test_everything_else_works(broken: dict[str, str], tmp_path: Path) -> None:
    scenes, out = tmp_path / "scenes", tmp_path / "out.json"
    assert run(broken, "playground", "scenes", "--out", scenes, "--count", "1").returncode == 0
    done = run(broken, "prelabel", scenes, "--labels", scenes / "labels.yaml", "--out", out, "--quiet")
    assert done.returncode == 0 and out.is_file(), done.stderr
    done = run(broken, "models", "import", DATA / "full.pth", "--out", tmp_path / "mini.safetensors")
    assert done.returncode == 0, done.stderr
