from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from labelstudio_backend.interactive import answer_command
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.prompts import PromptStore, TypedPrompt, read_typed
from labelstudio_backend.requests import Asked, Context
from tcl_core.errors import SettingsError, VocabularyError

CONFIG = parse_labeling_config(
    '<View><Image name="image" value="$image"/><TextArea name="prompt" toName="image"/>'
    '<PolygonLabels name="p" toName="image"><Label value="Sofa" predicted_values="sofa,couch"/><Label value="Cat"/>'
    "</PolygonLabels></View>"
)


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("Sofa: red couch", TypedPrompt("add", "Sofa", "red couch")),
        ("  sofa :  red couch ", TypedPrompt("add", "Sofa", "red couch")),
        ("Sofa: Couch", TypedPrompt("select", "Sofa", "couch")),
        ("Sofa", TypedPrompt("select", "Sofa")),
        ("sofa:", TypedPrompt("select", "Sofa")),
        ("COUCH", TypedPrompt("select", "Sofa", "couch")),
        ("settee", TypedPrompt("select", "Sofa", "settee")),
        ("kitten", TypedPrompt("nearest", None, "kitten")),
        ("Dog: puppy", TypedPrompt("nearest", None, "Dog: puppy")),
        ("/list", TypedPrompt("list")),
        ("/clear", TypedPrompt("clear")),
        ("/clear cat", TypedPrompt("clear", "Cat")),
    ],
)
def test_what_a_text_asks_for(text: str, typed: TypedPrompt) -> None:
    assert read_typed(text, CONFIG, {"Sofa": ["settee"]}) == typed


@pytest.mark.parametrize("text", ["/forget", "/clear Dog", "/list all"])
def test_unknown_commands(text: str) -> None:
    with pytest.raises(SettingsError, match="command|no label"):
        read_typed(text, CONFIG, {})


@pytest.mark.parametrize("text", ["", "   ", "a\nb", "x" * 201])
def test_texts_that_cannot_be_prompts(text: str) -> None:
    with pytest.raises(VocabularyError):
        read_typed(text, CONFIG, {})


def test_prompts_survive_and_are_apart_by_project(tmp_path: Path) -> None:
    path = tmp_path / "state" / "prompts.json"
    store = PromptStore(path)
    store.add("1.5", "Sofa", "red couch")
    store.add("1.5", "Sofa", "red couch")
    store.add("1.5", "Cat", "kätzchen")
    store.add("2.5", "Sofa", "bench")
    assert PromptStore(path).get("1.5") == {"Sofa": ["red couch"], "Cat": ["kätzchen"]}
    assert store.clear("1.5", "Sofa") == 1
    assert store.clear("1.5") == 1
    assert store.get("1.5") == {} and store.get("2.5") == {"Sofa": ["bench"]}


def test_the_oldest_of_very_many_prompts_is_forgotten(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "prompts.json")
    for number in range(66):
        store.add("1", "Sofa", f"sofa {number}")
    assert store.get("1")["Sofa"][0] == "sofa 2" and len(store.get("1")["Sofa"]) == 64


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    stores = [PromptStore(tmp_path / "prompts.json") for _ in range(4)]
    threads = [
        threading.Thread(target=lambda store=store, name=name: [store.add("1", name, f"{name} {n}") for n in range(8)])
        for name, store in zip("abcd", stores, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: len(prompts) for name, prompts in stores[0].get("1").items()} == dict.fromkeys("abcd", 8)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text("{")
    with pytest.raises(SettingsError, match="prompts.json"):
        PromptStore(tmp_path / "prompts.json").get("1")


def test_typed_commands_answer_with_a_text(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "prompts.json")
    store.add("1", "Sofa", "red couch")

    def command(text: str, remember: bool = True) -> Sequence[str] | None:
        return answer_command(Asked(Context(text=text), CONFIG), store, "1", remember=remember)

    assert command("/list") == ["Sofa: red couch"]
    with pytest.raises(SettingsError, match="not remembered"):
        command("/clear", remember=False)
    assert command("/clear Sofa") == ["1 typed prompt of Sofa cleared"]
    assert store.get("1").get("Sofa") is None
    assert command("/list") == ["no typed prompts yet"]
    assert command("Sofa") is None and answer_command(None, store, "1") is None
