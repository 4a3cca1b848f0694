from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from napari_tcl.user_settings import (
    CONFIG_VARIABLE,
    RememberedLabel,
    UserSettings,
    load_settings,
    save_settings,
    settings_path,
)

FULL = UserSettings(
    model="tcl-vit-b16",
    model_file="/models/b\udcffd.safetensors",
    options="unit_points=196, kp_weight=0.2",
    templates="simple",
    folder="/photos/b\udcffd",
    labels=[
        RememberedLabel(name="Käse", prompts="cheese, gouda", color=[1, 2, 3], threshold=0.25, visible=False, value=7)
    ],
    threshold=0.75,
    tolerance=0.5,
    folded={"model": False},
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "napari.json"
    assert load_settings(path) == (UserSettings(), "")
    save_settings(path, FULL)
    assert load_settings(path) == (FULL, "")
    save_settings(path, UserSettings())
    assert load_settings(path) == (UserSettings(), "")
    assert [item.name for item in path.parent.iterdir()] == ["napari.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "1", '"x"', "\xff", "[" * 100_000, " " * (1 << 21)])
def test_a_damaged_file_is_set_aside(content: str, tmp_path: Path) -> None:
    path = tmp_path / "napari.json"
    path.write_bytes(content.encode("latin-1"))
    settings, word = load_settings(path)
    assert settings == UserSettings()
    assert (
        word
        == f"{path}: the remembered settings are damaged; defaults are used, and the file is kept as {path.name}.bad"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["napari.json.bad"]
    assert load_settings(path) == (UserSettings(), "")


def test_single_values_that_are_wrong_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "napari.json"
    wrong = {
        "threshold": 7,
        "refine": "yes",
        "labels": [{"name": "Cat", "color": [1, 2]}],
        "folded": {"model": 1},
        "tolerance": None,
        "min_area": 12,
    }
    path.write_text(json.dumps({"model": "tiny", "from_a_later_version": [1], **wrong}))
    settings, word = load_settings(path)
    assert settings == UserSettings(model="tiny")
    assert all(name in word for name in wrong) and "later" not in word


def test_a_folder_that_cannot_be_written_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_settings(tmp_path / "file" / "napari.json", FULL)
    (tmp_path / "napari.json").mkdir()
    settings, word = load_settings(tmp_path / "napari.json")
    assert settings == UserSettings() and "cannot be read" in word
    with pytest.raises(OSError):
        save_settings(tmp_path / "napari.json", FULL)
    assert sorted(os.listdir(tmp_path)) == ["file", "napari.json"]


def test_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path))
    assert settings_path() == tmp_path / "napari.json"
    monkeypatch.delenv(CONFIG_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert settings_path() == tmp_path / "tcl-annotate" / "napari.json"
