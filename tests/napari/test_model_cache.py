from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from napari_tcl.model_cache import Engine, ModelChoice
from tcl_core.errors import SettingsError
from tcl_core.models import Model


def test_the_chosen_backend_runs_the_network(tiny_model_path: Path) -> None:
    engine, choice = Engine(), ModelChoice(str(tiny_model_path), device="cpu", backend="torch")
    first = engine.segmenter(choice)
    assert engine.segmenter(replace(choice, refine=False)).model is first.model
    other = engine.segmenter(replace(choice, backend="compile"))
    assert isinstance(other.model, Model)
    assert (first.model.backend.name, other.model.backend.name) == ("torch", "compile")
    with pytest.raises(SettingsError, match="backend 'fast' is unknown"):
        engine.segmenter(replace(choice, backend="fast"))
    assert engine.loaded is other
