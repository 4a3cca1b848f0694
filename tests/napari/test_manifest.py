"""What napari learns of the plugin before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from npe2 import PluginManifest

import napari_tcl
from napari_tcl import sample_data

REPOSITORY = Path(__file__).parents[2]
MANIFEST = Path(napari_tcl.__file__).with_name("napari.yaml")
BINDINGS = {"PyQt5", "PyQt6", "PySide2", "PySide6"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_manifest_is_valid_and_its_commands_exist() -> None:
    pytest.importorskip("qtpy.QtWidgets", reason="Qt cannot be loaded here", exc_type=ImportError)
    manifest = PluginManifest.from_file(MANIFEST)
    # What `npe2 validate --imports` does.
    manifest.validate_imports()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["napari.manifest"] == {project["name"]: "napari_tcl:napari.yaml"}
    assert manifest.name == project["name"]
    assert project["entry-points"]["tcl_annotate.commands"]["napari"] == "napari_tcl.cli:command"


def test_widgets_are_given_the_viewer() -> None:
    """napari passes it on by this name, or where the annotation is its class, and else makes the widget without it."""
    manifest = PluginManifest.from_file(MANIFEST)
    modules = {command.id: str(command.python_name) for command in manifest.contributions.commands or []}
    for widget in manifest.contributions.widgets or []:
        module, _, name = modules[widget.command].partition(":")
        sources = [REPOSITORY / f"{module.replace('.', '/')}{ending}" for ending in (".py", "/main.py")]
        source = next(path for path in sources if path.is_file())
        classes = [node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
        (made,) = [node for node in classes if node.name == name]
        (start,) = [node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        assert [argument.arg for argument in start.args.args] == ["self", "napari_viewer"], name


def test_no_qt_binding_is_asked_for() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["napari"]]
    assert not [text for text in asked if any(binding.lower() in text.lower() for binding in BINDINGS)]
    for path in (REPOSITORY / "napari_tcl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {name.partition(".")[0] for name in names} & BINDINGS, path


@pytest.mark.slow
def test_python_api_needs_neither_napari_nor_qt() -> None:
    code = "import sys, napari_tcl, napari_tcl.model_cache, napari_tcl.writers; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True
    )
    assert not {"napari", "qtpy", "magicgui", *BINDINGS} & set(done.stdout.split())


@pytest.mark.slow
def test_sample_data() -> None:
    for sample in (sample_data.playground_scene, sample_data.playground_stack, sample_data.photograph):
        ((image, attributes, kind),) = sample()
        assert kind == "image" and attributes["rgb"]
        assert image.dtype == np.uint8 and image.shape[-1] == 3
    assert sample_data.playground_stack()[0][0].ndim == 4
