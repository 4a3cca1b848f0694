"""Nouns of captions: by rules, and by NLTK where it is installed."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from tcl_core.errors import SettingsError
from tcl_core.methods.code import nouns
from tcl_core.methods.code.noun_rules import nouns_by_rules
from tcl_core.methods.code.nouns import find_nouns, missing_data, noun_ids, use_data, word_labels
from tcl_core.models.download import fetch_file
from tcl_core.models.manifest import load_manifest
from tcl_core.playground import KINDS, STUFF_NAMES, SYNONYMS, caption, draw_scene, scene_rng
from tests.core.code_records import BESIDE, CodeRecord, missing_files


@pytest.fixture(autouse=True)
def forget() -> None:
    """Neither tagger nor captions of another test."""
    nouns._nltk.cache_clear()
    find_nouns.cache_clear()
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("nltk.tokenize")._get_punkt_tokenizer.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a man is riding a horse in the snow", ["man", "horse", "snow"]),
        ("Two dogs playing with a Frisbee in the park.", ["dogs", "Frisbee", "park"]),
        ("the kitchen is clean and has a white refrigerator", ["kitchen", "refrigerator"]),
        ("a set of kitchen knives", ["set", "kitchen", "knives"]),
        ("the train arrives at the station", ["train", "station"]),
        ("an orange on a plate", ["orange", "plate"]),
        ("a building with 12 windows, seen at night", ["building", "windows", "night"]),
        ("this shows a black bus", ["bus"]),
        ("the meaning of the painting", ["meaning", "painting"]),
        ("t-shirts, toothbrush", ["t-shirts", "toothbrush"]),
        ("très joli café", ["très", "joli", "café"]),
        ("", []),
        ("!?", []),
    ],
)
def test_rules(text: str, expected: list[str]) -> None:
    assert nouns_by_rules(text) == expected


def test_rules_find_the_recorded_nouns() -> None:
    """What NLTK found in the official run, except for what depends on its model."""
    # Not the folder of CODE_PARITY_DIR, whose captions need not be sentences.
    folder = BESIDE / "code_small"
    if missing_files(folder):
        pytest.skip(f"no record of CoDe at {folder}")
    numbers = CodeRecord(folder).numbers
    found = [set(nouns_by_rules(text)) for text in numbers["captions"]]
    expected = [set(each) for each in numbers["all_nouns"]]
    common = sum(len(mine & theirs) for mine, theirs in zip(found, expected, strict=True))
    assert common >= 0.7 * sum(map(len, expected))


def test_rules_find_the_things_of_the_playground() -> None:
    things = {*KINDS, *STUFF_NAMES, *(name for names in SYNONYMS.values() for name in names)}
    for index in range(200):
        rng = scene_rng(5, index)
        text = caption(rng, draw_scene(rng, (32, 32), (1, 3), (6, 12)), (), 0.0)
        named = {word.strip(".,") for word in text.split()} & things
        assert named <= set(nouns_by_rules(text)), text


def test_each_noun_once_and_sorted() -> None:
    assert find_nouns("a dog, a cat and another dog by the Dog x", "rules") == ("Dog", "cat", "dog")


def test_labels_follow_the_order_of_the_chosen() -> None:
    text = torch.tensor([90, 5, 6, 7, 5, 8, 91, 0])
    row = lambda *ids: torch.tensor([90, *ids, 91, *[0] * (6 - len(ids))])  # noqa: E731
    everything = torch.stack([row(5, 6), row(8), row(7), row(66)])
    assert word_labels(text, everything, everything[[2, 0]]).tolist() == [-1, 2, 2, 1, -1, 0, -1, -1]
    assert word_labels(text, everything[:0], everything[:0]).tolist() == [-1] * 8
    assert noun_ids(["a", "b", "c"], 2).shape == (2,)


def test_without_nltk_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = importlib.import_module

    def absent(name: str, *rest: Any) -> object:
        if name.startswith("nltk"):
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(SettingsError, match=r"tcl-annotate\[nouns\].*tagger: rules"):
        find_nouns("a dog", "nltk")
    assert find_nouns("a dog", "rules") == ("dog",)


def data_folder(folder: Path) -> Path:
    """NLTK's data as small as it can be: a few known words, and no rules about sentences."""
    tagger = folder / "taggers" / "averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True)
    known = {"The": "DT", "dogs": "NNS", "ran": "VBD", "to": "TO", "Paris": "NNP", "grass": "NN", "on": "IN", ".": "."}
    for name, content in (("weights", {}), ("tagdict", known), ("classes", sorted({*known.values()}))):
        (tagger / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))
    sentences = folder / "tokenizers" / "punkt_tab" / "english"
    sentences.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (sentences / name).write_text("")
    return folder


