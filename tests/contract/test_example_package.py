"""A method from an installed package works everywhere, with no line of the core changed for it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.forked import run_python
from tests.missing import missing
from tests.napari.conftest import display  # noqa: F401

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "tests" / "example_method"
MODEL = "example-softmax:playground"
LABELS = ["--label", "Sofa=sofa,couch", "--label", "sky", "--label", "house", "--no-background"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(
    words: Sequence[str | Path], packages: Path | None, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, with a folder of installed packages beside it."""
    folders = [str(REPOSITORY), *([] if packages is None else [str(packages)])]
    environment = {**os.environ, **(more or {}), "PYTHONPATH": os.pathsep.join(folders)}
    if words[0] in ("-m", "-c") and words[1] != "pip":
        return run_python(words, env=environment, cwd=REPOSITORY)
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, encoding="utf-8")


def tcl_annotate(words: Sequence[str | Path], packages: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return run(["-m", "tcl_core.cli.main", *words], packages)


def pytest_passes(words: Sequence[str | Path], packages: Path) -> str:
    """Run pytest and give what it printed."""
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *words], packages)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example was installed as any package is."""
    target = tmp_path_factory.mktemp("packages")
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(target)]
    if importlib.util.find_spec("hatchling") is not None:
        # Without a network.
        install.append("--no-build-isolation")
    done = run([*install, SOURCE], None)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def scenes(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("playground") / "scenes"
    words = ["playground", "scenes", "--out", folder, "--count", "2", "--size", "160", "120"]
    assert tcl_annotate(words, packages).returncode == 0
    return folder


@pytest.fixture(scope="module")
def scene(scenes: Path) -> Path:
    return sorted(path for path in scenes.iterdir() if path.suffix in (".png", ".jpg"))[0]


def test_it_is_unknown_unless_installed() -> None:
    done = run(["-c", "from tcl_core.methods import list_methods; print('example-softmax' in list_methods())"], None)
    assert done.stdout.strip() == "False", done.stderr


def test_contract_suite_passes(packages: Path) -> None:
    words = ["tests/contract/test_methods.py", "tests/contract/test_segmentation.py", "-k", "example-softmax"]
    summary = pytest_passes(words, packages).splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 50, summary


def test_doctests_pass(packages: Path) -> None:
    assert "1 passed" in pytest_passes(["--doctest-modules", "--pyargs", "tcl_annotate_example.method"], packages)


def test_front_ends(packages: Path) -> None:
    """See ``cases_of_example.py``: the registry, and the Label Studio server."""
    pytest_passes(["tests/contract/cases_of_example.py"], packages)


def test_options_are_listed(packages: Path) -> None:
    done = tcl_annotate(["models", "options", MODEL], packages)
    assert done.returncode == 0, done.stderr
    assert "example-softmax:playground: method example-softmax, 2 options" in done.stdout
    assert "scale=20.0" in done.stdout and "affects scores" in done.stdout
    assert "smooth=True" in done.stdout and "affects features" in done.stdout


def test_segment(packages: Path, scene: Path, tmp_path: Path) -> None:
    found = {}
    for name, option in (("plain", []), ("scaled", ["--option", "scale=10"]), ("rough", ["--option", "smooth=false"])):
        out = tmp_path / f"{name}.json"
        done = tcl_annotate(["segment", scene, *LABELS, "--model", MODEL, *option, "--json", out], packages)
        assert done.returncode == 0, done.stderr
        assert f"model {MODEL}" in done.stdout
        found[name] = json.loads(out.read_text(encoding="utf-8"))
        assert found[name]["annotations"]
    texts = {name: json.dumps(coco["info"]) for name, coco in found.items()}
    assert "example-softmax" in texts["plain"] and len(set(texts.values())) == 3


def test_prelabel(packages: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    words = ["prelabel", scenes, "--labels", scenes / "labels.yaml", "--no-background", "--model", MODEL, "--out", out]
    done = tcl_annotate([*words, "--option", "scale=10"], packages)
    assert done.returncode == 0, done.stderr
    coco = json.loads(out.read_text(encoding="utf-8"))
    assert len(coco["images"]) == 2 and len({a["category_id"] for a in coco["annotations"]}) > 1
    done = tcl_annotate(["validate-coco", out, "--images", scenes], packages)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("slope=1", ("'slope'", "scale, smooth")),
        ("scale=0", ("option scale", "greater than 0")),
        ("smooth=perhaps", ("option smooth", "boolean")),
    ],
)
def test_option_that_cannot_be(packages: Path, scene: Path, option: str, parts: tuple[str, ...]) -> None:
    done = tcl_annotate(["segment", scene, *LABELS, "--model", MODEL, "--option", option], packages)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert all(part in done.stderr for part in parts), done.stderr


def test_napari_widget(packages: Path, display: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    if importlib.util.find_spec("PyQt6") is None:
        missing("windows need PyQt6 (pip install PyQt6)")
    more = {**display, "QT_API": "pyqt6", "NAPARI_CONFIG": str(tmp_path / "settings.yaml")}
    more["TCL_ANNOTATE_CONFIG"] = str(tmp_path)
    done = run(["-X", "faulthandler", "-m", "tests.contract.example_window"], packages, more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "segmented"


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("import a_package_that_is_not_there\n", "No module named 'a_package_that_is_not_there'"),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError: two lines"),
        ("class Broken:\n    pass\n", "is not a sub-class of Method"),
    ],
)
def test_broken_package_is_one_sentence(scene: Path, tmp_path: Path, source: str, part: str) -> None:
    (tmp_path / "broken_method.py").write_text(source)
    about = tmp_path / "broken_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[tcl_annotate.methods]\nbroken = broken_method:Broken\n")
    done = tcl_annotate(["segment", scene, *LABELS, "--model", "broken:playground"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: The method 'broken' of the package broken-")
    assert part in done.stderr and "update or uninstall" in done.stderr
    done = tcl_annotate(["segment", scene, *LABELS], tmp_path)
    assert done.returncode == 0, done.stderr
