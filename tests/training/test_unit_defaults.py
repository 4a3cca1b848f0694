"""The adaptive semantic unit is on by default for exactly the methods that gain by it, as recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tcl_core.evaluation.playground import SEEDS
from tcl_core.methods.registry import list_methods, method_class
from tcl_core.methods.semantic_unit import UNIT, UnitOptions
from tests.docs.pages import REPOSITORY
from training.playground.method_tables import gains_of, key_of

RESULTS = REPOSITORY / "training/playground/results"


def scores(name: str) -> list[dict[str, Any]]:
    content = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    assert content["seeds"] == {which: SEEDS["validation"][which] for which in ("seen", "held-out")}
    return content["scores"]


def gains(found: list[dict[str, Any]]) -> dict[str, bool]:
    """Whether every model of a method gains at the default options, without and with refinement."""
    every: dict[str, bool] = {}
    for model, method in {entry["model"]: entry["method"] for entry in found}.items():
        gained = min(gains_of(found, model)[key_of(UNIT)]) > 0
        every[method] = gained and every.get(method, True)
    return every


def dense_methods() -> list[str]:
    return [name for name in list_methods() if issubclass(method_class(name).options_class, UnitOptions)]


def is_on(method: str) -> bool:
    options = method_class(method).options_class()
    assert isinstance(options, UnitOptions)
    # On the options that were measured, or off.
    assert options.model_dump().items() >= (UNIT if options.unit_points else {}).items()
    return options.unit_points > 0


@pytest.mark.parametrize("method", dense_methods())
def test_on_where_it_gains(method: str) -> None:
    few = gains(scores("unit-thresholds.json"))
    # Those that did not gain on few scenes were not scored on more.
    many = gains(scores("units.json"))
    assert is_on(method) == (few[method] and many[method] if few[method] else False)