def test_nltk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pytest.importorskip("nltk.data", reason="NLTK is not installed; it comes with tcl-annotate[nouns]")
    monkeypatch.setattr(data, "path", [str(tmp_path / "nothing")])
    with pytest.raises(SettingsError, match="nltk.downloader punkt_tab averaged_perceptron_tagger_eng"):
        find_nouns("The dogs ran", "nltk")
    monkeypatch.setattr(data, "path", [str(data_folder(tmp_path / "data"))])
    calls = []
    opened = builtins.open
    monkeypatch.setattr(builtins, "open", lambda *a, **k: (calls.append(a[0]), opened(*a, **k))[1])
    assert find_nouns("The dogs ran to Paris. The grass ran on grass.", "nltk") == ("Paris", "dogs", "grass")
    read = len(calls)
    assert find_nouns("The dogs ran on grass.", "nltk") == ("dogs", "grass")
    assert len(calls) == read, "the tagger was read again"


def test_downloaded_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zip files as NLTK publishes them, from a mirror."""
    data = pytest.importorskip("nltk.data", reason="NLTK is not installed; it comes with tcl-annotate[nouns]")
    monkeypatch.setenv("NLTK_DATA", "")
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TCL_ANNOTATE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(data, "path", [])
    made, files = data_folder(tmp_path / "data"), load_manifest().files
    for name, place in (
        ("nltk-sentences", "tokenizers/punkt_tab"),
        ("nltk-tagger", "taggers/averaged_perceptron_tagger_eng"),
    ):
        target = tmp_path / "mirror" / urlsplit(files[name].url).path[1:]
        target.parent.mkdir(parents=True)
        kind, _, package = place.partition("/")
        shutil.make_archive(str(target.with_suffix("")), "zip", made / kind, package)
    assert missing_data() == ("nltk-sentences", "nltk-tagger")
    use_data({name: fetch_file(files[name], progress=False) for name in missing_data()})
    assert missing_data() == () and str(tmp_path / "home") in os.environ["NLTK_DATA"]
    assert find_nouns("The dogs ran to Paris. The grass ran on grass.", "nltk") == ("Paris", "dogs", "grass")


@pytest.mark.parametrize("broken", ["sentences", "tagger", "cut"])
def test_damaged_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """A download that is a proxy's page, cut off, or of another version."""
    data = pytest.importorskip("nltk.data", reason="NLTK is not installed; it comes with tcl-annotate[nouns]")
    folder = data_folder(tmp_path / "data")
    monkeypatch.setattr(data, "path", [str(folder)])
    if broken in ("sentences", "tagger"):
        place = "tokenizers/punkt_tab" if broken == "sentences" else "taggers/averaged_perceptron_tagger_eng"
        named = folder / f"{place}.zip"
        shutil.rmtree(folder / place)
        named.write_text("<html>")
        with pytest.raises(SettingsError, match=f"NLTK's data is damaged .*{named}"):
            missing_data()
    else:
        named = folder / "taggers" / "averaged_perceptron_tagger_eng"
        (named / "averaged_perceptron_tagger_eng.tagdict.json").write_text('{"The": ')
    with pytest.raises(SettingsError, match=f"NLTK's data is damaged .*delete .*{named} .*tagger: rules"):
        find_nouns(f"The dogs ran past {broken}.", "nltk")


def test_no_data_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    assert missing_data() == ()
