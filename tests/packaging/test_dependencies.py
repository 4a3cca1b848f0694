"""What the package imports is what it says it needs."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def imported_packages(folder: Path) -> set[str]:
    """Top-level names of everything that the modules of a folder import."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        # Runs in an environment of its own, see tests/readers/requirements.txt.
        if path == REPOSITORY / "tests" / "readers" / "read_coco.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names


def canonical(name: str) -> str:
    """Distribution name in the form that all spellings share."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_distributions(folder: str) -> set[str]:
    """Distributions that a folder of the repository imports, ours and the standard library left out."""
    ours = {"tcl_core", "labelstudio_backend", "napari_tcl", "training", "benchmarks", "tests"}
    # The adapter is imported by label-studio-ml, so that is there whenever the adapter is; Triton is imported only
    # where PyTorch brought it.
    # Ray is in an environment of its own, see tests/cluster/environment.py.
    brought = {"label_studio_ml", "triton", "ray"}
    foreign = imported_packages(REPOSITORY / folder) - set(sys.stdlib_module_names) - ours - brought
    distributions = packages_distributions()
    assert not {name for name in foreign if name not in distributions}
    return {canonical(distributions[name][0]) for name in foreign}


def declared_distributions(*extras: str) -> set[str]:
    """Distributions that the package asks for, by itself and with extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    # An extra of another extra is that other one's.
    texts = [text for text in texts if not text.startswith("tcl-annotate[")]
    return {canonical(re.split(r"[<>=\[; ]", text, maxsplit=1)[0]) for text in texts}


def test_dependencies_are_those_that_are_imported() -> None:
    assert imported_distributions("tcl_core") == declared_distributions(
        "groupvit", "heif", "hub-tokenizers", "int8", "openvino", "reco"
    )


def test_the_napari_extra_has_all_that_the_plugin_imports() -> None:
    assert imported_distributions("napari_tcl") <= declared_distributions("napari")


def test_the_label_studio_extra_has_all_that_the_backend_imports() -> None:
    extra = declared_distributions("label-studio") - declared_distributions()
    imported = imported_distributions("labelstudio_backend")
    assert extra <= imported <= declared_distributions("label-studio")


def test_the_train_extra_has_all_that_the_engine_imports() -> None:
    extra = declared_distributions("train") - declared_distributions()
    assert extra <= imported_distributions("training") <= declared_distributions("train")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["benchmarks", "tests", "docs"])
def test_the_test_extra_has_all_that_the_rest_imports(folder: str) -> None:
    assert imported_distributions(folder) <= declared_distributions(
        "test", "docs", "heif", "label-studio", "napari", "train"
    )


def test_library_does_not_import_training_or_tests() -> None:
    assert not imported_packages(REPOSITORY / "tcl_core") & {"training", "tests", "labelstudio_backend", "napari_tcl"}


def test_constraints_name_versions_and_no_registry() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", pin) for pin in pins)
