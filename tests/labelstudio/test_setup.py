"""The configuration that ``setup`` writes, settings files, and commands without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from labelstudio_backend.cli.options import read_token
from labelstudio_backend.config_writer import Shape, labeling_config_xml
from labelstudio_backend.image_fetch.tokens import Token, read_token_file
from labelstudio_backend.labeling_config import parse_labeling_config
from labelstudio_backend.settings import read_settings_file, settings_from
from tcl_core.cli.main import run
from tcl_core.errors import SettingsError, VocabularyError
from tcl_core.vocabulary import Label, Vocabulary

VOCABULARY = Vocabulary(
    (Label("Sofa & <co>", ("sofa", "couch"), 0.5, (1, 2, 3)), Label("Cat")), background_threshold=0.45
)


@pytest.mark.parametrize("shape", ["polygon", "brush", "box"])
def test_a_written_configuration_is_the_vocabulary(shape: Shape) -> None:
    config = parse_labeling_config(labeling_config_xml(VOCABULARY, shape))
    read = config.vocabulary()
    assert [(label.name, label.prompts, label.threshold) for label in read.labels] == [
        ("Sofa & <co>", ("sofa", "couch"), 0.5),
        ("Cat", ("Cat",), None),
    ]
    assert read.background_threshold == 0.45 and config.prompt_name == "prompt" and config.image_key == "image"


def test_every_region_is_drawn_once() -> None:
    drawn = {
        shape: parse_labeling_config(labeling_config_xml(VOCABULARY, shape)).drawing for shape in ("polygon", "box")
    }  # type: ignore[arg-type]
    assert [(control.kind, control.holes_only) for control in drawn["polygon"]] == [("polygon", False)]
    assert [control.kind for control in drawn["box"]] == ["rectangle"]


def test_without_background() -> None:
    vocabulary = Vocabulary((Label("Cat"),), background=False)
    assert not parse_labeling_config(labeling_config_xml(vocabulary)).vocabulary().background


def test_a_prompt_with_a_comma_cannot_be_written() -> None:
    with pytest.raises(VocabularyError, match="comma"):
        labeling_config_xml(Vocabulary((Label("Cat", ("big, old cat",)),)))


def test_settings_file_and_options(tmp_path: Path) -> None:
    path = tmp_path / "backend.yaml"
    path.write_text(
        "model: {min_area: 9}\nqueue: 3\nstate_dir: /tmp/s\n"
        "images: {allow_hosts: [Images.Example.org], allow_addresses: [10.0.0.0/8]}\n"
    )
    settings = settings_from(read_settings_file(path), {"tolerance": "exact", "min_area": None}, {"allow_hosts": ()})
    assert (settings.queue, settings.state_dir) == (3, Path("/tmp/s"))
    assert (settings.model.min_area, settings.model.tolerance) == (9, "exact")
    fetcher_site = settings.images.fetcher(None).site
    assert fetcher_site.hosts == {"images.example.org"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "mapping"),
        ("quue: 3", "unknown keys: quue; the keys are model, images"),
        ("images: {alow_hosts: []}", "images: unknown keys: alow_hosts"),
        ("images: 5", "images must be a mapping"),
        ("token: abc", "--token-file"),
        ("a: [", "cannot be read"),
        ("queue: 0", "above 0"),
        ("queue: many", "backend.yaml: queue must be a whole number, not 'many'"),
        ("queue: true", "whole number"),
        ("job_seconds: .inf", "finite"),
        ("model: {batch_size: '8'}", "model.batch_size must be a whole number"),
        ("state_dir: 3", "must be a path"),
        ("images: {allow_hosts: a}", "images.allow_hosts must be a list"),
        ("images: {label_studio_url: ftp://x}", "not an http"),
        ("model: {min_area: -1}", "0 or more"),
    ],
)
def test_settings_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "backend.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        settings_from(read_settings_file(path), {}, {}, path)


def test_the_settings_of_the_page_are_the_defaults() -> None:
    """But for what it says to be examples: the model and the addresses."""
    page = (Path(__file__).parents[2] / "docs" / "label-studio.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "queue:" in block]
    written = yaml.safe_load(block)
    del written["images"]["local_root"]
    found, default = settings_from(written, {}, {}), settings_from({}, {}, {})
    for name in set(written) - {"model", "images"}:
        assert getattr(found, name) == getattr(default, name), name
    for name in set(written["model"]) - {"model"}:
        assert getattr(found.model, name) == getattr(default.model, name), name
    assert (found.images.max_bytes, found.images.seconds) == (default.images.max_bytes, default.images.seconds)


def test_options_of_the_method_are_settings(tmp_path: Path) -> None:
    """The semantic unit from a settings file reaches the segmenter, and predictions of other options are outdated."""
    path = tmp_path / "backend.yaml"
    path.write_text("model: {options: {unit_points: 25, unit_threshold: 0.2}}\n")
    plain, chosen = settings_from({}, {}, {}).model, settings_from(read_settings_file(path), {}, {}).model
    assert plain.identity() != chosen.identity()
    assert chosen.load().settings()["options"].items() >= {"unit_points": 25, "unit_threshold": 0.2}.items()
    with pytest.raises(SettingsError, match="no such option"):
        settings_from({"model": {"options": {"units": 1}}}, {}, {}).model.identity()


def test_a_model_is_identified_by_what_is_written() -> None:
    assert repr(settings_from({"model": {"tolerance": 2}}, {}, {}).model.tolerance) == "2"


def test_token_files(tmp_path: Path) -> None:
    path = tmp_path / "token.txt"
    path.write_text("0123456789abcdef\n")
    assert read_token_file(path) == "0123456789abcdef"
    for text in ("", "two words", "two\nlines"):
        path.write_text(text)
        with pytest.raises(SettingsError, match="one line"):
            read_token_file(path)


def test_what_is_only_a_part_of_a_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Label Studio's list of tokens shows the first two of three parts, which newcomers copy."""
    whole = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"
    path = tmp_path / "token.txt"
    path.write_text(whole)
    assert read_token_file(path) == whole
    path.write_text(whole.rpartition(".")[0])
    with pytest.raises(SettingsError, match=r"token.txt: only a part .* its Copy button"):
        read_token_file(path)
    monkeypatch.setenv("LABEL_STUDIO_TOKEN", whole.rpartition(".")[0])
    with pytest.raises(SettingsError, match="LABEL_STUDIO_TOKEN: only a part"):
        read_token(None)
    with pytest.raises(SettingsError, match=r"nowhere.txt: the token cannot be read \(No such file or directory\)"):
        read_token_file(tmp_path / "nowhere.txt")


