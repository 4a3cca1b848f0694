"""The built wheel works in an empty environment, far from the checkout.

The environment is filled by an ordinary ``pip install`` of the wheel, PyTorch and all, which takes minutes and
gigabytes. With ``TCL_ANNOTATE_WHEEL_TEST=reuse`` it borrows the libraries of the running environment instead: quick,
but blind to a dependency that the wheel forgets to name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import tcl_core

REPOSITORY = Path(__file__).parents[2]
TOP_LEVEL = {
    "tcl_core",
    "labelstudio_backend",
    "napari_tcl",
    "training",
    f"tcl_annotate-{tcl_core.__version__}.dist-info",
}
ASSETS = (
    "tcl_core/assets/playground.safetensors",
    "tcl_core/models/manifest.json",
    "tcl_core/py.typed",
    "tcl_core/methods/code/noun_rules.yaml",
    "tcl_core/vocabulary/common_names.yaml",
    "napari_tcl/napari.yaml",
    "training/recipes/tcl-one-gpu.yaml",
)
IMAGES = 2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def run(words: Sequence[str | Path], folder: Path) -> str:
    """Run a program in a folder, with nothing of the checkout or of the running environment in its way."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment["TCL_ANNOTATE_HOME"] = str(folder / "home")
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, so that this is tested too."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--outdir", folder, REPOSITORY], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment into which only the wheel was installed; gives the folder of its programs."""
    root = tmp_path_factory.mktemp("elsewhere") / "venv"
    run([sys.executable, "-m", "venv", root], root.parent)
    programs = root / ("Scripts" if os.name == "nt" else "bin")
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        if os.environ.get("TCL_ANNOTATE_WHEEL_TEST") == "reuse":
            run([*install, "--no-deps", wheel], root.parent)
            (site,) = root.glob("Lib/site-packages" if os.name == "nt" else "lib/*/site-packages")
            # A folder named in a .pth file has its own .pth files ignored: an editable install there stays unseen.
            (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        else:
            run([*install, "--constraint", REPOSITORY / "constraints.txt", wheel], root.parent)
        yield programs
    finally:
        # pytest keeps temporary folders; this one is larger than all others together.
        shutil.rmtree(root, ignore_errors=True)


def test_wheel_carries_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == TOP_LEVEL
    assert not [asset for asset in ASSETS if asset not in names]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_source_distribution_carries_what_the_tests_need(wheel: Path) -> None:
    (path,) = wheel.parent.glob("*.tar.gz")
    unpacked = wheel.parent / "unpacked"
    shutil.unpack_archive(path, unpacked, filter="data")
    (root,) = unpacked.iterdir()
    folders = ("tcl_core", "labelstudio_backend", "napari_tcl", "training", "benchmarks", "tests", "docs")
    for name in (*folders, "Makefile", "constraints.txt", "LICENSE", "README.md"):
        assert (root / name).exists(), name
    assert not [path for path in root.rglob("*") if path.name in ("__pycache__", ".venv", "demo-output")]


def test_installed_command_line(environment: Path, tmp_path: Path) -> None:
    program = environment / "tcl-annotate"
    where = run([environment / "python", "-c", "import tcl_core; print(tcl_core.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)
    assert tcl_core.__version__ in run([program, "--version"], tmp_path)
    assert "prelabel" in run([program, "--help"], tmp_path)
    assert "playground  (ready" in run([program, "models", "list"], tmp_path)

    run([program, "playground", "scenes", "--out", "scenes", "--count", str(IMAGES), "--seed", "1"], tmp_path)
    job = ["prelabel", "scenes", "--labels", "scenes/labels.yaml", "--out", "labels.json", "--preview", "preview"]
    run([program, *job], tmp_path)
    run([program, "validate-coco", "labels.json", "--images", "scenes"], tmp_path)
    coco = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert len(coco["images"]) == IMAGES
    assert coco["annotations"]
    assert (tmp_path / "preview" / "index.html").stat().st_size > 0


def test_python_api_of_the_plugin_works_without_napari(environment: Path, tmp_path: Path) -> None:
    code = "import napari_tcl; print(napari_tcl.ImageSession.__name__)"
    assert run([environment / "python", "-c", code], tmp_path).strip() == "ImageSession"


def test_label_studio_without_its_extra_says_what_is_missing(environment: Path, tmp_path: Path) -> None:
    if os.environ.get("TCL_ANNOTATE_WHEEL_TEST") == "reuse":
        pytest.skip("the borrowed libraries have the extra")
    words = [environment / "tcl-annotate", "label-studio", "serve"]
    done = subprocess.run([str(word) for word in words], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "tcl-annotate[label-studio]" in done.stderr


@pytest.mark.parametrize("name", ["benchmarks", "tests"])
def test_no_other_package_is_installed(environment: Path, tmp_path: Path, name: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    assert run([environment / "python", "-c", code], tmp_path).strip() == "None"
