from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import napari_tcl.cli
from tcl_core.errors import TclError
from tests.napari.test_manifest import REPOSITORY


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(napari_tcl.cli, "_NEEDED", ())
    monkeypatch.setattr(napari_tcl.cli, "_BINDINGS", ("sys",))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def refusal(*words: str | Path) -> str:
    done = CliRunner().invoke(napari_tcl.cli.command, [str(word) for word in words])
    assert isinstance(done.exception, TclError), done.output
    return str(done.exception)


def test_what_is_wrong_is_said_before_a_window_opens(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("labels: [cat, cat]\n")
    for words, message in (
        ((photo, tmp_path / "b.png"), "b.png: does not exist; check the path"),
        ((photo, tmp_path), "is a folder; give a single folder"),
        (("",), "the path is empty"),
        ((photo, "--labels", tmp_path / "labels.yaml"), "labels.yaml"),
        ((photo, "--labels", tmp_path / "missing.yaml"), "missing.yaml"),
        ((photo, "--background-threshold", "0.5"), "no labels"),
        ((photo, "--model", "giraffe"), "no model and no file called 'giraffe'"),
        ((photo, "--model", "naclip:ViT-B-32/openai"), "models fetch"),
        ((photo, "--model", "playground", "--option", "no_such=1"), "'no_such': the method has no such option"),
        ((photo, "--option", "kp_weight"), "NAME=VALUE"),
        ((photo, "--tolerance", "rough"), "'rough' is not known"),
        ((photo, "--tolerance", "9"), "the largest polygon tolerance in the widget is 8"),
        ((photo, "--device", "toaster"), "'toaster' is unknown"),
        ((photo, "--device", "cpu", "--precision", "float16"), "needs a CUDA device"),
        ((photo, "--backend", "toaster"), "--backend: backend 'toaster' is unknown"),
    ):
        assert message in refusal(*words), words


def test_paths_stay_right_in_another_folder(
    photo: Path, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The widget stores masks beside the folder, and remembers the model file."""
    wishes: list[tuple[Any, ...]] = []
    window = SimpleNamespace(Wishes=lambda *wished: wished, open_window=wishes.append, run=lambda: None)
    monkeypatch.setitem(sys.modules, "napari_tcl.window", window)
    model = shutil.copy(tiny_model_path, tmp_path / "own.safetensors")
    monkeypatch.chdir(tmp_path)
    for words in ((".", "--model", "own.safetensors"), ("a.png", "--model", "maskclip:own.safetensors"), ("a.png",)):
        assert CliRunner().invoke(napari_tcl.cli.command, words, standalone_mode=False).return_value == 0
    assert [(wished[1], wished[3]) for wished in wishes] == [
        (tmp_path, str(model)),
        (None, f"maskclip:{model}"),
        (None, None),
    ]
    wishes.clear()
    assert CliRunner().invoke(napari_tcl.cli.command, ["a.png", "--model", "playground"]).exit_code == 0
    assert wishes[0][3] == "playground"


def test_what_is_not_installed_is_named(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    real = importlib.util.find_spec
    gone: set[str] = set()

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in gone else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    gone |= {"napari", "npe2"}
    assert refusal(photo) == (
        'napari: needs napari, npe2, which is not installed; run pip install "tcl-annotate[napari]" PyQt6'
    )
    gone.clear()
    gone |= {"PyQt6", "PySide6", "PyQt5", "PySide2"}
    assert "needs a Qt binding, and none is installed; run pip install PyQt6" in refusal(photo)
    gone.clear()
    if sys.platform == "linux":
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
            monkeypatch.delenv(name, raising=False)
        assert "there is no display" in refusal(photo)


@pytest.mark.slow
def test_torch_comes_after_triton_and_not_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    # One that is asked for, and then seems not to be installed.
    stand_in = "import sys; vars(sys).setdefault('triton_first', 'torch' not in sys.modules); raise ImportError\n"
    (tmp_path / "triton" / "__init__.py").write_text(stand_in)
    code = """
import importlib, os, sys
def check(what, with_torch):
    child = os.fork()
    if child == 0:
        try:
            module, _, name = what.partition(":")
            found = importlib.import_module(module)
            name and getattr(found, name)
            assert ("torch" in sys.modules) == with_torch, f"{what}: torch"
            assert not with_torch or sys.triton_first, f"{what}: triton"
        except BaseException as error:
            print(what, repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
check("napari_tcl.cli:command", False)
check("napari_tcl.widget:SegmentWidget", True)
"""
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "QT_QPA_PLATFORM": "offscreen", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