def test_a_legacy_key_is_sent_as_it_is_and_a_personal_one_is_not() -> None:
    assert Token("abc").header() == {"Authorization": "Token abc"} and not Token("abc").needs_refresh
    personal = Token("a.b.c")
    assert personal.needs_refresh
    personal.accept("fresh")
    assert personal.header() == {"Authorization": "Bearer fresh"} and not personal.needs_refresh
    assert personal.reject() and personal.needs_refresh and not Token("abc").reject()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "--model", "no-such-model"], "no-such-model"),
        (["serve", "--auth-file", "missing"], "--auth-file"),
        (["serve", "--url", "localhost"], "not an http"),
        (["prelabel", "--project", "1"], "no token"),
        (["export", "--project", "1", "--out", "coco.json"], "no token"),
        (["setup", "--label", "cat"], "no token"),
        (["setup"], "no labels"),
        (["prompts", "--clear"], "--project"),
        (["prompts", "--label", "a"], "--clear"),
    ],
)
def test_commands_that_cannot_run(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LABEL_STUDIO_TOKEN", raising=False)
    monkeypatch.setenv("TCL_ANNOTATE_HOME", str(tmp_path))
    assert run(["label-studio", *words]) == 2
    assert message in capsys.readouterr().err


def test_typed_prompts_by_command(tmp_path: Path, capsys: Any) -> None:
    from labelstudio_backend.prompts import PromptStore

    PromptStore(tmp_path / "prompts.json").add("1.5", "Sofa", "red couch")
    place = ["--state-dir", str(tmp_path)]
    assert run(["label-studio", "prompts", *place]) == 0
    assert capsys.readouterr().out == "project 1.5, Sofa: red couch\n"
    assert run(["label-studio", "prompts", *place, "--project", "1", "--clear"]) == 0
    assert run(["label-studio", "prompts", *place]) == 0
    assert capsys.readouterr().out == "1 typed prompt cleared\nno typed prompts yet\n"
