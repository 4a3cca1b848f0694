"""Values from files are checked, and what is wrong with them is said in one sentence."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field
from safetensors import safe_open

from tcl_core.errors import SettingsError, WeightsError
from tcl_core.models.manifest import parse_manifest
from tcl_core.models.metadata import METADATA_KEY, ModelMetadata, Preprocess
from tcl_core.segmentation import preprocess
from tcl_core.validation import FiniteNumber, KeysOf, StrictFields, Text, WholeNumber, checked, validated

REPOSITORY = Path(__file__).parents[2]


class Inner(BaseModel, extra="forbid"):
    low: FiniteNumber
    high: FiniteNumber = 1.0


@dataclasses.dataclass(frozen=True)
class Plain:
    count: int = 1
    size: str | float = "fine"


@checked("thing", SettingsError)
class Thing:
    name: Text
    number: Annotated[WholeNumber, Field(ge=1)] = 1
    pair: tuple[FiniteNumber, FiniteNumber] = (0.0, 1.0)
    inner: Annotated[dict[str, float], KeysOf(Inner, or_empty=True)] = dataclasses.field(default_factory=dict)
    plain: Annotated[Plain, StrictFields()] = dataclasses.field(default_factory=Plain)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "f: missing keys: name"),
        ({"name": "a", "nam": 1, "b": 2}, "f: unknown keys: b, nam; the keys are name, number, pair, inner, plain"),
        ({"name": ""}, "f: name must be text that is not empty, not ''"),
        ({"name": "a", "number": True}, "f: number must be a whole number, not True"),
        ({"name": "a", "number": 2.0}, "f: number must be a whole number, not 2.0"),
        ({"name": "a", "pair": [1]}, "f: pair: too few values, number 2 is missing"),
        ({"name": "a", "pair": [1, float("inf")]}, "f: pair.1 must be a finite number, not inf"),
        ({"name": "a", "inner": {"high": 2}}, "f: inner: missing keys: low"),
        ({"name": "a", "inner": {"low": 2, "x": 1}}, "f: inner: unknown keys: x; the keys are low, high"),
        ({"name": "a", "plain": 3}, "f: plain must be a mapping, not 3"),
        ({"name": "a", "plain": {"count": "1"}}, "f: plain.count must be a whole number, not '1'"),
        ({"name": "a", "plain": {"size": [1]}}, r"f: plain.size must be text or a number, not \[1\]"),
        ({"name": "a", 3: 1}, "f: unknown keys: 3; the keys are"),
    ],
)
def test_one_sentence(entry: dict[Any, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"^{message}") as error:
        validated(Thing, entry, "f", SettingsError)
    assert "pydantic" not in str(error.value) and "\n" not in str(error.value)


def test_long_input_is_cut() -> None:
    with pytest.raises(SettingsError) as error:
        Thing("a", inner={str(i) * 50: i for i in range(50)})  # type: ignore[arg-type]
    assert len(str(error.value)) < 200
    with pytest.raises(SettingsError) as error:
        Thing("a", number="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(error.value)) < 200


def test_constructors_check_and_copies_are_equal() -> None:
    thing = Thing("a", inner={"low": 1})
    assert thing.inner == {"low": 1.0} and Thing("a").inner == {}
    assert copy.deepcopy(thing) == thing == pickle.loads(pickle.dumps(thing)) == dataclasses.replace(thing)
    with pytest.raises(SettingsError, match="^thing: name must be text, not 3"):
        Thing(3)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="^thing: number must be at least 1, not 0"):
        dataclasses.replace(thing, number=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        thing.name = "b"  # type: ignore[misc]


def test_the_embedded_model_keeps_its_description() -> None:
    with safe_open(REPOSITORY / "tcl_core" / "assets" / "playground.safetensors", framework="np") as file:
        text = file.metadata()[METADATA_KEY]
    assert ModelMetadata.from_dict(json.loads(text)).to_json() == text


def test_preprocess_has_one_home() -> None:
    from tcl_core import models

    assert models.Preprocess is Preprocess is preprocess.Preprocess


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("files.f.size", True, "manifest: files.f.size must be a whole number"),
        ("files.f.url", "ftp://x", "manifest: files.f.url must be an http or https URL"),
        ("files.f.shade", 1, "manifest: files.f: unknown keys: shade; the keys are name, filename"),
        ("models.m.checkpoint", "f", "manifest: models.m: needs either an asset or a checkpoint"),
        ("models.m.clip", "g", "manifest: models.m.clip refers to the file 'g', which is not listed"),
        ("files", [], "manifest: files must be a mapping"),
        ("format", 2, "manifest: format must be 1, not 2"),
    ],
)
def test_a_manifest_that_cannot_be_used(place: str, value: Any, message: str) -> None:
    described = {"license": "MIT", "source": "s"}
    manifest: dict[str, Any] = {
        "format": 1,
        "files": {"f": {"filename": "f.pth", "url": "https://x/f.pth", **described}},
        "models": {"m": {"method": "tcl", "description": "d", "asset": "a", **described}},
        "clips": {},
    }
    parse_manifest(manifest)
    target = manifest
    *parents, key = place.split(".")
    for parent in parents:
        target = target[parent]
    target[key] = value
    with pytest.raises(WeightsError, match=f"^{message}"):
        parse_manifest(manifest)
